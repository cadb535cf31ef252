"""The mounts that make a container's root file system, as containerd's `Mount` messages say.

`mount_all` and `unmount_all` may block as long as a disk or a network does. So the shim calls them
in a child, by `MountJob`; only the command `delete`, which has no loop, calls `unmount_all` itself.

Source: mount(8), mount(2), umount2(2), proc(5) for mountinfo; for the order and the options, mount/
in github.com/containerd/containerd; loop(4). Options `uidmap=` and `gidmap=`, and types that need a
helper of mount(8), fuse-overlayfs for example, are errors.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import signal
import struct
import time
from functools import partial

from supervisor.linux import fds, spawn, syscalls
from supervisor.linux.errors import reason
from workers.process import isolate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from supervisor.linux.exit_status import Termination
    from supervisor.linux.reaper import Reaper

_PAGE_BYTES = mmap.PAGESIZE
_ROOM_BYTES = 512
"""Nearer than this to a page, overlay's layers get shorter names, as containerd does it."""

_BUSY_PAUSE_S = 0.05
_BUSY_TRIES = 50

_PROPAGATION = {
    "shared": syscalls.MS_SHARED,
    "slave": syscalls.MS_SLAVE,
    "private": syscalls.MS_PRIVATE,
    "unbindable": syscalls.MS_UNBINDABLE,
}
_SET = {
    "ro": syscalls.MS_RDONLY,
    "nosuid": 1 << 1,
    "nodev": 1 << 2,
    "noexec": 1 << 3,
    "sync": 1 << 4,
    "remount": syscalls.MS_REMOUNT,
    "mand": 1 << 6,
    "dirsync": 1 << 7,
    "noatime": 1 << 10,
    "nodiratime": 1 << 11,
    "bind": syscalls.MS_BIND,
    "rbind": syscalls.MS_BIND | syscalls.MS_REC,
    "relatime": 1 << 21,
    "strictatime": 1 << 24,
    **_PROPAGATION,
    **{f"r{name}": flag | syscalls.MS_REC for name, flag in _PROPAGATION.items()},
}
_CLEARED = {
    "rw": _SET["ro"],
    "suid": _SET["nosuid"],
    "dev": _SET["nodev"],
    "exec": _SET["noexec"],
    "async": _SET["sync"],
    "nomand": _SET["mand"],
    "atime": _SET["noatime"],
    "diratime": _SET["nodiratime"],
    "norelatime": _SET["relatime"],
    "nostrictatime": _SET["strictatime"],
    "defaults": 0,
}
_ANY_PROPAGATION = sum(_PROPAGATION.values())
_DONE = "done"
_MOST_TOLD = 4096
_NEED_MORE = ("uidmap=", "gidmap=")

_LOOP = "loop"
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR = 1, 4
# struct loop_config: the file, the size of a block, `lo_flags` within struct loop_info64.
_LOOP_CONFIG = struct.Struct("=II 52x I 176x 64x")
_MOST_LOOP_TRIES = 100


class MountError(Exception):
    """A mount or an unmount failed; the message names type, place and reason."""


def parse_options(options: Iterable[str]) -> tuple[int, str]:
    """Return the flags of mount(2) and the options that are the file system's own.

    Raises:
        MountError: An option that the kernel does not know by itself.
    """
    flags = 0
    data = []
    for option in options:
        if option in _SET:
            flags |= _SET[option]
        elif option in _CLEARED:
            flags &= ~_CLEARED[option]
        elif option.startswith(_NEED_MORE):
            raise MountError(f"mount option {option} is not supported")
        else:
            data.append(option)
    return flags, ",".join(data)


