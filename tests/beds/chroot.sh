#!/bin/sh
# Runs a command in a root file system that stays as it is: what is written is kept in memory.
#
# Usage: chroot.sh FOLDER LOWER JOB COMMAND [ARGUMENT...]
#   FOLDER  an empty one, to mount on
#   LOWER   the root file system
#   JOB     a folder that the command finds at /job, writable, and starts in
#
# Runs in a mount namespace of its own with no way out, so that every mount made here ends with it.
set -eu
folder=$1
lower=$2
job=$3
shift 3

mount -t tmpfs -o mode=0755 forkshim-bed "$folder"
mkdir "$folder/upper" "$folder/work" "$folder/root"
root=$folder/root
mount -t overlay -o "lowerdir=$lower,upperdir=$folder/upper,workdir=$folder/work" forkshim-bed "$root"
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
mkdir "$root/job"
mount --bind "$job" "$root/job"
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec chroot "$root" sh -c 'cd /job && exec "$@"' sh "$@"
