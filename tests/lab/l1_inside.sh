# PID 1 of the lab's first-level machine, in the host's root: runs the command that fw_cfg carries
# in; its output and its exit status leave by two virtio-serial ports.
/run/lab/busybox --install -s /run/lab
PATH=/run/lab
output=$(echo /dev/vport*p1)
# A port can be opened once only, so a command that opens /dev/stdout again needs a pipe before it.
mkfifo /run/lab/output
# The runner listens for this: a machine that locks up says nothing, and is started again.
while sleep 5; do echo alive >/dev/ttyS0; done &
cat /run/lab/output >"$output" &
copier=$!
cat /sys/firmware/qemu_fw_cfg/by_name/opt/lab/command/raw >/run/lab/command
/bin/sh /run/lab/command >/run/lab/output 2>&1 </dev/null
status=$?
# What the command left running would keep the pipe open.
for process in /proc/[0-9]*; do
    process=${process#/proc/}
    [ "$process" = 1 ] || [ "$process" = "$copier" ] || kill -9 "$process" 2>/dev/null
done
wait "$copier"
echo "$status" >"${output%1}2"
poweroff -f
