#!/bin/busybox sh
# First process of the VM: loads the drivers of the initramfs, lays a RAM overlay over the disk and
# hands over to systemd. The disk stays untouched, because a saved VM is resumed many times from it.
bb=/bin/busybox

give_up() {
    echo "bed: $1"
    $bb poweroff -f
}

$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev

while read -r module; do
    $bb insmod "/modules/$module" || echo "bed: insmod $module failed"
done < /modules/order

# The disks appear a little after their driver.
tries=0
while ! [ -b /dev/vda ]; do
    tries=$((tries + 1))
    [ $tries -lt 1000 ] || give_up "no disk"
    $bb usleep 10000
done

$bb mount -t ext4 -o ro,noload /dev/vda /disk || give_up "no root file system"
$bb mount -t tmpfs -o mode=755,size=60% tmpfs /ram
$bb mkdir /ram/upper /ram/work
$bb mount -t overlay -o lowerdir=/disk,upperdir=/ram/upper,workdir=/ram/work overlay /root ||
    give_up "no overlay"

$bb umount /proc
$bb umount /sys
$bb mount --move /dev /root/dev
exec $bb switch_root /root /lib/systemd/systemd
