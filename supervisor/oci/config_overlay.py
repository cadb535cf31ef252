"""A bind mount over config.json that only the runtime and its children see.

A runtime reads config.json in the bundle, and records the bundle's path in the container's state.
forkshim never writes to a bundle. So the runtime runs in a copy of the mount namespace, where
forkshim's config.json is mounted over the bundle's.

Nothing else changes: mounts propagate between the host, a hook and the container as before. To hide
the overlay from the host, `put` takes the mount that contains the file out of its peer group, and
puts it back afterwards. Linux before 5.15 cannot put it back: mounts of the host still arrive, but
no mount propagates to the host.

Rejected: a copy of the bundle in another directory (hooks get its path, but not its files);
`--config`, which only crun has; a working directory in a hidden mount with the real path in $PWD,
which Go accepts and getcwd(3) of a hook does not.

Source: mount_namespaces(7), move_mount(2).
"""

from __future__ import annotations

import os
from contextlib import suppress

from supervisor.linux import fds, procfs, syscalls

_SET_GROUP_SINCE = (5, 15)


def is_possible() -> bool:
    """Return whether this process may mount. Source: capabilities(7)."""
    return procfs.has_capability(procfs.CAP_SYS_ADMIN)


def put(source: str, target: str) -> None:
    """Mount `source` over `target` for this process and its later children.

    Raises:
        OSError: EPERM, ENOMEM, EMFILE, or an error of the paths.
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
                with suppress(OSError):  # EINVAL: the mount was in no peer group
                    syscalls.join_peer_group(inside.fileno(), outside.fileno())
            finally:
                inside.close()
    finally:
        outside.close()


def _root_of_mount(path: str) -> str:
    """Return the root of the mount that contains `path`."""
    mount = _mount_id(path)
    while path != "/" and _mount_id(os.path.dirname(path)) == mount:
        path = os.path.dirname(path)
    return path


def _mount_id(path: str) -> bytes:
    """Return the id of the mount that contains a directory. Source: proc(5), /proc/PID/fdinfo."""
    fd = fds.Fd(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        with open(f"/proc/self/fdinfo/{fd.fileno()}", "rb") as file:
            return next(line for line in file if line.startswith(b"mnt_id:"))
    finally:
        fd.close()


def _kernel() -> tuple[int, ...]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(filter(str.isdecimal, minor)) or 0)
