#!/bin/busybox sh
# /init of a guest: says that it is there, then tries each device it finds, reports in lines that
# begin with "guest:", and powers off.
/bin/busybox --install -s /bin
mount -t proc proc /proc
echo "guest: init $(cut -d ' ' -f 1 /proc/uptime)"
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module"; done
echo "guest: cpus $(nproc)"

source=$(cat /sys/class/misc/hw_random/rng_current)
if [ "$source" != none ]; then
    echo "guest: rng $source"
    echo "guest: entropy $(dd if=/dev/hwrng bs=32 count=1 iflag=fullblock 2>/dev/null | xxd -p -c 32)"
fi

if [ -b /dev/vda ]; then
    mount -t ext4 /dev/vda /mnt && echo "guest: mounted $(cat /sys/block/vda/size) sectors"
    cd /mnt
    if [ -e sums ]; then
        sha256sum -c -s sums && echo "guest: sums hold for $(grep -c . sums) files"
    else
        for number in 1 2 3 4 5 6 7 8; do
            dd if=/dev/urandom of="data$number" bs=64k count="$number" conv=fsync 2>/dev/null ||
                echo "guest: cannot write data$number"
        done
        sha256sum data* | dd of=sums conv=fsync 2>/dev/null
        echo "guest: wrote $(grep -c . sums) files"
    fi
    cd /
    umount /mnt && echo "guest: unmounted"
fi

if [ -c /dev/hvc0 ]; then
    # Held open: what arrives at a console that nobody has open is gone.
    exec 3<>/dev/hvc0
    stty raw -echo <&3
    echo "guest: say something" >&3
    # A console with nobody at its other end must not keep the guest from ending: 20 s at most.
    IFS= read -r -t 20 said <&3
    echo "guest: heard $said" >&3
    echo "guest: console heard $said"
fi
echo "guest: done $(cut -d ' ' -f 1 /proc/uptime)"
poweroff -f
