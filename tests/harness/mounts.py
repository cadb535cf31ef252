"""What the C library has and Python lacks: mount namespaces, names that change places."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 1 << 18
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_libc = ctypes.CDLL(None, use_errno=True)


def exchange(first: Path, second: Path) -> None:
    """Let two files change names; at every instant both names are there (renameat2(2))."""
    names = os.fsencode(first), os.fsencode(second)
    if _libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) != 0:
        raise _last_error()


def make_private() -> None:
    """Give this process a mount namespace of its own; for `preexec_fn`.

    A killed CRIU leaves the live cgroup hierarchies mounted below its work directory, where a later
    clean-up of temporary directories would walk into them.
    """
    if _libc.unshare(_CLONE_NEWNS) != 0:
        raise _last_error()
    _mount(None, "/", _MS_REC | _MS_PRIVATE)


def make_run(directory: Path) -> Callable[[], None]:
    """Make a /run out of `directory`, where the runtimes find their containers; for `preexec_fn`.

    Only the process that calls what is returned, and its children, have it.
    """
    for runtime in ("runc", "crun"):
        for state in (Path("/run", runtime), directory / runtime):
            state.mkdir(0o700, exist_ok=True)

    def enter() -> None:
        make_private()
        for runtime in ("runc", "crun"):
            _mount(f"/run/{runtime}", str(directory / runtime), _MS_BIND)
        _mount(str(directory), "/run", _MS_BIND | _MS_REC)

    return enter


def _mount(source: str | None, target: str, flags: int) -> None:
    from_where = None if source is None else os.fsencode(source)
    if _libc.mount(from_where, os.fsencode(target), None, ctypes.c_ulong(flags), None) != 0:
        raise _last_error()


def _last_error() -> OSError:
    errno = ctypes.get_errno()
    return OSError(errno, os.strerror(errno))
