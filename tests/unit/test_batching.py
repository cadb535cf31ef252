"""When small writes gather: a pure rule, asked move by move with the test's own clock."""

from __future__ import annotations

import pytest

from workers.copy.batching import (
    LEAST_RUN,
    LONGEST_PAUSE_S,
    LONGEST_RUN,
    QUICK_S,
    SHORTEST_PAUSE_S,
    SMALL_BYTES,
    Batching,
)

PIPE_BYTES = 1 << 20
AT_ONCE_S = QUICK_S / 10


class Source:
    """Moves bytes through a `Batching` that sleeps by moving the clock."""

    def __init__(self, capacity_bytes: int = PIPE_BYTES) -> None:
        self.now_s = 100.0
        self.pauses: list[float] = []
        self.batching = Batching(capacity_bytes, clock=lambda: self.now_s, pause=self._sleep)

    def _sleep(self, pause_s: float) -> None:
        self.pauses.append(pause_s)
        self.now_s += pause_s

    def brings(self, *counts: int, after_s: float = AT_ONCE_S) -> int:
        """Move one size after the other, each after a wait; return the number of pauses."""
        before = len(self.pauses)
        for count in counts:
            self.now_s += after_s
            self.batching.record(count)
            self.batching.pause_when_due()
        return len(self.pauses) - before

    def begins_a_burst(self) -> None:
        """Make small moves until the first pause has begun."""
        while not self.brings(80):
            pass

    def writes(self, bytes_per_s: float) -> int:
        """Move what a steady writer has written in the last pause, as far as the pipe holds it."""
        gathered = min(int(bytes_per_s * self.pauses[-1]), PIPE_BYTES)
        return self.brings(gathered)


def test_the_first_moves_of_a_burst_pass_without_a_pause() -> None:
    source = Source()
    assert source.brings(*[80] * (LEAST_RUN - 1)) == 0
    assert source.brings(80) == 1
    assert source.pauses == [LONGEST_PAUSE_S]


@pytest.mark.parametrize("period_s", [QUICK_S * 1.01, 0.001, 1.0])
def test_slow_writes_never_wait(period_s: float) -> None:
    assert Source().brings(*[80] * 5000, after_s=period_s) == 0


def test_in_a_burst_each_move_takes_what_one_pause_gathered() -> None:
    source = Source()
    source.begins_a_burst()
    assert source.brings(*[80_000] * 100) == 100
    assert set(source.pauses) == {LONGEST_PAUSE_S}


def test_a_silence_ends_the_burst_and_the_write_after_it_waits_for_nothing() -> None:
    source = Source()
    source.begins_a_burst()
    assert source.brings(80_000) == 1
    assert source.brings(80, after_s=QUICK_S * 1.01) == 0
    assert source.brings(*[80] * (LEAST_RUN - 1)) == 0  # and so do those behind it
    assert source.brings(80) == 1


def test_a_writer_that_waits_for_answers_soon_gets_no_pauses() -> None:
    source = Source()
    assert source.brings(*[80] * 2000) < 10
    assert 9 <= source.brings(*[80] * (10 * LONGEST_RUN)) <= 10


def test_a_pause_that_pays_again_is_tried_sooner_again() -> None:
    source = Source()
    source.brings(*[80] * 2000)
    for _each in range(20):
        source.begins_a_burst()
        source.brings(80_000)
        source.brings(80, after_s=1.0)
    assert source.brings(*[80] * LEAST_RUN) == 1


def test_a_pause_that_gathers_too_little_is_the_last() -> None:
    source = Source()
    source.begins_a_burst()
    assert source.brings(4 * 80) == 1
    assert source.brings(4 * 80 - 1) == 0


def test_bulk_gets_no_pauses_and_need_not_be_recorded() -> None:
    source = Source()
    assert source.batching.seen_below_bytes == SMALL_BYTES
    assert source.brings(*[SMALL_BYTES] * 1000) == 0


def test_every_move_of_a_burst_must_be_recorded() -> None:
    source = Source()
    source.begins_a_burst()
    assert source.batching.seen_below_bytes > 1 << 40
    source.brings(80, after_s=1.0)
    assert source.batching.seen_below_bytes == SMALL_BYTES


def test_a_pipe_that_fills_in_a_pause_halves_it_until_it_does_not() -> None:
    source = Source()
    source.begins_a_burst()
    for _each in range(100):
        if not source.writes(2e9):
            source.begins_a_burst()
    assert source.pauses[-1] == LONGEST_PAUSE_S / 4
    assert int(2e9 * source.pauses[-1]) < PIPE_BYTES / 2


def test_a_pipe_that_fills_in_the_shortest_pause_gets_fewer_and_fewer_pauses() -> None:
    source = Source()
    for _each in range(20):
        source.begins_a_burst()
        assert source.brings(PIPE_BYTES) == 0
    assert source.pauses[:5] == [LONGEST_PAUSE_S / 2**n for n in (0, 1, 2, 3, 3)]
    assert set(source.pauses[4:]) == {SHORTEST_PAUSE_S}
    assert source.brings(*[80] * (LONGEST_RUN - 1)) == 0


def test_a_writer_that_has_slowed_down_gets_the_long_pause_back() -> None:
    source = Source()
    source.begins_a_burst()
    source.brings(PIPE_BYTES)
    source.begins_a_burst()
    assert source.pauses[-1] == LONGEST_PAUSE_S / 2
    source.brings(40_000)
    assert source.pauses[-1] == LONGEST_PAUSE_S
    source.brings(80_000)
    assert source.pauses[-1] == LONGEST_PAUSE_S


def test_without_a_pipe_nothing_is_recorded_and_nothing_waits() -> None:
    source = Source(capacity_bytes=0)
    assert source.batching.seen_below_bytes == 0
    assert source.brings(*[1] * 5000) == 0


def test_a_pause_follows_only_a_move() -> None:
    """A caller that also waits for a sink calls again and again before more bytes have come."""
    source = Source()
    source.begins_a_burst()
    before = list(source.pauses)
    source.batching.pause_when_due()
    source.batching.pause_when_due()
    assert source.pauses == before
