#!/bin/busybox sh
# /init of the demo's Linux: tells what it found, uses each device once, and powers off. With
# demo.shell on the kernel's command line it gives a shell on the serial port before that.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module"; done

say() { echo "linux: $*"; }

# The value of the first line of /proc/cpuinfo or /proc/meminfo that begins so.
value() { sed -n "/^$1/{s/.*: *//p;q}" "$2"; }

say "$(uname -srm), up $(cut -d ' ' -f 1 /proc/uptime) s"
model=$(value 'model name' /proc/cpuinfo)
say "CPU ${model:-implementer $(value 'CPU impl' /proc/cpuinfo), part $(value 'CPU part' /proc/cpuinfo)}"
say "memory $(value MemTotal /proc/meminfo)"

for device in /sys/bus/virtio/devices/*; do
    [ -e "$device" ] || continue
    driver=$(readlink "$device/driver") || driver='no driver'
    read -r kind <"$device/device"
    parent=$(basename "$(readlink -f "$device/..")")
    say "$(basename "$device") at $parent, device id $((kind)): ${driver##*/}"
done

if [ -b /dev/vda ] && mount -t ext4 /dev/vda /mnt; then
    say "disk $(($(cat /sys/block/vda/size) / 2048)) MiB, mounted"
    [ -e /mnt/from-host ] &&
        say "from-host: sha256 $(sha256sum /mnt/from-host | cut -d ' ' -f 1)"
    echo "written by $(uname -sr) on $(uname -m)" >/mnt/from-guest && sync &&
        say "from-guest: written"
    # Meanwhile somebody out there kills the process that serves this disk (tools/demo).
    lost=0
    for number in $(seq 32); do
        dd if=/dev/urandom of="/tmp/$number" bs=64k count=1 2>/dev/null
        cp "/tmp/$number" "/mnt/$number"
        sync "/mnt/$number"
    done
    echo 3 >/proc/sys/vm/drop_caches
    for number in $(seq 32); do
        cmp -s "/tmp/$number" "/mnt/$number" || lost=$((lost + 1))
        rm "/tmp/$number"
    done
    echo "$lost" >/mnt/lost
    say "32 files written, each to the disk; read back, $lost lost"
fi
[ -c /dev/hwrng ] &&
    say "hwrng $(dd if=/dev/hwrng bs=16 count=1 iflag=fullblock 2>/dev/null | xxd -p)"
[ -c /dev/hvc0 ] && echo "linux: a line on hvc0" >/dev/hvc0
[ -c /dev/ttyS0 ] && echo "linux: a line on ttyS0" >/dev/ttyS0

if grep -qw demo.shell /proc/cmdline; then
    say "a shell; the disk is in /mnt; exit powers off"
    setsid cttyhack sh
fi

if grep -q ' /mnt ' /proc/mounts; then
    umount /mnt && say "unmounted"
fi
say "powering off, up $(cut -d ' ' -f 1 /proc/uptime) s"
stty cs8 # waits until the serial port has sent all that
poweroff -f
