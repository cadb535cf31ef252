"""Where the next bytes of a file go, although strangers change the file meanwhile.

The kernel remembers a position for each open file, and a file that was truncated (logrotate's
`copytruncate`) is then written on behind its end: what is between reads as NUL bytes. O_APPEND has
no such memory, but splice(2) refuses it. So the position is put right before each move.

What is left is the moment between the two calls: a file that is truncated in it gets that gap.
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
    """Return what is to be called before each move to `fd`; for most sinks it does nothing.

    `is_log`: the file grows at its end. Any other file is written where its descriptor stands, and
    only a position behind the end is moved to the end.
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
