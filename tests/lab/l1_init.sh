#!/bin/busybox sh
# /init of the lab's first-level machine: the host's root, read-only by 9p with a tmpfs above it,
# becomes the root of one command, which fw_cfg carries in; its output and its exit status leave
# by two virtio-serial ports.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
# A module without its hardware refuses, and says so on the console; that is no error here.
for module in /modules/*; do insmod "$module"; done

mkdir -p /lower /upper /root
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=loose,ro host /lower
mount -t tmpfs tmpfs /upper
mkdir /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /root
mount -t proc proc /root/proc
mount -t sysfs sys /root/sys
mount -t cgroup2 cgroup /root/sys/fs/cgroup
mount -t devtmpfs dev /root/dev
mkdir -p /root/dev/shm /root/dev/pts
mount -t tmpfs tmpfs /root/dev/shm
mount -t devpts -o ptmxmode=666 pts /root/dev/pts
mount -t tmpfs tmpfs /root/run
chmod 666 /dev/kvm /dev/net/tun
ifconfig lo 127.0.0.1 up
hostname lab

# A port can be opened once only, so a command that opens /dev/stdout again needs a pipe before it.
output=$(echo /dev/vport*p1)
mkfifo /output
cat /output >"$output" &
copier=$!
cat /sys/firmware/qemu_fw_cfg/by_name/opt/lab/command/raw >/root/run/lab-command
chroot /root /bin/sh /run/lab-command >/output 2>&1 </dev/null
status=$?
# What the command left running would keep the pipe open.
for process in /proc/[0-9]*; do
    process=${process#/proc/}
    [ "$process" = 1 ] || [ "$process" = "$copier" ] || kill -9 "$process" 2>/dev/null
done
wait "$copier"
echo "$status" >"${output%1}2"
poweroff -f
