"""Mount namespaces for programs that may leave mounts behind when they are killed."""

from __future__ import annotations

import ctypes
import os

_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def make_private() -> None:
    """Give this process a mount namespace of its own; for `preexec_fn`.

    A killed CRIU leaves the live cgroup hierarchies mounted below its work directory, where a later
    clean-up of temporary directories would walk into them.
    """
    if _libc.unshare(_CLONE_NEWNS) != 0 or _libc.mount(
        None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None
    ):
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
