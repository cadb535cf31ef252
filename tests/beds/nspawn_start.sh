#!/bin/sh
# Makes the root file system of an nspawn bed and becomes the systemd-nspawn that boots it.
#
# Usage: nspawn_start.sh FOLDER CGROUP LOWER NSPAWN [ARGUMENT...]
#   FOLDER  the bed's own: files/ goes over the root file system, which is made at ram/root
#   CGROUP  the bed's own, which this process enters first, so as to be killed with it
#   LOWER   the root file system that the bed's is laid over: / or a tree of another release
#
# Runs in a mount namespace of its own with no way out, so that every mount made here ends with it.
set -eu
folder=$1
echo $$ >"$2/cgroup.procs"
lower=$3
shift 3

# What the bed writes is kept in memory. An upper layer on / itself would lie within the lower one,
# which the kernel refuses.
ram=$folder/ram
mount -t tmpfs -o mode=0755 forkshim-bed "$ram"
mkdir "$ram/upper" "$ram/work" "$ram/root" "$ram/nspawn"
mount -t overlay -o "lowerdir=$lower,upperdir=$ram/upper,workdir=$ram/work" forkshim-bed "$ram/root"

# nspawn's locks and propagation folders: with those of the machine, two beds would share them.
mkdir -p /run/systemd/nspawn
mount --bind "$ram/nspawn" /run/systemd/nspawn

# What the machine starts, mounts and has logged is no business of the bed's. In a chroot, because a
# symbolic link of the machine's may be absolute and lead out of the bed.
root=$ram/root
mount --bind "$folder/files" "$root/mnt"
chroot "$root" sh -eu <<'END'
rm -rf /etc/systemd/system/*.wants /etc/systemd/user/*.wants /etc/rc?.d /etc/fstab
rm -rf /var/log/journal
mkdir -p /var/log/journal
cp -R --remove-destination /mnt/. /
END
umount "$root/mnt"

exec "$@"
