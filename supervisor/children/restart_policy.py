"""Restart policy for workers. Pure: `io.stream_copy` applies the decisions.

A worker ends in one of three ways: it dies without a report, it reports an error, or it cannot be
forked at all. Each method takes what is known of earlier failures and returns a `Decision`.
"""

from __future__ import annotations

import errno
from enum import Enum

from workers.common.records import dataclass, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.process.report import Report

_DEATHS_WITHOUT_PAUSE = 8
_SHORTEST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0
LONGEST_PAUSE_IN_DRAIN_S = 0.25
FORK_AGAIN_S = 0.5
"""After a fork(2) that was refused."""

DEGRADED_AFTER = 16
"""Workers in a row that died, or could not be forked, without a byte copied: in 6 to 8 s."""


class ErrorAction(Enum):
    """What follows an error that a worker reports. The values are words for the log."""

    RETRY = "it is tried again at least every 5 s, and the container waits when its pipe is full"
    HANG_UP = "close the container's side, which then gets EPIPE, as in a shell pipeline"
    DISCARD = "read on and throw away"


class Next(Enum):
    """What follows the end of a worker."""

    FORK = "fork another worker now; it waits for the pause before it copies"
    FORK_LATER = "wait for the pause, then fork another worker"
    FORK_WITH_FRESH_SINK = "renew the sink, then as FORK"
    FORK_TO_NULL = "put /dev/null in the place of the sink, then as FORK"
    CLOSE = "close the stream"


@dataclass(frozen=True, slots=True)
class FailureHistory:
    """What is known of the failures of one stream's workers.

    Attributes:
        deaths: Of all workers so far.
        deaths_without_progress: In a row, with no byte copied.
        dies_waiting: The row contains a worker that died while it left its sink alone.
        errors_in_a_row: Reported, with no byte copied between them.
        failed_forks: In a row.
    """

    deaths: int = 0
    deaths_without_progress: int = 0
    dies_waiting: bool = False
    errors_in_a_row: int = 0
    failed_forks: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows, after which pause, and the history from then on.

    Attributes:
        next: What to do.
        pause_s: How long the sink is left alone first.
        history: Replaces the one that the decision was made of.
        is_logged: Whether the event is logged. What recurs is logged less and less often.
        is_degraded: Whether this event makes the stream a degraded one.
    """

    next: Next
    pause_s: float
    history: FailureHistory
    is_logged: bool = False
    is_degraded: bool = False


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The rules, for one longest pause."""

    longest_pause_s: float = LONGEST_PAUSE_S

    def after_death(
        self, history: FailureHistory, *, has_progress: bool, was_waiting: bool
    ) -> Decision:
        """Decide what follows a worker that died without a report.

        If workers die even during the pause, another one would die there, too. Then the
        pause comes before the fork.
        """
        deaths = history.deaths + 1
        in_a_row = 0 if has_progress else history.deaths_without_progress + 1
        dies_waiting = not has_progress and (history.dies_waiting or was_waiting)
        wait_s = min(pause_s(in_a_row), self.longest_pause_s)
        return Decision(
            Next.FORK_LATER if wait_s and dies_waiting else Next.FORK,
            wait_s,
            replace(
                history,
                deaths=deaths,
                deaths_without_progress=in_a_row,
                dies_waiting=dies_waiting,
            ),
            is_logged=is_logged(deaths),
            is_degraded=in_a_row == DEGRADED_AFTER,
        )

    def after_report(
        self,
        history: FailureHistory,
        report: Report,
        *,
        stream: str,
        has_line_sink: bool,
        is_lossy: bool,
        has_progress: bool,
    ) -> Decision:
        """Decide what follows a worker that has reported.

        An error of zero is end of file. EAGAIN of a lossy stream says that the sink takes
        everything again after some was dropped. A container that closes its stdin, or exits, may do
        so: EPIPE of stdin is not logged.
        """
        if report.errno == 0:
            return Decision(Next.CLOSE, 0.0, history)
        if is_lossy and report.errno == errno.EAGAIN:
            return Decision(Next.FORK, 0.0, replace(history, errors_in_a_row=0))
        is_first = history.errors_in_a_row == 0 or has_progress
        errors = 1 if is_first else history.errors_in_a_row + 1
        action = action_after(stream, report, has_line_sink=has_line_sink)
        if action is ErrorAction.HANG_UP:
            is_quiet = stream == "stdin" and report.errno == errno.EPIPE
            history = replace(history, errors_in_a_row=errors)
            return Decision(Next.CLOSE, 0.0, history, is_logged=is_first and not is_quiet)
        history = replace(history, errors_in_a_row=errors, dies_waiting=False)
        if action is ErrorAction.DISCARD:
            return Decision(Next.FORK_TO_NULL, 0.0, history, is_logged=is_first)
        wait_s = min(pause_s(_DEATHS_WITHOUT_PAUSE + errors), self.longest_pause_s)
        return Decision(Next.FORK_WITH_FRESH_SINK, wait_s, history, is_logged=is_first)

    def after_refused_fork(self, history: FailureHistory) -> Decision:
        """Decide what follows a fork(2) that the kernel refused."""
        failed = history.failed_forks + 1
        return Decision(
            Next.FORK_LATER,
            FORK_AGAIN_S,
            replace(history, failed_forks=failed),
            is_logged=is_logged(failed),
            is_degraded=failed == DEGRADED_AFTER,
        )


def action_after(stream: str, report: Report, *, has_line_sink: bool = False) -> ErrorAction:
    """Choose by what failed. Pure.

    A reader that is gone for good (EPIPE, a hung-up terminal's EIO) is passed on to the container,
    which closes its own pipe. A console cannot be closed without a SIGHUP to the container, so its
    output is thrown away. Everything else (ENOSPC, EDQUOT, ...) may get better: nothing is dropped,
    the container waits when its pipe is full. So may a log file's disk, and a journald that is
    gone: with `has_line_sink` there is no reader.
    """
    if has_line_sink:
        return ErrorAction.RETRY
    if stream == "stdin":
        return ErrorAction.HANG_UP
    is_reader_gone = report.errno in (errno.EPIPE, errno.ECONNRESET) or (
        report.errno == errno.EIO and report.side != "source"
    )
    if not is_reader_gone:
        return ErrorAction.RETRY
    return ErrorAction.DISCARD if stream == "console" else ErrorAction.HANG_UP


def pause_s(deaths_without_progress: int) -> float:
    """Return how long the next fork waits: not at all after the first eight deaths. Pure."""
    excess = deaths_without_progress - _DEATHS_WITHOUT_PAUSE
    if excess <= 0:
        return 0.0
    return float(min(_SHORTEST_PAUSE_S * 2 ** min(excess - 1, 10), LONGEST_PAUSE_S))


def is_logged(count: int) -> bool:
    """Say whether this occurrence of a recurring event is logged: 1, 2, 4, 8, ... Pure."""
    return count & (count - 1) == 0