def with_short_layers(options: Sequence[str]) -> tuple[str, list[str]]:
    """Return a directory and overlay's options with lower layers relative to it.

    The directory is "" and the options are the same if the layers have no directory in common.
    """
    index = next((i for i, each in enumerate(options) if each.startswith("lowerdir=")), None)
    if index is None:
        return "", [*options]
    layers = re.split(r"(?<!\\):", options[index].removeprefix("lowerdir="))
    if not all(layer.startswith("/") for layer in layers):
        return "", [*options]
    common = os.path.commonpath([os.path.dirname(layer) for layer in layers])
    if common == "/":
        return "", [*options]
    short = ":".join(layer[len(common) + 1 :] for layer in layers)
    return common, [*options[:index], f"lowerdir={short}", *options[index + 1 :]]


def mount_all(mounts: Iterable[Mapping[str, Any]], rootfs: str) -> None:
    """Mount in order onto `rootfs`; after a failure unmount what was mounted.

    May change the current directory: overlay's layers can be relative to it.

    Args:
        mounts: The values of `containerd.types.Mount`. A `target` is a place below `rootfs`; its
            symbolic links end there.
        rootfs: A directory.

    Raises:
        MountError: With the first mount that failed.
    """
    try:
        for each in mounts:
            _mount_below(each, rootfs)
    except MountError:
        unmount_all(rootfs)
        raise


def _mount_below(mount: Mapping[str, Any], rootfs: str) -> None:
    place = mount.get("target", "").strip("/")
    where = os.path.join(rootfs, place) if place else rootfs
    try:
        if not place:
            _mount(mount, rootfs)
            return
        root = fds.Fd(os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        try:
            target = fds.Fd(syscalls.open_in_root(root.fileno(), place))
        finally:
            root.close()
        try:
            _mount(mount, f"/proc/self/fd/{target.fileno()}")
        finally:
            target.close()
    except OSError as error:
        what = f"mount {mount['type'] or 'of ' + mount['source']} at {where}"
        raise MountError(f"{what}: {reason(error)}") from error


def _mount(mount: Mapping[str, Any], target: str) -> None:
    kind, source, options = mount["type"], mount["source"], [*mount["options"]]
    if kind == "overlay" and len(",".join(options)) >= _PAGE_BYTES - _ROOM_BYTES:
        directory, options = with_short_layers(options)
        if directory:
            os.chdir(directory)
    flags, data = parse_options(option for option in options if option != _LOOP)
    if len(os.fsencode(data)) >= _PAGE_BYTES:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG), target)
    if _LOOP in options:
        path, device = _loop_device(source, is_read_only=bool(flags & syscalls.MS_RDONLY))
        try:
            syscalls.mount(path, target, flags, kind, data)
        finally:
            device.close()  # the device goes with its mount
        return
    if kind == "bind":
        flags |= syscalls.MS_BIND
    propagation = flags & _ANY_PROPAGATION
    own = flags & ~_ANY_PROPAGATION
    syscalls.mount(source, target, own, kind, data)
    if own & syscalls.MS_BIND and own & ~(syscalls.MS_BIND | syscalls.MS_REC):
        # The first mount(2) of a bind ignores all other flags.
        syscalls.mount(source, target, own | syscalls.MS_REMOUNT)
    if propagation:
        syscalls.mount("", target, propagation | flags & syscalls.MS_REC)


def _loop_device(path: str, *, is_read_only: bool) -> tuple[str, fds.Fd]:
    """Attach a file to a block device that goes with its last user; the caller closes it.

    Source: loop(4), LOOP_CONFIGURE, Linux 5.8.
    """
    access = os.O_RDONLY if is_read_only else os.O_RDWR
    flags = _LO_FLAGS_AUTOCLEAR | (_LO_FLAGS_READ_ONLY if is_read_only else 0)
    file = fds.Fd(os.open(path, access | os.O_CLOEXEC))
    control = fds.Fd(-1)
    try:
        control = fds.Fd(os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC))
        for _each in range(_MOST_LOOP_TRIES):
            number = fcntl.ioctl(control.fileno(), _LOOP_CTL_GET_FREE)
            name = f"/dev/loop{number}"
            device = fds.Fd(os.open(name, access | os.O_CLOEXEC))
            try:
                config = _LOOP_CONFIG.pack(file.fileno(), 0, flags)
                fcntl.ioctl(device.fileno(), _LOOP_CONFIGURE, config)
            except OSError as error:
                device.close()
                if error.errno != errno.EBUSY:  # another process was given the same number
                    raise
            else:
                return name, device
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
    finally:
        control.close()
        file.close()


