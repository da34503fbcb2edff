#!/bin/busybox sh
# /init of the lab's first-level machine: the host's root, read-only by 9p with a tmpfs above it,
# becomes the root, and l1_inside.sh goes on in it.
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
mount -t securityfs security /root/sys/kernel/security
mount -t devtmpfs dev /root/dev
mkdir -p /root/dev/shm /root/dev/pts
mount -t tmpfs -o mode=1777 tmpfs /root/dev/shm
mount -t devpts -o ptmxmode=666 pts /root/dev/pts
mount -t tmpfs tmpfs /root/run
chmod 666 /dev/kvm /dev/net/tun
ifconfig lo 127.0.0.1 up
hostname lab

mkdir /root/run/lab
cp /bin/busybox /inside /root/run/lab
# Not chroot: the kernel gives no user namespaces to a process in a chroot.
exec switch_root /root /run/lab/busybox sh /run/lab/inside
