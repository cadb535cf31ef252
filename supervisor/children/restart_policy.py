"""Restart policy for workers. Pure functions: `io.stream_copy` applies the decisions.

Three things can fail: a worker dies without a report, a worker reports an error, or fork(2) fails.
Each method takes the history of earlier failures and returns a `Decision`.
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
"""Pause after a failed fork(2)."""

DEGRADED_AFTER = 16
"""Failures in a row, deaths without a byte copied or failed forks. They take 6 to 8 s."""


class ErrorAction(Enum):
    """What follows an error that a worker reports. The values are texts for the log."""

    RETRY = "the worker tries again at least every 5 s; the container waits when its pipe is full"
    HANG_UP = "the supervisor closes the stream; the container gets EPIPE, or end of stdin"
    DISCARD = "later output is thrown away"


class Next(Enum):
    """What follows the end of a worker."""

    FORK = "fork another worker now; it waits for the pause before it copies"
    FORK_LATER = "wait for the pause, then fork another worker"
    FORK_WITH_FRESH_SINK = "reopen the sink, then as FORK"
    FORK_TO_NULL = "replace the sink by /dev/null, then as FORK"
    CLOSE = "close the stream"


@dataclass(frozen=True, slots=True)
class FailureHistory:
    """The failures of one stream's workers.

    Attributes:
        deaths: How many workers have died.
        deaths_without_progress: Deaths in a row, with no byte copied.
        dies_waiting: One of these died during the pause, when it did not write.
        errors_in_a_row: Reported errors, with no byte copied between them.
        failed_forks: Failed forks in a row.
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
        pause_s: Seconds without a write to the sink first.
        history: The new history.
        is_logged: Whether the event is logged, see `is_logged`.
        is_degraded: Whether this event makes the stream degraded.
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

        Normally the next worker waits for the pause. If workers die even during the pause, the
        supervisor waits for it and then forks.
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

        Error 0 is end of file. EAGAIN of a lossy stream means that the sink has room again after a
        drop. EPIPE of stdin is not logged: a container may close its stdin, or exit.
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
    """Return the action after the error in `report`. Pure.

    A reader that has left for good (EPIPE, EIO of a hung-up terminal) ends the stream, and the
    container gets EPIPE. A console cannot be closed without a SIGHUP to the container, so its
    output is thrown away. Every other error (ENOSPC, EDQUOT, ...) may pass: nothing is dropped, and
    the container waits when its pipe is full. With `has_line_sink` there is no reader, and each
    error may pass: of a log file's disk, or of a journald that restarts.
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
    """Return the pause in seconds; 0 for the first eight deaths. Pure."""
    excess = deaths_without_progress - _DEATHS_WITHOUT_PAUSE
    if excess <= 0:
        return 0.0
    return float(min(_SHORTEST_PAUSE_S * 2 ** min(excess - 1, 10), LONGEST_PAUSE_S))


def is_logged(count: int) -> bool:
    """Return whether this occurrence of a recurring event is logged: 1, 2, 4, 8, ... Pure."""
    return count & (count - 1) == 0
