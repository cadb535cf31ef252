"""The loop: descriptors, deadlines, and what one callback of a round does to the others."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from supervisor.linux import fds
from supervisor.linux.event_loop import Loop

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.process


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def _readable() -> tuple[fds.Fd, fds.Fd]:
    rfd, wfd = fds.pipe(4096)
    os.write(wfd.fileno(), b"x")
    return rfd, wfd


def test_a_readable_descriptor_and_one_at_its_end_call_back(loop: Loop) -> None:
    got: list[bytes] = []
    rfd, wfd = _readable()
    loop.watch(rfd.fileno(), lambda: got.append(os.read(rfd.fileno(), 10)))
    loop.run_until(lambda: len(got) == 1)
    wfd.close()
    loop.run_until(lambda: len(got) == 2)
    loop.forget(rfd.fileno())
    rfd.close()
    assert got == [b"x", b""]


def test_of_those_that_are_ready_the_one_comes_first_that_is_watched_longest(loop: Loop) -> None:
    called: list[int] = []
    pipes = [fds.pipe() for _each in range(8)]
    readers = [rfd.fileno() for rfd, _wfd in pipes]
    watched = readers[4:] + readers[:4]
    for reader in watched:
        loop.watch(reader, lambda reader=reader: called.append(reader))  # type: ignore[misc] # bound now
    for _rfd, wfd in pipes:
        os.write(wfd.fileno(), b"x")
    loop.run_until(lambda: bool(called))
    assert called == watched
    for owner in (end for ends in pipes for end in ends):
        owner.close()


def test_whoever_is_forgotten_within_a_round_is_not_called_in_it(loop: Loop) -> None:
    called: list[int] = []
    pipes = [_readable(), _readable()]
    readers = [rfd.fileno() for rfd, _wfd in pipes]

    def forget_both(fd: int) -> None:
        called.append(fd)
        for reader in readers:
            loop.forget(reader)

    for reader in readers:
        loop.watch(reader, lambda reader=reader: forget_both(reader))  # type: ignore[misc] # bound now
    loop.run_until(lambda: bool(called))
    assert len(called) == 1
    for rfd, wfd in pipes:
        rfd.close()
        wfd.close()


def test_a_descriptor_that_was_reused_within_a_round_is_not_called_for_its_predecessor(
    loop: Loop,
) -> None:
    called: list[str] = []
    pipes = [_readable(), _readable()]
    numbers = [rfd.fileno() for rfd, _wfd in pipes]
    idle_rfd, idle_wfd = fds.pipe(4096)

    def replace(other: int) -> None:
        called.append("first")
        loop.forget(other)
        os.dup2(idle_rfd.fileno(), other, inheritable=False)
        loop.watch(other, lambda: called.append("reused"))

    for mine, other in (numbers, numbers[::-1]):
        loop.watch(mine, lambda other=other: replace(other))  # type: ignore[misc] # bound now
    loop.run_until(lambda: bool(called))
    assert called == ["first"]
    for number in numbers:
        loop.forget(number)
    for owner in (*pipes[0], *pipes[1], idle_rfd, idle_wfd):
        owner.close()


def test_each_timer_is_served_once(loop: Loop) -> None:
    called: list[str] = []
    loop.timer(lambda: called.append("second")).start(0.002)
    loop.timer(lambda: called.append("first")).start(0.001)
    loop.run_until(lambda: len(called) == 2)
    loop.timer(lambda: called.append("third")).start(0.0)
    loop.run_until(lambda: len(called) == 3)
    # Those that are due in the same round have no order among each other.
    assert sorted(called[:2]) == ["first", "second"]
    assert called[2:] == ["third"]


def test_a_timer_that_is_started_again_calls_back_once(loop: Loop) -> None:
    called: list[str] = []
    timer = loop.timer(lambda: called.append("timer"))
    timer.start(0.0)
    timer.start(0.0)
    loop.run_until(lambda: bool(called))
    loop.timer(lambda: called.append("last")).start(0.0)
    loop.run_until(lambda: len(called) == 2)
    assert called == ["timer", "last"]


def test_two_timers_of_one_callback_are_two(loop: Loop) -> None:
    called: list[str] = []

    def call() -> None:
        called.append("grace period")

    of_one_container, of_another = loop.timer(call), loop.timer(call)
    of_one_container.start(0.0)
    of_another.start(3600.0)
    loop.run_until(lambda: bool(called))
    assert called == ["grace period"]
    assert (of_one_container.is_running, of_another.is_running) == (False, True)
    of_one_container.cancel()
    assert of_another.is_running


def test_a_cancelled_timer_is_not_served_and_cancelling_twice_is_no_error(loop: Loop) -> None:
    called: list[str] = []
    gone = loop.timer(lambda: called.append("gone"))
    gone.cancel()
    gone.start(0.0)
    gone.cancel()
    gone.cancel()
    loop.timer(lambda: called.append("last")).start(0.0)
    loop.run_until(lambda: bool(called))
    assert called == ["last"]


def test_a_timer_cancelled_within_its_round_is_not_served(loop: Loop) -> None:
    called: list[str] = []

    def first() -> None:
        called.append("first")
        second.cancel()

    second = loop.timer(lambda: called.append("second"))
    loop.timer(first).start(0.0)
    second.start(0.0)
    loop.run_until(lambda: bool(called))
    assert called == ["first"]


def test_a_timer_put_off_within_its_round_is_not_served_early(loop: Loop) -> None:
    called: list[str] = []

    def first() -> None:
        called.append("first")
        second.start(3600.0)

    second = loop.timer(lambda: called.append("second"))
    loop.timer(first).start(0.0)
    second.start(0.0)
    loop.run_until(lambda: bool(called))
    assert called == ["first"]


@pytest.mark.parametrize("delay_s", [3e6, 1e18, 1e300])
def test_a_timer_beyond_what_the_kernel_can_wait_for_is_no_error(
    loop: Loop, delay_s: float
) -> None:
    called: list[str] = []
    rfd, wfd = _readable()
    loop.timer(lambda: called.append("too early")).start(delay_s)
    loop.watch(rfd.fileno(), lambda: called.append("readable"))
    loop.run_until(lambda: bool(called))
    assert called == ["readable"]
    loop.forget(rfd.fileno())
    rfd.close()
    wfd.close()


def test_nothing_is_served_when_it_is_over_already(loop: Loop) -> None:
    loop.timer(lambda: pytest.fail("served")).start(0.0)
    loop.run_until(lambda: True)
