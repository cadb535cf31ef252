"""What follows a worker's error, and how long the next fork waits."""

from __future__ import annotations

import errno

import pytest

from supervisor.children.restart_policy import (
    FORK_AGAIN_S,
    Decision,
    ErrorAction,
    FailureHistory,
    Next,
    RestartPolicy,
    action_after,
    pause_s,
)
from workers.process.report import Report

READER_IS_GONE = [(errno.EPIPE, "sink"), (errno.EPIPE, ""), (errno.ECONNRESET, "sink"),
                  (errno.EIO, "sink"), (errno.EIO, "")]  # fmt: skip
MAY_GET_BETTER = [(errno.ENOSPC, "sink"), (errno.EDQUOT, "sink"), (errno.EFBIG, "sink"),
                  (errno.EIO, "source"), (errno.ENOMEM, ""), (errno.EBADF, "source")]  # fmt: skip


@pytest.mark.parametrize(
    ("stream", "number", "side", "choice"),
    [
        *(("stdin", number, side, ErrorAction.HANG_UP) for number, side in READER_IS_GONE),
        *(("stdin", number, side, ErrorAction.HANG_UP) for number, side in MAY_GET_BETTER),
        *(("stdout", number, side, ErrorAction.HANG_UP) for number, side in READER_IS_GONE),
        *(("stderr", number, side, ErrorAction.RETRY) for number, side in MAY_GET_BETTER),
        *(("console", number, side, ErrorAction.DISCARD) for number, side in READER_IS_GONE),
        *(("console", number, side, ErrorAction.RETRY) for number, side in MAY_GET_BETTER),
    ],
)
def test_a_reader_that_is_gone_is_passed_on_and_anything_else_is_tried_again(
    stream: str, number: int, side: str, choice: ErrorAction
) -> None:
    assert action_after(stream, Report(stream, 0, number, side)) is choice


@pytest.mark.parametrize("stream", ["stdout", "stderr", "console"])
@pytest.mark.parametrize(("number", "side"), [*READER_IS_GONE, *MAY_GET_BETTER])
def test_an_outlet_is_no_reader_that_leaves(stream: str, number: int, side: str) -> None:
    failed = Report(stream, 0, number, side)
    assert action_after(stream, failed, has_line_sink=True) is ErrorAction.RETRY


@pytest.mark.parametrize(
    ("deaths", "pause"),
    [
        *((deaths, 0.0) for deaths in range(9)),
        (9, 0.05),
        (10, 0.1),
        (11, 0.2),
        (12, 0.4),
        (13, 0.8),
        (14, 1.6),
        (15, 3.2),
        (16, 5.0),
        (17, 5.0),
        (100, 5.0),
        (10**9, 5.0),
    ],
)
def test_the_first_eight_deaths_cost_no_pause_and_none_costs_more_than_five_seconds(
    deaths: int, pause: float
) -> None:
    assert pause_s(deaths) == pytest.approx(pause)


KNOWN = FailureHistory(deaths=20, deaths_without_progress=9, dies_waiting=False, errors_in_a_row=2)


@pytest.mark.parametrize(
    ("before", "has_progress", "was_waiting", "follows", "pause", "after"),
    [
        (FailureHistory(), False, False, Next.FORK, 0.0, FailureHistory(1, 1)),
        (FailureHistory(), False, True, Next.FORK, 0.0, FailureHistory(1, 1, dies_waiting=True)),
        (FailureHistory(), True, True, Next.FORK, 0.0, FailureHistory(1, 0)),
        (FailureHistory(8, 8), False, False, Next.FORK, 0.05, FailureHistory(9, 9)),
        (FailureHistory(8, 8), False, True, Next.FORK_LATER, 0.05, FailureHistory(9, 9, True)),
        (FailureHistory(9, 9, True), False, False, Next.FORK_LATER, 0.1,
         FailureHistory(10, 10, True)),
        (FailureHistory(9, 9, True), True, False, Next.FORK, 0.0, FailureHistory(10, 0)),
        (FailureHistory(40, 40), False, False, Next.FORK, 5.0, FailureHistory(41, 41)),
        (KNOWN, True, False, Next.FORK, 0.0, FailureHistory(21, 0, errors_in_a_row=2)),
    ],
)  # fmt: skip
def test_a_dead_worker_is_followed_and_where_workers_die_waiting_the_pause_comes_first(
    before: FailureHistory,
    has_progress: bool,
    was_waiting: bool,
    follows: Next,
    pause: float,
    after: FailureHistory,
) -> None:
    decision = RestartPolicy().after_death(
        before, has_progress=has_progress, was_waiting=was_waiting
    )
    assert (decision.next, decision.history) == (follows, after)
    assert decision.pause_s == pytest.approx(pause)


