#!/bin/busybox sh
# /init of a Linux that loads its devices from one line typed at hvc0 to the next, then tells what
# it has found wrong. If /fio is there, it loads the disk's raw part.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module"; done

say() { echo "soak: $*"; }
wrong() { say "FAILED: $*"; }
stopped() { [ -e /tmp/stop ]; }

# Behind the file system on the disk, from 32 MiB on.
raw() {
    if [ -e /fio ]; then
        /fio --name=raw --filename=/dev/vda --offset=32m --size=4m --direct=1 --ioengine=io_uring \
            --iodepth=8 --rw=randrw --bsrange=512-32k --verify=crc32c --verify_fatal=1 \
            --verify_backlog=64 --randrepeat=0 --time_based --runtime="$1" >/tmp/fio 2>&1 ||
            wrong "fio ended with $?: $(grep -m 3 -iE 'verify|error|err=' /tmp/fio)"
        say "fio $(sed -n 's/.*issued rwts: //p' /tmp/fio)"
    else
        for worker in 0 1 2 3; do
            /io verify /dev/vda $(((32 + worker) << 20)) /tmp/stop >"/tmp/raw$worker" 2>&1 &
        done
        wait
        for worker in 0 1 2 3; do
            grep -q 'verified .* wrong 0 errors 0' "/tmp/raw$worker" ||
                wrong "raw blocks: $(cat "/tmp/raw$worker")"
        done
        say "raw $(cat /tmp/raw? | awk '{ sum += $2 } END { print sum }')"
    fi
}

# Files are written, dropped from memory, and read.
files() {
    number=0
    while ! stopped; do
        file=/mnt/file$((number % 8))
        dd if=/dev/urandom of=/tmp/file bs=64k count=4 2>/dev/null
        cp /tmp/file "$file" || wrong "file $number cannot be written"
        sync
        echo 3 >/proc/sys/vm/drop_caches
        cmp /tmp/file "$file" || wrong "file $number differs"
        number=$((number + 1))
    done
    say "files $number"
}

entropy() {
    number=0 last=
    while ! stopped; do
        this=$(dd if=/dev/hwrng bs=64 count=1 iflag=fullblock 2>/dev/null | xxd -p -c 64)
        [ ${#this} = 128 ] || wrong "hwrng gave '$this'"
        [ "$this" != "$last" ] || wrong "hwrng gave the same twice"
        last=$this number=$((number + 1))
    done
    say "entropy $number"
}

lines() {
    number=0
    while ! stopped; do
        echo "line $number of the guest, numbered and with nothing left out" >&3
        number=$((number + 1))
    done
    echo "the end" >&3
    say "lines $number"
}

exec 3<>/dev/hvc0
stty raw -echo <&3
mount -t ext4 /dev/vda /mnt || wrong "no file system"
# What is said while nobody listens is gone.
say listening
read -r _ <&3
dmesg -c >/dev/null # what it said of its start is not about devices
seconds=$(sed -n 's/.*soak.seconds=\([0-9]*\).*/\1/p' /proc/cmdline)
raw "${seconds:-60}" &
files &
entropy &
lines &
say begun
read -r _ <&3
touch /tmp/stop
wait
umount /mnt || wrong "it cannot be unmounted"
mount -t ext4 /dev/vda /mnt && umount /mnt || wrong "it cannot be mounted again"
dmesg | grep -iE 'I/O error|EXT4-fs (error|warning)|nobody cared|blocked for more|lockup|WARNING|BUG:' |
    while read -r line; do wrong "$line"; done
say done
stty cs8
poweroff -f
