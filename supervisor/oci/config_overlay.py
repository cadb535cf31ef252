"""A file in the place of another, for one program and its children alone.

A runtime reads config.json in the bundle and takes the bundle's name for the container's state, so
another config.json has to be there under its own name; and a bundle is never written to. The
program gets a copy of the mount namespace, in which ours lies upon the bundle's.

The copy is to differ in nothing else: mounts that a hook or the container makes reach the machine,
and the machine's reach them, as without it. So the one mount that carries the file is taken out of
its peer group, or the stand-in would be everybody's, and put back when that is done. Before Linux
5.15 that cannot be: there the machine's mounts still arrive, but none goes the other way.

Rejected: a copy of the bundle elsewhere (hooks get its name, and none of its files); `--config`,
which only crun has; a current directory in a hidden mount with $PWD naming the real one, by which
Go is convinced and getcwd(3) of a hook is not.

Source: mount_namespaces(7), move_mount(2).
"""

from __future__ import annotations

import os
from contextlib import suppress

from supervisor.linux import fds, procfs, syscalls

_SET_GROUP_SINCE = (5, 15)


def is_possible() -> bool:
    """Say whether this process may have mounts of its own. Source: capabilities(7)."""
    return procfs.has_capability(procfs.CAP_SYS_ADMIN)


def put(source: str, target: str) -> None:
    """Put `source` upon `target`, for this process and those that it forks from now on.

    Raises:
        OSError: The kernel refused.
    """
    place = _root_of_mount(os.path.dirname(os.path.realpath(target)))
    outside = fds.Fd(os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        syscalls.unshare_mounts()
        can_rejoin = _kernel() >= _SET_GROUP_SINCE
        syscalls.mount("none", place, syscalls.MS_PRIVATE if can_rejoin else syscalls.MS_SLAVE)
        syscalls.mount(source, target, syscalls.MS_BIND)
        if can_rejoin:
            inside = fds.Fd(os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            try:
                with suppress(OSError):  # EINVAL: it was in no group
                    syscalls.join_peer_group(inside.fileno(), outside.fileno())
            finally:
                inside.close()
    finally:
        outside.close()


def _root_of_mount(path: str) -> str:
    """Return the highest directory above `path` that is in the same mount."""
    mount = _mount_id(path)
    while path != "/" and _mount_id(os.path.dirname(path)) == mount:
        path = os.path.dirname(path)
    return path


def _mount_id(path: str) -> bytes:
    """Return the number of the mount that a directory is in. Source: proc(5), /proc/PID/fdinfo."""
    fd = fds.Fd(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        with open(f"/proc/self/fdinfo/{fd.fileno()}", "rb") as file:
            return next(line for line in file if line.startswith(b"mnt_id:"))
    finally:
        fd.close()


def _kernel() -> tuple[int, ...]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(filter(str.isdecimal, minor)) or 0)
