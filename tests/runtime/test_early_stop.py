"""Readers that do not come, and stops before there is a container."""

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


# Readers that do not come.


@pytest.mark.slow
def test_outputs_without_a_reader_fail_before_any_runtime_ran(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    recorder = runtimes.recorder(tmp_path, tmp_path)
    waits_for_stdout = make_engine(runtime=recorder.path)
    waits_for_stderr = make_engine(runtime=recorder.path)
    waits_for_stderr.attach("stdout")
    waits_for_stdout.launch()
    waits_for_stderr.launch()
    for engine, path in ((waits_for_stdout, "stdout"), (waits_for_stderr, "stderr")):
        waiting.wait_hangup(engine.exit_fd)
        assert engine.wait_shim() == 1
        (error,) = engine.log("error")
        assert error.startswith(
            f"containerd-shim: opening {path} failed: context deadline exceeded"
        )
        assert engine.leftovers() == []
    assert recorder.calls() == []


def test_a_reader_may_come_late(make_engine: MakeEngine) -> None:
    engine = make_engine("echo out; echo err >&2; exit 7")
    engine.launch()
    for stream in ("stdout", "stderr"):
        engine.open_when_waited_for(stream)
    engine.created()
    engine.start()
    assert engine.read_end("stdout", "stderr") == [b"out\n", b"err\n"]
    assert engine.wait_end() == 7
    assert engine.leftovers() == []


def test_a_killed_helper_that_waits_for_a_reader_is_replaced(make_engine: MakeEngine) -> None:
    engine = make_engine()
    pid = engine.launch()
    first = waiting.wait_child(pid)
    os.kill(first, signal.SIGKILL)
    waiting.wait_child(pid, other_than=first)
    engine.attach("stdout", "stderr")
    engine.created()
    engine.start()
    assert engine.wait_end() == 7


# Stopped before there is a container.


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_waiting_for_a_reader_ends_at_once(
    make_engine: MakeEngine, signum: signal.Signals
) -> None:
    engine = make_engine()
    pid = engine.launch()
    waiting.wait_child(pid)
    os.kill(pid, signum)
    waiting.wait_hangup(engine.exit_fd)
    assert engine.wait_shim() == 1
    assert engine.log("error") == [f"stopped by {signum.name} before its creation"]
    assert engine.leftovers() == []


def test_a_stop_during_create_kills_the_runtime_and_leaves_nothing(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    runtime, fifo = runtimes.gate(tmp_path, "create")
    engine = make_engine(runtime=runtime)
    engine.attach("stdout", "stderr")
    pid = engine.launch()
    with fifo.open("wb"):
        os.kill(pid, signal.SIGTERM)
        waiting.wait_hangup(engine.exit_fd)
    assert engine.wait_shim() == 1
    assert engine.log("error") == ["stopped while the runtime's create ran"]
    assert engine.leftovers() == []


def test_a_runtime_that_finishes_after_a_stop_has_its_container_stopped_and_deleted(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    # It has made the container when the stop comes: a stopped create has 5 s, and no more.
    runtime, fifo = runtimes.lingering(tmp_path)
    engine = make_engine("sleep 1000", runtime=runtime)
    engine.attach("stdout", "stderr")
    pid = engine.launch()
    with fifo.open("wb"):
        os.kill(pid, signal.SIGTERM)
        wait_log(engine, "SIGTERM: stopping")
    assert engine.wait_end() == 2  # what runc's own init, a Go program, ends with
    assert engine.wait_shim() == 0
    assert engine.leftovers() == []


def test_a_second_stop_during_create_changes_nothing(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    runtime, fifo = runtimes.gate(tmp_path, "state")  # which the clean-up asks for
    create, create_fifo = runtimes.gate(tmp_path, "create")
    runtimes.script(runtime, _tests_of(create) + _tests_of(runtime))
    engine = make_engine(runtime=runtime)
    engine.attach("stdout", "stderr")
    pid = engine.launch()
    with create_fifo.open("wb"):
        os.kill(pid, signal.SIGTERM)
        with fifo.open("wb"):
            os.kill(pid, signal.SIGTERM)
            wait_log(engine, "a stop is under way already")
    assert engine.wait_shim() == 1
    assert engine.log("error") == ["stopped while the runtime's create ran"]
    assert engine.leftovers() == []


def _tests_of(runtime: Path) -> str:
    lines = runtime.read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith("if ")) + "\n"


def wait_log(engine: Engine, message: str) -> None:
    """Wait for a message in shim-log.json."""
    waiting.wait_path(engine.dir / "shim-log.json", lambda _path: message in engine.log())


def test_a_killed_shim_takes_its_runtime_with_it(make_engine: MakeEngine, tmp_path: Path) -> None:
    runtime, fifo = runtimes.gate(tmp_path, "create")
    engine = make_engine(runtime=runtime)
    engine.attach("stdout", "stderr")
    pid = engine.launch()
    with fifo.open("wb"):
        children = waiting.children_of(pid)
        assert [c for c in children if str(runtime) in waiting.title_of(c)]
        os.kill(pid, signal.SIGKILL)
        for child in children:  # the runtime
            waiting.wait_process(child)
        waiting.wait_hangup(engine.exit_fd)
    assert engine.runtime_state() is None
