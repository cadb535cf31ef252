"""The router: what is noted, once each, lowest first, and never lost in a flood."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from supervisor.linux.exit_status import Exited
from supervisor.linux.signals import (
    FORWARDED_SIGNALS,
    JOB_CONTROL_SIGNALS,
    STOP_SIGNALS,
    SignalRouter,
)
from tests.harness import waiting
from tests.harness.forked import forked

pytestmark = pytest.mark.process


def _dispatched(router: SignalRouter) -> list[int]:
    got: list[int] = []
    router.dispatch(got.append)
    return got


@pytest.mark.usefixtures("signal_state")
def test_each_signal_is_delivered_once_and_the_lowest_first() -> None:
    router = SignalRouter(has_job_control=True)
    for signum in (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, 40):
        os.kill(os.getpid(), signum)
    waiting.wait_readable(router.fileno())
    assert _dispatched(router) == [signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM, 40]
    assert _dispatched(router) == []
    router.close()


@pytest.mark.usefixtures("signal_state")
@pytest.mark.parametrize(
    "signum", sorted({*STOP_SIGNALS, *FORWARDED_SIGNALS, signal.SIGCHLD}), ids=int
)
def test_every_routed_signal_wakes_the_loop(signum: int) -> None:
    router = SignalRouter(has_job_control=False)
    os.kill(os.getpid(), signum)
    waiting.wait_readable(router.fileno())
    assert _dispatched(router) == [signum]
    router.close()


@pytest.mark.usefixtures("signal_state")
def test_a_flood_that_fills_the_pipe_swallows_no_other_signal() -> None:
    router = SignalRouter(has_job_control=False)
    for _each in range(70_000):
        signal.raise_signal(signal.SIGWINCH)
    os.kill(os.getpid(), signal.SIGTERM)
    assert _dispatched(router) == [signal.SIGTERM, signal.SIGWINCH]
    assert _dispatched(router) == []
    signal.raise_signal(signal.SIGHUP)
    waiting.wait_readable(router.fileno())
    assert _dispatched(router) == [signal.SIGHUP]
    router.close()


@pytest.mark.usefixtures("signal_state")
def test_a_signal_noted_while_others_are_delivered_is_delivered_too() -> None:
    router = SignalRouter(has_job_control=False)
    got: list[int] = []

    def deliver(signum: int) -> None:
        got.append(signum)
        if signum == signal.SIGUSR1:
            signal.raise_signal(signal.SIGHUP)

    signal.raise_signal(signal.SIGUSR1)
    router.dispatch(deliver)
    assert got == [signal.SIGUSR1, signal.SIGHUP]
    router.close()


@pytest.mark.usefixtures("signal_state")
def test_a_late_signal_does_not_kill_a_finished_process() -> None:
    router = SignalRouter(has_job_control=False)
    router.close()
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("signal_state")
@pytest.mark.parametrize(
    ("has_job_control", "disposition"), [(True, signal.SIG_DFL), (False, signal.SIG_IGN)]
)
def test_job_control_is_left_to_a_shell_and_ignored_without_one(
    has_job_control: bool, disposition: signal.Handlers
) -> None:
    router = SignalRouter(has_job_control=has_job_control)
    assert {signal.getsignal(signum) for signum in JOB_CONTROL_SIGNALS} == {disposition}
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
    router.close()


@pytest.mark.usefixtures("signal_state")
def test_an_inherited_mask_and_an_ignored_sigchld_are_undone() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    router = SignalRouter(has_job_control=False)
    with forked(lambda: None) as child:
        waiting.wait_readable(router.fileno())
        assert _dispatched(router) == [signal.SIGCHLD]
        assert child.wait() == Exited(0)
    router.close()


_INHERITS = """
import os, signal
from supervisor.linux.signals import SignalRouter
assert signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
router = SignalRouter(has_job_control=False)
pid = os.fork()
if pid == 0:
    os._exit(3)
os.waitid(os.P_PID, pid, os.WEXITED)
assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
os._exit(7)
"""


def _spoil_signals() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})


def test_a_program_started_with_sigchld_ignored_and_signals_blocked_can_wait() -> None:
    pid = os.fork()
    if pid == 0:
        try:
            _spoil_signals()
            os.execv(sys.executable, [sys.executable, "-c", _INHERITS])
        finally:
            os._exit(99)
    info = os.waitid(os.P_PID, pid, os.WEXITED)
    assert info is not None
    assert (info.si_code, info.si_status) == (os.CLD_EXITED, 7)


def test_stop_and_forwarded_signals_have_nothing_in_common() -> None:
    assert not STOP_SIGNALS & FORWARDED_SIGNALS
    assert subprocess.run([sys.executable, "-c", "import supervisor.linux.signals"]).returncode == 0


_FAULTS = {
    "SEGV": "ctypes.string_at(0)",
    "BUS": "bus()",
    "ABRT": "os.abort()",
}
_FAULTY = """
import ctypes, mmap, os, resource
from supervisor.linux.signals import SignalRouter
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

def bus():
    fd = os.memfd_create("short")
    os.ftruncate(fd, 4096)
    page = mmap.mmap(fd, 4096)
    os.ftruncate(fd, 0)
    page[0]

router = SignalRouter(has_job_control=False)
for signum in FATAL:
    os.kill(os.getpid(), signum)
print("alive", flush=True)
FAULT
print("not reached", flush=True)
"""


@pytest.mark.parametrize("name", _FAULTS)
def test_a_sent_signal_of_a_fault_is_ignored_and_a_real_fault_ends_the_process(name: str) -> None:
    """A handler that returned would meet the same fault again, for ever."""
    signals_of_faults = [
        int(getattr(signal, f"SIG{each}")) for each in (*_FAULTS, "FPE", "ILL", "TRAP", "SYS")
    ]
    program = _FAULTY.replace("FATAL", repr(signals_of_faults)).replace("FAULT", _FAULTS[name])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert done.stdout == b"alive\n", done.stderr
    assert done.returncode == -getattr(signal, f"SIG{name}")


def test_abort_is_fatal_where_a_watchdog_sends_it() -> None:
    program = (
        "import os, signal, resource; from supervisor.linux.signals import SignalRouter\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "SignalRouter(has_job_control=False, has_watchdog=True)\n"
        "os.kill(os.getpid(), signal.SIGABRT)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=60)
    assert done.returncode == -signal.SIGABRT
