"""The rate limit of a container's messages to the service manager, and what waits."""

from __future__ import annotations

import itertools

import pytest

from workers.notify.rate_limit import Bucket, merge
from workers.notify.words import Words

READY, STOPPING = Words(state="READY"), Words(state="STOPPING")
RELOADING = Words(state="RELOADING", monotonic_usec=1)


def test_a_bucket_gives_what_it_has_and_then_what_comes() -> None:
    bucket = Bucket(3, 10.0, 100.0)
    assert [bucket.take(100.0) for _each in range(4)] == [True, True, True, False]
    assert bucket.wait_s(100.0) == pytest.approx(0.1)
    assert bucket.take(100.11)
    assert not bucket.take(100.11)
    assert [bucket.take(900.0) for _each in range(4)] == [True, True, True, False], "no more"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ([Words(status="a"), Words(status="b")], [Words(status="b")]),
        ([Words(status="a"), Words(status="")], [Words(status="")]),
        ([Words(errno=5), Words(errno=0, status="b")], [Words(errno=0, status="b")]),
        ([Words(watchdog="trigger"), Words(watchdog="1")], [Words(watchdog="trigger")]),
        ([Words(watchdog="1"), Words(watchdog="trigger")], [Words(watchdog="trigger")]),
        ([READY, READY], [READY]),
        ([READY, STOPPING], [READY, STOPPING]),
        ([RELOADING, READY], [RELOADING, READY]),
        ([READY, RELOADING], [READY, RELOADING]),
        ([RELOADING, READY, STOPPING], [RELOADING, READY, STOPPING]),
        ([RELOADING, READY, RELOADING, READY], [READY, RELOADING, READY]),
        ([READY, RELOADING, READY, STOPPING], [READY, RELOADING, READY, STOPPING]),
        (
            [READY, Words(status="a"), STOPPING, Words(errno=5)],
            [READY, Words(state="STOPPING", status="a", errno=5)],
        ),
        (
            [RELOADING, Words(state="RELOADING", monotonic_usec=2)],
            [Words(state="RELOADING", monotonic_usec=2)],
        ),
    ],
)
def test_of_each_word_the_last_value_waits_and_changes_keep_their_order(
    said: list[Words], told: list[Words]
) -> None:
    waiting: list[Words] = []
    for words in said:
        waiting = merge(waiting, words)
    assert waiting == told


def test_systemd_ends_in_the_same_state_as_without_a_limit() -> None:
    """READY=1 arrives too, if it was sent: for every sequence of seven changes."""
    for said in itertools.product([READY, RELOADING, STOPPING], repeat=7):
        waiting: list[Words] = []
        for words in said:
            waiting = merge(waiting, words)
        assert len(waiting) <= 4
        assert waiting[-1] == said[-1]
        assert (READY in said) == (READY in waiting)
        if RELOADING in said and said[-1] == READY:
            assert waiting.index(RELOADING) < len(waiting) - 1
        if READY in said[: said.index(STOPPING) if STOPPING in said else None]:
            assert waiting.index(READY) < (
                waiting.index(STOPPING) if STOPPING in waiting else len(waiting)
            )
