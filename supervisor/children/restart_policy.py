"""What is done about a worker that has failed: the rules, pure. Who carries them out: the crew."""

from __future__ import annotations

import errno
from enum import Enum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.process import report

_DEATHS_WITHOUT_PAUSE = 8
_SHORTEST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0
LONGEST_PAUSE_IN_DRAIN_S = 0.25
FORK_AGAIN_S = 0.5
"""After a fork(2) that was refused."""

DEGRADED_AFTER = 16
"""Workers in a row that have died, or could not be forked, without a byte moved: ten seconds."""


class Mend(Enum):
    """What to do when a worker reports an error."""

    RETRY = "it is tried again at least every 5 s, and the container waits when its pipe is full"
    HANG_UP = "close the container's side, which then gets EPIPE, as in a shell pipeline"
    DISCARD = "read on and throw away"


def mend(stream: str, failed: report.Report, *, has_outlet: bool = False) -> Mend:
    """Choose by what failed. Pure.

    A reader that is gone for good (EPIPE, a hung-up terminal's EIO) is passed on to the container,
    which closes its own pipe; a console cannot be closed without a SIGHUP to the container, so
    its output is thrown away. Everything else (ENOSPC, EDQUOT, ...) may get better: nothing is
    dropped, the container waits when its pipe is full. So may a disk, and a journald that is gone:
    with `has_outlet` there is no reader.
    """
    if has_outlet:
        return Mend.RETRY
    if stream == "stdin":
        return Mend.HANG_UP
    is_reader_gone = failed.errno in (errno.EPIPE, errno.ECONNRESET) or (
        failed.errno == errno.EIO and failed.side != "source"
    )
    if not is_reader_gone:
        return Mend.RETRY
    return Mend.DISCARD if stream == "console" else Mend.HANG_UP


def pause_s(deaths_without_progress: int) -> float:
    """Return how long to wait before the next fork: none for the first eight deaths. Pure."""
    excess = deaths_without_progress - _DEATHS_WITHOUT_PAUSE
    if excess <= 0:
        return 0.0
    return float(min(_SHORTEST_PAUSE_S * 2 ** min(excess - 1, 10), LONGEST_PAUSE_S))


def is_said(count: int) -> bool:
    """Say whether this one, of those that recur, is said: 1, 2, 4, 8, ... Pure."""
    return count & (count - 1) == 0


def pause_after_errors_s(errors_in_a_row: int) -> float:
    """Return how long a sink is left alone that has failed so often. Pure."""
    return pause_s(_DEATHS_WITHOUT_PAUSE + errors_in_a_row)
