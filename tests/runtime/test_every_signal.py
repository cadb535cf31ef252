"""Each of the 64 signals, sent to a shim that supervises a real container."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.harness import waiting

if TYPE_CHECKING:
    from tests.runtime.conftest import MakeEngine

pytestmark = pytest.mark.runc

STOPS = {signal.SIGINT, signal.SIGTERM}
FORWARDED = {
    *(signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM),
    *(signal.SIGWINCH, signal.SIGIO, signal.SIGPWR, *range(34, 65)),
}
KERNELS = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT}
IGNORED = {*range(1, 65)} - STOPS - FORWARDED - KERNELS
LOOP = "echo ready; while :; do sleep 0.02; done"


def test_the_table_has_them_all() -> None:
    assert {int(signum) for signum in IGNORED} == {
        *(signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE),
        *(signal.SIGSEGV, signal.SIGPIPE, signal.SIGSTKFLT, signal.SIGCHLD, signal.SIGTSTP),
        *(signal.SIGTTIN, signal.SIGTTOU, signal.SIGURG, signal.SIGXCPU, signal.SIGXFSZ),
        *(signal.SIGVTALRM, signal.SIGPROF, signal.SIGSYS, 32, 33),
    }


def test_a_signal_without_a_meaning_does_nothing(make_engine: MakeEngine) -> None:
    """Then the container is killed from outside: it is 137, and not the 255 of a dead shim."""
    engine = make_engine(f"trap 'echo still here' USR1; {LOOP}")
    stdout, _stderr = engine.run_attached()
    waiting.read_until(stdout, b"ready\n")
    for signum in sorted(IGNORED):
        os.kill(engine.shim_pid, signum)
        os.kill(engine.shim_pid, signal.SIGUSR1)
        try:
            assert waiting.read_until(stdout, b"here\n", limit_s=20) == b"still here\n"
        except (EOFError, TimeoutError):
            pytest.fail(f"signal {int(signum)} has ended the shim: {engine.wait_shim()}")
    os.kill(int((engine.dir / "pid").read_text()), signal.SIGKILL)
    assert engine.wait_end() == 137
    assert engine.wait_shim() == 0
    assert engine.log("warn") == engine.log("error") == []
    assert engine.leftovers() == []


def test_a_signal_with_a_meaning_to_the_container_reaches_it(make_engine: MakeEngine) -> None:
    wanted = sorted(FORWARDED - {signal.SIGHUP})
    traps = "; ".join(f"trap 'echo got {int(signum)}' {int(signum)}" for signum in wanted)
    engine = make_engine(f"{traps}; trap 'exit 5' TERM; {LOOP}")
    stdout, _stderr = engine.run_attached()
    waiting.read_until(stdout, b"ready\n")
    for signum in wanted:
        os.kill(engine.shim_pid, signum)
        assert waiting.read_until(stdout, b"\n") == b"got %d\n" % signum
    os.kill(engine.shim_pid, signal.SIGTERM)
    assert engine.wait_end() == 5


def test_the_runtime_and_the_container_have_no_signal_ignored_or_blocked(
    make_engine: MakeEngine,
) -> None:
    script = "grep -E '^Sig(Blk|Ign)' /proc/self/status"
    engine = make_engine(["sh", "-c", f"exec {script}"])
    stdout, _stderr = engine.run_attached()
    masks = dict(line.split(b":\t") for line in waiting.read_to_end(stdout).splitlines())
    assert {name: int(mask, 16) for name, mask in masks.items()} == {b"SigBlk": 0, b"SigIgn": 0}
    assert engine.wait_end() == 0