def unmount_all(rootfs: str) -> None:
    """Remove every mount at and below `rootfs`. A place without a mount, or no place, is done.

    A mount that stays in use for 2.5 s is detached: it goes with its last user.

    Raises:
        MountError: The kernel refuses.
    """
    try:
        rootfs = os.path.realpath(rootfs)
        for place in reversed(_mounts_below(rootfs)):
            _unmount(place)
        while _unmount(rootfs):
            pass
    except OSError as error:
        raise MountError(f"unmount {error.filename or rootfs}: {reason(error)}") from error


def _unmount(place: str) -> bool:
    """Remove one mount; returns False if there is none."""
    for _each in range(_BUSY_TRIES):
        try:
            syscalls.unmount(place, syscalls.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return False
            if error.errno != errno.EBUSY:
                raise
            time.sleep(_BUSY_PAUSE_S)
        else:
            return True
    syscalls.unmount(place, syscalls.UMOUNT_NOFOLLOW | syscalls.MNT_DETACH)
    return True


def _mounts_below(place: str) -> list[str]:
    """Return the mount points below a directory, in the order of their mounts."""
    with open("/proc/self/mountinfo", "rb") as file:
        points = [_unescaped(line.split(b" ")[4]) for line in file]
    return [point for point in points if point.startswith(f"{place}/")]


def _unescaped(field: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), field))


class MountJob:
    """A child that mounts or unmounts, so that the loop never waits. Owns the child and its pipe.

    A child in an uninterruptible wait outlives `cancel`, and ends when the kernel lets it.
    """

    def __init__(
        self,
        reaper: Reaper,
        title: str,
        null_fd: int,
        work: Callable[[], None],
        on_done: Callable[[str], None],
    ) -> None:
        """Fork. Borrows `reaper` and `null_fd`.

        Args:
            reaper: Expects the child.
            title: The child's process title.
            null_fd: /dev/null, the child's standard streams.
            work: `mount_all` or `unmount_all` with its arguments.
            on_done: Called once, from the reaper, with "" or the error.

        Raises:
            OSError: No pipe or no child (EMFILE, EAGAIN); `on_done` is not called.
        """
        self._on_done = on_done
        self._told_rfd, told_wfd = fds.pipe(_MOST_TOLD)
        run = partial(_run, work, title, told_wfd.fileno(), null_fd)
        try:
            self._pid = spawn.fork_worker(run, dies_with_parent=True)
        except OSError:
            self._told_rfd.close()
            raise
        finally:
            told_wfd.close()
        reaper.expect(self._pid, self._on_end)

    @property
    def is_running(self) -> bool:
        """Whether the child has not been reaped."""
        return self._pid != 0

    def cancel(self) -> None:
        """Kill the child; `on_done` follows when it has been reaped."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)  # unreaped, so the pid is its own

    def _on_end(self, termination: Termination) -> None:
        self._pid = 0
        told = os.read(self._told_rfd.fileno(), _MOST_TOLD).decode(errors="replace")
        self._told_rfd.close()
        if not told:
            told = f"the process that mounts ended: {termination}"
        self._on_done("" if told == _DONE else told)


def _run(work: Callable[[], None], title: str, told_wfd: int, null_fd: int) -> None:
    """Do the child's part."""
    isolate.enter_worker(title, [told_wfd], null_fd)
    try:
        work()
    except MountError as error:
        os.write(told_wfd, str(error).encode(errors="replace")[:_MOST_TOLD])
    else:
        os.write(told_wfd, _DONE.encode())
