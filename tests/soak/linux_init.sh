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

# io on DEVICE, which is NAME to the host, until all shall stop.
load() { # NAME FILE COMMAND DEVICE …
    /io "$3" "$4" /tmp/stop $5 >"/tmp/$1.$2" 2>&1
    grep -q 'done .* wrong 0 errors 0' "/tmp/$1.$2" ||
        wrong "$3 ${4#/dev/}: $(grep -v stall "/tmp/$1.$2")"
}

count() { cat "/tmp/$1."* | awk '/^done/ { sum += $2 } END { print sum }'; }

# Behind the file system on the disk, from 32 MiB on.
raw() {
    if [ -e /fio ]; then
        # Its log is of CLOCK_MONOTONIC (1): milliseconds, the latency in nanoseconds, and more.
        /fio --name=raw --filename=/dev/vda --offset=32m --size=4m --direct=1 --ioengine=io_uring \
            --iodepth=8 --rw=randrw --bsrange=512-32k --verify=crc32c --verify_fatal=1 \
            --verify_backlog=64 --randrepeat=0 --time_based --runtime="$1" \
            --write_lat_log=/tmp/fio --log_alternate_epoch=1 --log_alternate_epoch_clock_id=1 \
            >/tmp/fio 2>&1 || wrong "fio ended with $?: $(grep -m 3 -iE 'verify|error|err=' /tmp/fio)"
        awk -F, '$2 > 5000000 { printf "stall %d until %d000\n", $2 / 1000, $1 }' \
            /tmp/fio_lat.*.log >/tmp/blk0.fio
        say "fio $(sed -n 's/.*issued rwts: //p' /tmp/fio)"
    else
        for worker in 0 1 2 3; do
            load blk0 $worker verify /dev/vda $(((32 + worker) << 20)) &
        done
        wait
        say "raw $(count blk0)"
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
    load rng0 0 entropy /dev/hwrng
    say "entropy $(count rng0)"
}

lines() {
    load console0 0 lines /dev/hvc0
    say "lines $(count console0)"
}

# The longest of each device, as many as a soak has steps and more (arbitrary).
stalls() {
    for name in blk0 rng0 console0; do
        cat /tmp/$name.* | sed -n "s/^stall/soak: stall $name/p" | sort -rn -k4 | head -n 500
    done
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
say "begun $(/io clock)"
read -r _ <&3
touch /tmp/stop
wait
say "ended $(/io clock)"
stalls
umount /mnt || wrong "it cannot be unmounted"
mount -t ext4 /dev/vda /mnt && umount /mnt || wrong "it cannot be mounted again"
dmesg | grep -iE 'I/O error|EXT4-fs (error|warning)|nobody cared|blocked for more|lockup|WARNING|BUG:' |
    while read -r line; do wrong "$line"; done
say done
stty cs8
poweroff -f
