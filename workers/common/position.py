"""Corrects the position of an open file that other processes change.

The kernel keeps a position per open file. If another process truncates the file (logrotate's
`copytruncate`), the next write is beyond the end, and the gap reads as NUL bytes. O_APPEND avoids
that, but splice(2) refuses it. So the worker corrects the position before each move.

A race remains between the two calls: a file that is truncated there gets that gap.
"""

from __future__ import annotations

import fcntl
import os
import stat
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def make_positioner(fd: int, *, is_log: bool) -> Callable[[], object]:
    """Return the function to call before each move to `fd`. For most sinks it does nothing.

    `is_log`: the position moves to the end of the file. In any other file it stays where it is,
    unless it is beyond the end.
    """
    is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
    if not is_regular or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND:
        return _do_nothing
    return partial(os.lseek, fd, 0, os.SEEK_END) if is_log else partial(_stay_within, fd)


def _do_nothing() -> None:
    pass


def _stay_within(fd: int) -> None:
    if os.lseek(fd, 0, os.SEEK_CUR) > os.fstat(fd).st_size:
        os.lseek(fd, 0, os.SEEK_END)
