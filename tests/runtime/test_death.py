"""How a process's end is told: the status, its order, the drain, and what outlives a container."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import runtimes, waiting

if TYPE_CHECKING:
    from tests.harness.engine import Engine
    from tests.runtime.conftest import MakeEngine, MakeExec

pytestmark = pytest.mark.runc


def box(make_engine: MakeEngine, *, host_pid: bool = False, runtime: str | Path = "runc") -> Engine:
    """Run a container that ends with 9 when it gets a line, to exec in."""
    script = "echo up; read line; exit 9"
    engine = make_engine(script, containerdStdin="stdin", host_pid=host_pid, runtime=runtime)
    stdout, _stderr = engine.run_attached()
    waiting.read_until(stdout, b"up\n")
    return engine


def end(container: Engine) -> None:
    """End a `box`, which is unharmed."""
    os.write(container.open("stdin", os.O_WRONLY), b"\n")
    assert container.wait_end() == 9
    assert container.leftovers() == []


# The status.


@pytest.mark.parametrize("status", [0, 1, 2, 126, 127, 128, 137, 254, 255])
def test_an_exit_status_is_told_as_it_is(make_engine: MakeEngine, status: int) -> None:
    engine = make_engine(f"exit {status}")
    engine.run_attached()
    assert engine.wait_end() == status
    assert engine.wait_shim() == 0
    assert engine.log("error") == []


@pytest.mark.parametrize("signum", waiting.SIGNALS_THAT_KILL)
def test_a_signal_that_kills_is_told_as_128_and_its_number(
    make_engine: MakeEngine, signum: int
) -> None:
    # In the host's pid namespace: the first process of its own one is immune to most.
    # And without a shell, since busybox's ignores SIGQUIT for what it execs.
    args = ["cat", "/proc/self/comm", "-"]
    engine = make_engine(args, host_pid=True, containerdStdin="stdin")
    stdout, _stderr = engine.attach("stdout", "stderr")
    pid = engine.run()
    waiting.read_until(stdout, b"cat\n")
    os.kill(pid, signum)
    assert engine.wait_end() == 128 + signum
    assert engine.leftovers() == []


def test_the_status_is_there_at_once_and_whole(make_engine: MakeEngine) -> None:
    engine = make_engine("read line; exit 254", containerdStdin="stdin")
    engine.run_attached()
    os.write(engine.open("stdin", os.O_WRONLY), b"\n")
    seen: list[str] = []

    def look(path: Path) -> bool:
        if path.exists():
            seen.append(path.read_text())
        return waiting.has_hung_up(engine.exit_fd) or bool(seen)

    waiting.wait_path(engine.dir / "exitStatus", look)
    waiting.wait_hangup(engine.exit_fd)
    assert set(seen) == {"254"}
    assert engine.leftovers() == []  # no temporary file


def test_a_status_of_an_earlier_run_is_replaced(make_engine: MakeEngine) -> None:
    engine = make_engine("exit 7")
    engine.attach("stdout", "stderr")
    engine.launch()
    engine.created()
    (engine.dir / "exitStatus").write_text("12345")
    engine.start()
    assert engine.wait_end() == 7


# The order.


def test_status_then_kill_then_drain_then_delete_then_hang_up(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    recorder = runtimes.recorder(tmp_path, tmp_path / "state-1" / "init")
    count = 200_000  # lines; 1.3 MiB: too much for a fifo alone, not for a fifo and a pipe
    engine = make_engine(f"seq 1 {count}; exit 7", runtime=recorder.path, host_pid=True)
    stdout, _stderr = engine.run_attached()
    waiting.wait_path(recorder.log, lambda _path: recorder.verbs() == ["create", "kill"])
    create, kill = recorder.calls()
    assert "exitStatus" not in create["files"]
    assert "exitStatus" in kill["files"]
    assert engine.exit_status() == 7
    data = waiting.read_until(stdout, b"\n")
    assert recorder.verbs() == ["create", "kill"]  # a full pipe is not drained yet
    assert not waiting.has_hung_up(engine.exit_fd)
    data += waiting.read_to_end(stdout)
    assert data == b"".join(b"%d\n" % n for n in range(1, count + 1))
    assert engine.wait_end() == 7
    assert recorder.verbs() == ["create", "kill", "delete"]


def test_the_hang_up_waits_for_the_delete(make_engine: MakeEngine, tmp_path: Path) -> None:
    runtime, fifo = runtimes.gate(tmp_path, "delete")
    engine = make_engine(runtime=runtime)
    engine.run_attached()
    with fifo.open("wb"):
        assert engine.exit_status() == 7
        assert not waiting.has_hung_up(engine.exit_fd)
    assert engine.wait_end() == 7
    assert engine.runtime_state() is None


def test_the_drain_waits_for_the_kill(make_engine: MakeEngine, tmp_path: Path) -> None:
    runtime, fifo = runtimes.gate(tmp_path, "kill")
    engine = make_engine("echo out; exit 7", runtime=runtime, host_pid=True)
    engine.run_attached()
    with fifo.open("wb"):
        assert engine.exit_status() == 7
        state = engine.runtime_state()
        assert state is not None
        assert state["status"] == "stopped"
    assert engine.read_end("stdout") == [b"out\n"]
    assert engine.wait_end() == 7


# What outlives the container's first process.


def test_processes_left_in_the_hosts_pid_namespace_are_killed_before_the_delete(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    runtime, fifo = runtimes.gate(tmp_path, "delete")  # which would kill them as well
    engine = make_engine("sleep 1000 & echo $!; exit 7", host_pid=True, runtime=runtime)
    stdout, _stderr = engine.run_attached()
    stray = int(waiting.read_until(stdout, b"\n"))
    with fifo.open("wb"):
        assert not waiting.is_alive(stray)
    assert engine.wait_end() == 7
    assert engine.leftovers() == []


def test_a_silent_stray_of_an_exec_keeps_neither_status_nor_hang_up(
    make_engine: MakeEngine, make_exec: MakeExec
) -> None:
    """Nor does the container's `kill --all` leave it: its shim waits for that."""
    container = box(make_engine, host_pid=True)
    process = make_exec(container, "sleep 1000 & echo $!; exit 3")
    stdout, _stderr = process.run_attached()
    stray = int(waiting.read_until(stdout, b"\n"))
    assert process.wait_end() == 3
    assert waiting.is_alive(stray)
    end(container)
    assert waiting.read_to_end(stdout) == b""
    assert process.wait_shim() == 0
    assert process.log("warn") == []
    assert not waiting.is_alive(stray)


