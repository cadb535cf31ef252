"""What the shim does with the signals it gets itself."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.harness import runtimes, waiting

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.engine import Engine
    from tests.runtime.conftest import MakeEngine

pytestmark = pytest.mark.runc

LOOP = "echo ready; while :; do sleep 0.02; done"


def ready(engine: Engine) -> int:
    """Run it until it says so; returns its stdout."""
    stdout, *_rest = engine.run_attached()
    waiting.read_until(stdout, b"ready")
    return stdout


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_sent_on_as_term_and_the_containers_own_status_counts(
    make_engine: MakeEngine, signum: signal.Signals
) -> None:
    engine = make_engine(f"trap 'echo last words; exit 5' TERM; {LOOP}")
    stdout = ready(engine)
    os.kill(engine.shim_pid, signum)
    assert waiting.read_to_end(stdout).strip() == b"last words"
    assert engine.wait_end() == 5
    assert engine.wait_shim() == 0
    assert f"{signum.name}: stopping" in engine.log("info")
    assert engine.log("warn") == engine.log("error") == []
    assert engine.leftovers() == []


@pytest.mark.slow
def test_a_container_that_ignores_the_stop_is_killed_after_the_grace_period(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    recorder = runtimes.recorder(tmp_path, tmp_path)
    engine = make_engine(f"trap '' TERM; {LOOP}", runtime=recorder.path)
    ready(engine)
    os.kill(engine.shim_pid, signal.SIGTERM)
    wait_log(engine, "SIGTERM: stopping")
    os.kill(engine.shim_pid, signal.SIGTERM)
    wait_log(engine, "a stop is under way already")
    assert not (engine.dir / "exitStatus").exists()
    assert engine.wait_end() == 137
    assert engine.wait_shim() == 0
    stop, kill = [call["argv"] for call in recorder.calls()[1:3]]
    assert stop == ["kill", engine.id, "15"]
    assert kill == ["kill", engine.id, "9"]
    assert "did not stop within 10 s of SIGTERM, killed" in engine.log("warn")
    assert engine.leftovers() == []


def wait_log(engine: Engine, message: str) -> None:
    """Wait for a message in shim-log.json."""
    waiting.wait_path(engine.dir / "shim-log.json", lambda _path: message in engine.log())


def test_a_stop_works_without_a_runtime(make_engine: MakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "vanishes"
    runtimes.script(path, f'if [ $verb = create ]; then rm {path}; exec runc "$@"; fi')
    engine = make_engine(f"trap 'exit 5' TERM; {LOOP}", runtime=path)
    ready(engine)
    os.kill(engine.shim_pid, signal.SIGTERM)
    assert engine.wait_end() == 5
    assert engine.log("warn")[0].endswith("; the supervisor signals the process")


def test_a_stop_whose_runtime_fails_is_sent_by_the_shim_itself(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    text = 'case "$*" in "kill fst-"*) exit 1;; esac'
    engine = make_engine(
        f"trap 'exit 5' TERM; {LOOP}", runtime=runtimes.script(tmp_path / "refuses", text)
    )
    ready(engine)
    os.kill(engine.shim_pid, signal.SIGTERM)
    assert engine.wait_end() == 5
    assert engine.leftovers() == []


@pytest.mark.parametrize("has_started", [False, True])
def test_a_stop_of_a_container_that_is_only_created_removes_it(
    make_engine: MakeEngine, *, has_started: bool
) -> None:
    engine = make_engine(f"trap 'exit 5' TERM; {LOOP}")
    if has_started:
        ready(engine)
    else:
        engine.attach("stdout", "stderr")
        engine.launch()
        engine.created()
    os.kill(engine.shim_pid, signal.SIGTERM)
    waiting.wait_hangup(engine.exit_fd)
    assert engine.leftovers() == []


@pytest.mark.parametrize(
    "signum",
    [
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
        signal.SIGALRM,
        signal.SIGRTMIN + 6,
        signal.SIGRTMAX,
    ],
)
def test_a_signal_that_is_no_stop_is_forwarded_as_it_is(
    make_engine: MakeEngine, signum: int
) -> None:
    engine = make_engine(f"trap 'echo got {int(signum)}; exit 3' {int(signum)}; {LOOP}")
    stdout = ready(engine)
    os.kill(engine.shim_pid, signum)
    assert waiting.read_to_end(stdout).strip() == b"got %d" % signum
    assert engine.wait_end() == 3
    assert engine.log("warn") == engine.log("error") == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_an_engine_need_not_wait_for_the_end_of_create(
    make_engine: MakeEngine, tmp_path: Path, signum: int
) -> None:
    """The pid file is its word to start, and to signal; the runtime may still be busy."""
    runtime, gate = runtimes.lingering(tmp_path)
    trap = "trap 'echo last words; exit 5' TERM USR1"
    engine = make_engine(f"{trap}; {LOOP}", runtime=runtime)
    stdout, _stderr = engine.attach("stdout", "stderr")
    pid = engine.launch()
    with gate.open("wb"):
        engine.start()
        waiting.read_until(stdout, b"ready")
        os.kill(pid, signum)
    assert waiting.read_to_end(stdout).strip() == b"last words"
    assert engine.wait_end() == 5
    assert engine.wait_shim() == 0
    assert engine.log("warn") == engine.log("error") == []
    assert engine.leftovers() == []


def test_signals_of_job_control_and_broken_pipes_are_ignored(make_engine: MakeEngine) -> None:
    engine = make_engine(f"trap 'exit 3' USR1; {LOOP}", containerdStdin="stdin")
    ready(engine)
    for signum in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGPIPE):
        os.kill(engine.shim_pid, signum)
    os.kill(engine.shim_pid, signal.SIGUSR1)
    assert engine.wait_end() == 3
    assert engine.wait_shim() == 0
    assert engine.log("warn") == engine.log("error") == []


def test_a_stopped_shim_goes_on_where_it_was(make_engine: MakeEngine) -> None:
    script = "echo ready; read line; echo heard; read line; exit 7"
    engine = make_engine(script, containerdStdin="stdin")
    ready(engine)
    stdin = engine.open("stdin", os.O_WRONLY)
    os.write(stdin, b"\n")  # a stopped supervisor forks no first worker
    waiting.read_until(engine.fd("stdout"), b"heard")
    os.kill(engine.shim_pid, signal.SIGSTOP)
    os.write(stdin, b"\n")
    waiting.wait_process(int((engine.dir / "pid").read_text()))
    assert not (engine.dir / "exitStatus").exists()
    os.kill(engine.shim_pid, signal.SIGCONT)
    assert engine.wait_end() == 7


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_signal_to_the_whole_group_costs_no_worker_and_no_last_words(
    make_engine: MakeEngine, signum: signal.Signals, *, terminal: bool
) -> None:
    words = "seq 1 100000; echo last words; exit 5"
    engine = make_engine(
        f"trap '{words}' TERM HUP QUIT; echo up >&2; {LOOP}",
        terminal=terminal,
        containerdStdin="stdin",
    )
    stdout = ready(engine)
    os.write(engine.open("stdin", os.O_WRONLY), b"\n")
    for stream in ("stdin", "console") if terminal else ("stdin", "stdout", "stderr"):
        waiting.wait_worker(engine.shim_pid, stream)
    os.killpg(engine.shim_pid, signum)
    said = waiting.read_to_end(stdout).split()
    assert said == [*(b"%d" % n for n in range(1, 100_001)), b"last", b"words"]
    assert engine.wait_end() == 5
    assert engine.log("warn") == engine.log("error") == []  # no worker was replaced
    assert engine.leftovers() == []


def test_a_flood_of_signals_does_not_hide_a_stop(make_engine: MakeEngine) -> None:
    engine = make_engine(f"trap '' WINCH; trap 'exit 5' TERM; {LOOP}")
    ready(engine)
    for _again in range(5000):
        os.kill(engine.shim_pid, signal.SIGWINCH)
    os.kill(engine.shim_pid, signal.SIGTERM)
    assert engine.wait_end() == 5


def test_signals_that_were_ignored_by_the_caller_work(make_engine: MakeEngine) -> None:
    engine = make_engine(f"trap 'exit 5' TERM; {LOOP}")
    engine.attach("stdout", "stderr")

    def ignore() -> None:
        for signum in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)

    engine.launch(preexec_fn=ignore)
    engine.created()
    engine.start()
    waiting.read_until(engine.fd("stdout"), b"ready\n")
    os.kill(engine.shim_pid, signal.SIGTERM)
    assert engine.wait_end() == 5
    assert engine.wait_shim() == 0