def test_in_a_drain_no_pause_is_long() -> None:
    decision = RestartPolicy(0.25).after_death(
        FailureHistory(40, 40), has_progress=False, was_waiting=False
    )
    assert decision.pause_s == 0.25


@pytest.mark.parametrize(
    ("deaths", "in_a_row", "is_said", "is_degraded"),
    [(1, 1, True, False), (3, 3, False, False), (16, 16, True, True), (17, 16, False, True),
     (32, 17, True, False)],
)  # fmt: skip
def test_what_recurs_is_logged_less_and_less_often_and_the_sixteenth_degrades(
    deaths: int, in_a_row: int, is_said: bool, is_degraded: bool
) -> None:
    decision = RestartPolicy().after_death(
        FailureHistory(deaths - 1, in_a_row - 1), has_progress=False, was_waiting=False
    )
    assert (decision.is_logged, decision.is_degraded) == (is_said, is_degraded)
    refused = RestartPolicy().after_refused_fork(FailureHistory(failed_forks=in_a_row - 1))
    assert (refused.next, refused.pause_s) == (Next.FORK_LATER, FORK_AGAIN_S)
    assert refused.is_degraded == is_degraded
    assert refused.history.failed_forks == in_a_row


def _after_report(
    errno_: int,
    *,
    stream: str = "stdout",
    history: FailureHistory = KNOWN,
    has_line_sink: bool = False,
    is_lossy: bool = False,
    has_progress: bool = False,
) -> Decision:
    return RestartPolicy().after_report(
        history,
        Report(stream, 0, errno_, "sink" if errno_ else ""),
        stream=stream,
        has_line_sink=has_line_sink,
        is_lossy=is_lossy,
        has_progress=has_progress,
    )


def test_an_end_of_file_closes_the_stream_and_changes_nothing_else() -> None:
    assert _after_report(0) == Decision(Next.CLOSE, 0.0, KNOWN)


def test_a_lossy_sink_that_takes_everything_again_forgets_its_errors() -> None:
    decision = _after_report(errno.EAGAIN, has_line_sink=True, is_lossy=True)
    assert (decision.next, decision.pause_s) == (Next.FORK, 0.0)
    assert decision.history.errors_in_a_row == 0
    assert _after_report(errno.EAGAIN, has_line_sink=True).next is Next.FORK_WITH_FRESH_SINK


@pytest.mark.parametrize(
    ("has_progress", "errors", "is_said", "pause"),
    [(False, 3, False, 0.2), (True, 1, True, 0.05)],
)
def test_a_full_disk_is_tried_again_and_said_once_a_row(
    has_progress: bool, errors: int, is_said: bool, pause: float
) -> None:
    decision = _after_report(errno.ENOSPC, has_progress=has_progress)
    assert decision.next is Next.FORK_WITH_FRESH_SINK
    assert (decision.history.errors_in_a_row, decision.is_logged) == (errors, is_said)
    assert decision.pause_s == pytest.approx(pause)


def test_a_console_without_a_reader_is_read_on_and_a_pipe_is_closed() -> None:
    assert _after_report(errno.EPIPE, stream="console").next is Next.FORK_TO_NULL
    assert _after_report(errno.EPIPE, stream="stdout").next is Next.CLOSE


def test_a_container_that_closes_its_stdin_is_in_its_right() -> None:
    fresh = FailureHistory()
    assert not _after_report(errno.EPIPE, stream="stdin", history=fresh).is_logged
    assert _after_report(errno.EISDIR, stream="stdin", history=fresh).is_logged


def test_a_worker_that_reports_does_not_die_waiting() -> None:
    history = FailureHistory(dies_waiting=True)
    assert not _after_report(errno.ENOSPC, history=history).history.dies_waiting
