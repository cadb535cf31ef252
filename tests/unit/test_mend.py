"""What follows a worker's error, and how long the next fork waits."""

from __future__ import annotations

import errno

import pytest

from supervisor.children.restart_policy import Mend, mend, pause_s
from workers.process.report import Report

READER_IS_GONE = [(errno.EPIPE, "sink"), (errno.EPIPE, ""), (errno.ECONNRESET, "sink"),
                  (errno.EIO, "sink"), (errno.EIO, "")]  # fmt: skip
MAY_GET_BETTER = [(errno.ENOSPC, "sink"), (errno.EDQUOT, "sink"), (errno.EFBIG, "sink"),
                  (errno.EIO, "source"), (errno.ENOMEM, ""), (errno.EBADF, "source")]  # fmt: skip


@pytest.mark.parametrize(
    ("stream", "number", "side", "choice"),
    [
        *(("stdin", number, side, Mend.HANG_UP) for number, side in READER_IS_GONE),
        *(("stdin", number, side, Mend.HANG_UP) for number, side in MAY_GET_BETTER),
        *(("stdout", number, side, Mend.HANG_UP) for number, side in READER_IS_GONE),
        *(("stderr", number, side, Mend.RETRY) for number, side in MAY_GET_BETTER),
        *(("console", number, side, Mend.DISCARD) for number, side in READER_IS_GONE),
        *(("console", number, side, Mend.RETRY) for number, side in MAY_GET_BETTER),
    ],
)
def test_a_reader_that_is_gone_is_passed_on_and_anything_else_is_tried_again(
    stream: str, number: int, side: str, choice: Mend
) -> None:
    assert mend(stream, Report(stream, 0, number, side)) is choice


@pytest.mark.parametrize("stream", ["stdout", "stderr", "console"])
@pytest.mark.parametrize(("number", "side"), [*READER_IS_GONE, *MAY_GET_BETTER])
def test_an_outlet_is_no_reader_that_leaves(stream: str, number: int, side: str) -> None:
    failed = Report(stream, 0, number, side)
    assert mend(stream, failed, has_outlet=True) is Mend.RETRY


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