@pytest.mark.parametrize("word", ["", "echo more 2>&-"])
def test_a_stray_that_outlives_the_container_is_given_up_and_lives_on(
    make_engine: MakeEngine, make_exec: MakeExec, tmp_path: Path, word: str
) -> None:
    """The bounds begin with the container's end, which most strays share: runc kills them."""
    spares = "case $verb in kill|delete) exit 0;; esac"
    runtime = runtimes.script(tmp_path / "spares", spares)
    container = box(make_engine, host_pid=True, runtime=runtime)
    chatter = f"(while sleep 0.1; do {word or ':'}; done) & echo $! >&2"
    process = make_exec(container, f"trap '' PIPE; {chatter}; exit 3")
    stdout, stderr = process.run_attached()
    stray = int(waiting.read_until(stderr, b"\n"))
    assert process.wait_end() == 3
    init = int((container.dir / "pid").read_text())
    os.write(container.open("stdin", os.O_WRONLY), b"\n")
    waiting.wait_process(init)
    assert set(waiting.read_to_end(stdout).split()) <= {b"more"}
    assert process.wait_shim() == 0
    given_up = {warning.partition(":")[0] for warning in process.log("warn")}
    assert "stdout" in given_up
    os.kill(stray, signal.SIGKILL)
    assert container.wait_end() == 9


def test_a_talking_stray_is_heard_to_its_end(make_engine: MakeEngine, make_exec: MakeExec) -> None:
    container = box(make_engine)
    # More than all pipes hold: it is still talking when the process has ended, however slow it is.
    count = 800_000
    process = make_exec(container, f"seq 1 {count} 2>&- & exit 3")
    process.run_attached()
    waiting.wait_path(process.dir / "exitStatus", Path.exists)
    (said,) = process.read_end("stdout")
    assert said == b"".join(b"%d\n" % n for n in range(1, count + 1))
    assert process.wait_end() == 3
    assert process.log("warn") == []
    end(container)


def test_orphans_are_reaped_while_the_output_is_drained(
    make_engine: MakeEngine, make_exec: MakeExec
) -> None:
    container = box(make_engine, host_pid=True)
    orphans = "sleep 1000 < /dev/null > /dev/null 2>&1 & echo $! >&2\n" * 4
    # What has the streams holds the shim up: it needs nobody to be quick.
    process = make_exec(container, f"{orphans} seq 1 800000 2>&- & echo $! >&2; exit 3")
    _stdout, stderr = process.run_attached()
    said = b""
    while said.count(b"\n") < 5:
        said += waiting.read_until(stderr, b"\n")
    *pids, talker = map(int, said.split())
    waiting.wait_path(process.dir / "exitStatus", Path.exists)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        waiting.wait_process(pid)
        waiting.wait_reaped(pid)
    assert process.shim is not None
    assert process.shim.poll() is None
    os.kill(talker, signal.SIGKILL)
    process.read_end("stdout")
    assert process.wait_end() == 3
    assert process.wait_shim() == 0
    end(container)


