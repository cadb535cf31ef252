"""The reaper tells each caller once, remembers unknown children, and reaps all."""

from __future__ import annotations

import os
import signal
from functools import partial

import pytest

from supervisor.linux import reaper, spawn
from supervisor.linux.exit_status import Exited, Killed, Termination
from supervisor.linux.reaper import Reaper
from tests.harness import waiting
from tests.harness.forked import forked, has_no_children

pytestmark = pytest.mark.process


def _exit_with(status: int) -> int:
    return spawn.fork_worker(lambda: os._exit(status))


def test_each_child_is_told_to_whoever_expects_it() -> None:
    ended: dict[int, Termination] = {}
    made = Reaper()
    pids = [_exit_with(status) for status in range(5)]
    for pid in pids:
        made.expect(pid, partial(ended.__setitem__, pid))
    for pid in pids:
        waiting.wait_process(pid)
    made.reap()
    assert [ended[pid] for pid in pids] == [Exited(status) for status in range(5)]
    assert has_no_children()
    made.reap()  # nobody is left: no error


def test_a_living_child_does_not_hold_the_reaper_up() -> None:
    made = Reaper()
    ended: list[Termination] = []
    pid = spawn.fork_worker(signal.pause)
    made.expect(pid, ended.append)
    made.reap()
    assert ended == []
    assert made.has_child(pid)
    os.kill(pid, signal.SIGKILL)
    waiting.wait_process(pid)
    assert made.has_child(pid)  # unreaped
    made.reap()
    assert ended == [Killed(signal.SIGKILL)]
    assert not made.has_child(pid)


def test_a_living_child_that_nobody_expects_is_a_stranger() -> None:
    made = Reaper()
    with forked(signal.pause) as ours, forked(signal.pause) as stranger:
        made.expect(ours.pid, lambda _termination: None)
        assert made.living_unknown() == [stranger.pid]
    assert made.living_unknown() == []


def test_an_unknown_child_is_remembered_until_a_caller_expects_it_and_told_once() -> None:
    made = Reaper()
    made.remember_unknown("create")
    ended: list[Termination] = []
    pid = _exit_with(7)
    waiting.wait_process(pid)
    made.reap()
    assert has_no_children()
    assert made.has_child(pid)
    made.expect(pid, ended.append)
    assert ended == [Exited(7)]
    assert not made.has_child(pid)
    made.expect(pid, ended.append)  # a later child with this number: not told yet
    assert ended == [Exited(7)]


def test_unknown_children_are_forgotten_after_the_last_operation_but_still_reaped() -> None:
    made = Reaper()
    made.remember_unknown("create")
    made.remember_unknown("exec")
    ended: list[Termination] = []
    before, after = _exit_with(1), _exit_with(2)
    waiting.wait_process(before)
    waiting.wait_process(after)
    made.reap()
    made.forget_unknown("create")
    assert made.has_child(before), "the exec may be about to ask for it"
    made.forget_unknown("exec")
    assert not made.has_child(before)
    last = _exit_with(3)
    waiting.wait_process(last)
    made.reap()
    assert has_no_children()
    assert not made.has_child(last)
    made.expect(before, ended.append)
    assert ended == []


def test_no_more_than_4096_unknown_children_are_remembered_and_the_oldest_go_first() -> None:
    made = Reaper()
    made.remember_unknown("create")
    for pid in range(1, 4096 + 3):
        made._tell(pid, Exited(pid % 256))
    ended: list[Termination] = []
    for pid in (1, 2):
        made.expect(pid, ended.append)
    assert ended == []
    for pid in (3, 4098):
        made.expect(pid, ended.append)
    assert ended == [Exited(3), Exited(4098 % 256)]


@pytest.mark.parametrize("pid", [1, 2**31 - 1, 2**31, 9_999_999_999])
def test_a_number_that_is_no_child_is_not_ours(pid: int) -> None:
    assert not Reaper().has_child(pid)


def test_a_core_dump_and_a_kill_are_told_apart_from_an_exit() -> None:
    made = Reaper()
    ended: list[Termination] = []

    def abort() -> None:
        os.kill(os.getpid(), signal.SIGRTMIN + 6)

    pid = spawn.fork_worker(abort)
    made.expect(pid, ended.append)
    waiting.wait_process(pid)
    made.reap()
    assert ended == [Killed(40)]


def test_one_child_can_be_waited_for_without_a_reaper() -> None:
    other = _exit_with(1)
    assert reaper.wait_for(_exit_with(7)) == Exited(7)
    assert reaper.wait_for(other) == Exited(1)
    with pytest.raises(ChildProcessError):
        reaper.wait_for(other)


def test_a_flood_of_orphans_does_not_keep_the_loop(no_leaks: None) -> None:
    """A round is bounded, and says whether there may be more."""
    reaper = Reaper()
    pids = []
    for _each in range(300):
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGKILL)  # os._exit would write coverage data
        pids.append(pid)
    for pid in pids:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert reaper.reap()
    assert not reaper.reap()
