"""How a process has ended that is not our child, as the kernel tells it."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from typing import TYPE_CHECKING

import pytest

from supervisor.container import init_process
from supervisor.container.init_process import InitProcess, end_of
from supervisor.linux import fds
from supervisor.linux.exit_status import Exited, Killed, Termination, Unknown

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.rig import Rig

pytestmark = pytest.mark.process


def _exit(status: int) -> Callable[[], None]:
    return lambda: os._exit(status)


def _die(signum: int) -> Callable[[], None]:
    def die() -> None:
        if signum != signal.SIGKILL:
            signal.signal(signum, signal.SIG_DFL)  # the yard's router ignores it
        os.kill(os.getpid(), signum)

    return die


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(99)
    return pid


ENDS = pytest.mark.parametrize(
    ("work", "ended"),
    [
        (_exit(0), Exited(0)),
        (_exit(37), Exited(37)),
        (_exit(255), Exited(255)),
        (_die(signal.SIGKILL), Killed(signal.SIGKILL)),
        (_die(signal.SIGVTALRM), Killed(signal.SIGVTALRM)),
    ],
)


@ENDS
def test_the_end_of_a_stranger_is_the_true_one(
    rig: Rig, work: Callable[[], None], ended: Termination
) -> None:
    pid = _fork(work)  # the yard reaps it, as whoever it was left to
    stranger = InitProcess(rig.loop, rig.reaper, pid, fds.Fd(os.pidfd_open(pid)), is_child=False)
    said: list[Termination] = []
    stranger.expect(said.append)
    rig.run_until(lambda: bool(said))
    assert said == [ended]
    stranger.signal(signal.SIGTERM)  # too late: it does nothing
    stranger.close()


@ENDS
def test_a_zombie_shows_how_it_has_ended(work: Callable[[], None], ended: Termination) -> None:
    pid = _fork(work)
    pidfd = os.pidfd_open(pid)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert init_process._look_at_zombie(pid, pidfd) == ended
    os.waitid(os.P_PID, pid, os.WEXITED)
    assert init_process._look_at_zombie(pid, pidfd) is None
    assert end_of(pidfd) == ended
    os.close(pidfd)


def test_without_a_pidfd_nobody_can_tell(rig: Rig) -> None:
    said: list[Termination] = []
    InitProcess(rig.loop, rig.reaper, 1, fds.Fd(-1), is_child=False).expect(said.append)
    assert [type(each) for each in said] == [Unknown]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (errno.ENOTTY, "this kernel tells it to the parent alone"),
        (errno.EINVAL, "this kernel tells it to the parent alone"),
        (errno.EPERM, "PIDFD_GET_INFO: operation not permitted"),
    ],
)
def test_a_kernel_that_does_not_tell_is_not_guessed_at(
    monkeypatch: pytest.MonkeyPatch, error: int, why: str
) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    assert end_of(0) == Unknown(why)


def test_a_kernel_that_has_not_kept_it_is_not_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_fd: int, _request: int, packed: bytearray) -> None:
        packed[:8] = bytes(8)  # the mask of what it has filled in

    monkeypatch.setattr(fcntl, "ioctl", answer)
    assert end_of(0) == Unknown("the kernel has not kept it")