def test_orphans_are_reaped_while_the_container_runs(
    make_engine: MakeEngine, make_exec: MakeExec
) -> None:
    container = box(make_engine, host_pid=True)
    script = "(sleep 0.1 < /dev/null > /dev/null 2>&1 & echo $!); read line; exit 3"
    process = make_exec(container, script, containerdStdin="stdin")
    stdout, _stderr = process.run_attached()
    orphan = int(waiting.read_until(stdout, b"\n"))
    waiting.wait_process(orphan)
    waiting.wait_reaped(orphan)
    os.write(process.open("stdin", os.O_WRONLY), b"\n")
    assert process.wait_end() == 3
    end(container)


# Clients that do not read.


@pytest.mark.slow
def test_a_client_that_never_reads_delays_the_end_boundedly(make_engine: MakeEngine) -> None:
    engine = make_engine("seq 1 200000; exit 7")
    engine.run_attached()
    waiting.wait_path(engine.dir / "exitStatus", Path.exists)
    assert not waiting.has_hung_up(engine.exit_fd)
    assert engine.wait_end() == 7
    assert engine.wait_shim() == 0
    warning, counted = engine.log("warn")
    assert warning.startswith("stdout: given up")
    assert "bytes" in warning
    assert "dropped" in counted
    assert engine.leftovers() == []
    kept = waiting.read_to_end(engine.fd("stdout"))
    assert kept.startswith(b"1\n2\n3\n")  # what the client's own fifo held is not lost
    assert len(kept) >= 65536


def test_a_client_that_comes_back_finds_its_words_while_others_go_on(
    make_engine: MakeEngine, make_exec: MakeExec
) -> None:
    container = box(make_engine)
    process = make_exec(container, "read go; echo words; sleep 1000 2>&- & exit 3",
                        containerdStdin="stdin")  # fmt: skip
    process.run_attached()
    process.close("stdout")
    os.write(process.open("stdin", os.O_WRONLY), b"go\n")
    assert process.wait_end() == 3
    stdout = process.open("stdout", os.O_RDONLY | os.O_NONBLOCK)
    assert waiting.read_until(stdout, b"\n") == b"words\n"
    end(container)
    assert waiting.read_to_end(stdout) == b""
    assert process.wait_shim() == 0


def test_a_client_that_holds_its_fifo_need_not_have_read_it(make_engine: MakeEngine) -> None:
    engine = make_engine("echo words; exit 7")
    engine.run_attached()
    assert engine.wait_end() == 7
    assert engine.wait_shim() == 0
    assert engine.log("warn") == []
    assert engine.read_end("stdout") == [b"words\n"]


# An exec, and the shim of its container.


def test_an_exec_ends_without_harm_to_its_container(
    make_engine: MakeEngine, make_exec: MakeExec
) -> None:
    container = box(make_engine, host_pid=True)
    for status in (0, 1, 255):
        process = make_exec(container, f"exit {status}")
        process.run_attached()
        assert process.wait_end() == status
        assert process.leftovers() == []
    end(container)


def test_the_containers_end_ends_its_execs(make_engine: MakeEngine, make_exec: MakeExec) -> None:
    container = box(make_engine)
    process = make_exec(container, "echo ready; sleep 1000")
    stdout, _stderr = process.run_attached()
    waiting.read_until(stdout, b"ready\n")
    end(container)
    assert process.wait_end() == 137
    assert process.leftovers() == []


@pytest.mark.parametrize("terminal", [False, True])
def test_a_killed_shim_leaves_no_worker(make_engine: MakeEngine, *, terminal: bool) -> None:
    engine = make_engine("echo up; sleep 1000", terminal=terminal, containerdStdin="stdin")
    stdout, *_rest = engine.attach("stdout", "stderr")
    pid = engine.run()
    waiting.read_until(stdout, b"\n")
    children = waiting.children_of(engine.shim_pid)
    assert pid in children
    os.kill(engine.shim_pid, signal.SIGKILL)
    waiting.wait_hangup(engine.exit_fd)
    assert not (engine.dir / "exitStatus").exists()  # the engine then writes 137 itself
    os.kill(pid, signal.SIGKILL)  # which is the engine's part: it is nobody's child but ours
    engine.close("stdout")
    for child in children:
        waiting.wait_process(child)
