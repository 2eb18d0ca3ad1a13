#!/bin/busybox sh
# The tiny guest: a kernel, busybox, bash, sshd and an NFS client in memory. It
# reads the same seed as a real guest, as far as vtorque's own seeds go.
umask 022
export PATH=/usr/local/sbin:/sbin:/bin:/usr/sbin:/usr/bin
chmod 0755 /
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /seed /run
mount -t devpts pts /dev/pts
while read -r module; do insmod "/modules/$module.ko"; done </modules/order
ip link set lo up
ip link set eth0 up
udhcpc -q -f -i eth0 -t 50 -T 1 -s /etc/udhcpc >/dev/null 2>&1 &
tries=0
until [ -b /dev/vdb ] || [ $tries -gt 100 ]; do sleep 0.05; tries=$((tries + 1)); done
mount -t iso9660 -o ro /dev/vdb /seed
hostname "$(sed -n 's/^local-hostname: "\(.*\)"/\1/p' /seed/meta-data)"
awk -f /etc/seed.awk /seed/user-data >/run/seed.sh
wait
# The seed ends with guest-setup and what comes after it; sshd must not let anybody in before.
sh /run/seed.sh
/usr/sbin/sshd -E /dev/console
# sshd goes to the background before it listens, and writes its number after.
until [ -s /run/sshd.pid ]; do sleep 0.01; done
for port in /sys/class/virtio-ports/*/name; do
    [ "$(cat "$port" 2>/dev/null)" = org.vtorque.ready ] || continue
    port=${port%/name}
    # As long as nobody listens on the host, this waits.
    echo ready >"/dev/${port##*/}" &
done
echo "tiny guest is up: $(cat /proc/uptime)" >/dev/console
while :; do sleep 3600; done
