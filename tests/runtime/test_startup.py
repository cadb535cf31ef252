"""The order in which a shim begins, and how it calls the runtime."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.harness import runtimes, waiting

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runtime.conftest import MakeEngine, MakeExec

pytestmark = pytest.mark.runc


# The order: log, exit, control, process.json, stdio, runtime. Whatever is missing, the first in
# this order is what the shim complains of.

ORDER = [
    ("exit", "open exit: "),
    ("control", "open control: "),
    ("process.json", "open process.json: "),
    ("stdout", "stat stdout: "),
]


@pytest.mark.parametrize("first", range(len(ORDER)), ids=[name for name, _error in ORDER])
def test_files_are_opened_in_the_protocols_order(
    make_engine: MakeEngine, tmp_path: Path, first: int
) -> None:
    recorder = runtimes.recorder(tmp_path, tmp_path)
    engine = make_engine(runtime=recorder.path)
    for name, _error in ORDER[first:]:
        (engine.dir / name).unlink()
    engine.launch()
    assert engine.wait_shim() == 1
    (error,) = engine.log("error")  # so the log was there before the first of them
    assert error.startswith(ORDER[first][1])
    assert recorder.calls() == []


@pytest.mark.parametrize("missing", ["control", "process.json", "stdout"])
def test_an_early_failure_is_already_told_by_a_hang_up(
    make_engine: MakeEngine, missing: str
) -> None:
    engine = make_engine()
    (engine.dir / missing).unlink()
    engine.launch()
    waiting.wait_hangup(engine.exit_fd)
    assert engine.wait_shim() == 1


def test_the_runtime_does_not_run_before_every_output_has_a_reader(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    recorder = runtimes.recorder(tmp_path, tmp_path)
    engine = make_engine(runtime=recorder.path)
    pid = engine.launch()
    engine.open_when_waited_for("stdout")
    waiter = waiting.wait_child(pid)
    assert recorder.calls() == []
    engine.attach("stderr")
    waiting.wait_process(waiter)
    engine.created()
    engine.start()
    assert engine.wait_end() == 7


def test_control_messages_sent_before_the_create_are_served_after_it(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(
        # A terminal without a size is an error to stty: our message and the engine's start race.
        "while [ \"$(stty size 2> /dev/null)\" != '33 90' ]; do sleep 0.02; done; stty size",
        terminal=True,
    )
    engine.control("1 90 33\n")
    engine.run_attached()
    assert engine.read_end("stdout") == [b"33 90\r\n"]
    assert engine.wait_end() == 0


def test_a_stdin_closed_before_the_create_is_at_end_of_file_after_it(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine("cat; exit 7", containerdStdin="stdin")
    engine.control("0 0 0\n")
    engine.run_attached()
    assert engine.read_end("stdout") == [b""]
    assert engine.wait_end() == 7


def test_a_container_that_dies_before_its_pid_is_read_is_seen(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    # As the daemon does: it starts the container when the pid file appears, before create ends.
    text = """
if [ $verb = create ]; then
    runc "$@" || exit
    for id; do :; done
    for word; do [ "$before" = --pid-file ] && pid=$(cat "$word"); before=$word; done
    runc start "$id"
    while [ -e /proc/$pid/root/. ]; do sleep 0.01; done
    exit 0
fi
"""
    engine = make_engine("exit 9", runtime=runtimes.script(tmp_path / "slow", text))
    engine.attach("stdout", "stderr")
    engine.launch()
    assert engine.wait_end() == 9
    assert engine.leftovers() == []


@pytest.mark.parametrize("fails", [False, True])
def test_what_hooks_say_beyond_what_a_pipe_holds_keeps_no_runtime_waiting(
    make_engine: MakeEngine, tmp_path: Path, *, fails: bool
) -> None:
    """The workers of an engine's container are forked when its create has ended, or soon enough."""
    text = "[ $verb != create ] || { dd if=/dev/zero bs=64k count=40; %s; } 2> /dev/null"
    script = text % ("exit 3" if fails else ":")
    engine = make_engine("exit 9", runtime=runtimes.script(tmp_path / "talks", script))
    stdout, _stderr = engine.attach("stdout", "stderr")
    engine.launch()
    said = b""
    while len(said) < 40 << 16:
        waiting.wait_readable(stdout)
        said += os.read(stdout, 1 << 20)
    if not fails:
        engine.created()
        engine.start()
    assert said + waiting.read_to_end(stdout) == bytes(40 << 16)
    assert engine.wait_shim() == 0
    assert (engine.dir / "exitStatus").exists() is not fails
    assert engine.leftovers() == []


def test_the_runtime_is_found_in_path(make_engine: MakeEngine, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    recorder = runtimes.recorder(tmp_path / "bin", tmp_path)
    engine = make_engine(runtime="recorder")
    engine.attach("stdout", "stderr")
    engine.launch(env={**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"})
    engine.created()
    engine.start()
    assert engine.wait_end() == 7
    assert recorder.verbs() == ["create", "delete"]


# What the runtime is given.


def test_the_runtimes_command_lines_are_the_protocols(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    recorder = runtimes.recorder(tmp_path, tmp_path)
    engine = make_engine(runtime=recorder.path)
    engine.run_attached()
    assert engine.wait_end() == 7
    log = ["--log", f"{engine.dir}/log.json", "--log-format", "json"]
    pid_file = ["--pid-file", f"{engine.dir}/pid"]
    assert [call["argv"] for call in recorder.calls()] == [
        [*log, "create", "--bundle", str(engine.bundle), *pid_file, engine.id],
        ["delete", engine.id],
    ]


def test_runtime_arguments_come_before_every_verb_and_no_pivot_is_passed_on(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    recorder = runtimes.recorder(tmp_path, tmp_path)
    extra = ["--root", "/run/runc", "--debug"]
    engine = make_engine(runtime=recorder.path, host_pid=True, runtimeArgs=extra, noPivotRoot=True)
    engine.run_attached()
    assert engine.wait_end() == 7
    log = ["--log", f"{engine.dir}/log.json", "--log-format", "json"]
    create = ["create", "--bundle", str(engine.bundle), "--no-pivot"]
    assert [call["argv"] for call in recorder.calls()] == [
        [*log, *extra, *create, "--pid-file", f"{engine.dir}/pid", engine.id],
        [*extra, "kill", "--all", engine.id, "SIGKILL"],
        [*extra, "delete", engine.id],
    ]


def test_a_terminal_adds_a_console_socket_that_is_removed(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    recorder = runtimes.recorder(tmp_path, tmp_path)
    engine = make_engine(runtime=recorder.path, terminal=True)
    engine.attach("stdout")
    engine.launch(env={**os.environ, "TMPDIR": str(tmp_path)})
    engine.created()
    engine.start()
    assert engine.wait_end() == 7
    argv = recorder.calls()[0]["argv"]
    at = argv.index("--console-socket")
    assert argv[at - 3 : at - 1] == ["create", "--bundle"]
    assert argv[at + 2] == "--pid-file"
    assert argv[at + 1].startswith(f"{tmp_path}/forkshim-")
    assert list(tmp_path.glob("forkshim-*")) == []


def test_a_long_temporary_directory_is_no_obstacle_to_a_terminal(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    engine = make_engine("test -t 0 && test -t 2 && echo tty", terminal=True)
    engine.attach("stdout")
    engine.launch(env={**os.environ, "TMPDIR": str(long)})
    engine.created()
    engine.start()
    assert engine.read_end("stdout") == [b"tty\r\n"]
    assert engine.wait_end() == 0


def test_an_exec_is_one_call_and_touches_nothing_else(
    make_engine: MakeEngine, make_exec: MakeExec, tmp_path: Path
) -> None:
    container = make_engine("read line; exit 9", containerdStdin="stdin")
    container.run_attached()
    recorder = runtimes.recorder(tmp_path, tmp_path)
    process = make_exec(container, "exit 3", runtime=str(recorder.path))
    process.run_attached()
    assert process.wait_end() == 3
    log = ["--log", f"{process.dir}/log.json", "--log-format", "json"]
    json_file = ["--process", f"{process.dir}/process.json"]
    pid_file = ["--pid-file", f"{process.dir}/pid"]
    assert [call["argv"] for call in recorder.calls()] == [
        [*log, "exec", "-d", *json_file, *pid_file, container.id]
    ]
    state = container.runtime_state()
    assert state is not None
    assert state["status"] == "running"
    os.write(container.open("stdin", os.O_WRONLY), b"\n")
    assert container.wait_end() == 9


@pytest.mark.parametrize("terminal", [False, True])
def test_every_runtime_call_dies_with_the_shim_and_inherits_only_its_stdio(
    make_engine: MakeEngine, tmp_path: Path, *, terminal: bool
) -> None:
    recorder = runtimes.recorder(tmp_path, tmp_path)
    engine = make_engine(
        runtime=recorder.path, host_pid=True, terminal=terminal, containerdStdin="stdin"
    )
    engine.run_attached()
    assert engine.wait_end() == 7
    create, kill, delete = recorder.calls()
    for call in (create, kill, delete):
        assert call["pdeathsig"] == signal.SIGKILL
        assert call["ppid"] == engine.shim_pid
        assert set(call["fds"]) == {"0", "1", "2"}
        assert int(call["blocked"], 16) == 0
        # CPython itself ignores these two, in the recorder.
        assert int(call["ignored"], 16) & waiting.SETTABLE & ~(1 << 12 | 1 << 24) == 0
    assert create["cwd"] == kill["cwd"] == delete["cwd"] == str(engine.bundle)
    kinds = {fd: target.partition(":")[0] for fd, target in create["fds"].items()}
    stdio = dict.fromkeys("012", "/null" if terminal else "pipe")  # a device of our own
    assert kinds == stdio
    for call in (kill, delete):
        assert call["fds"]["0"] == "/dev/null"
        assert call["fds"]["1"] == call["fds"]["2"]  # a pipe: what it says is told if it fails


def test_a_stranger_the_container_leaves_does_not_hold_the_exit_fifo(
    make_engine: MakeEngine, make_exec: MakeExec
) -> None:
    container = make_engine("read line; exit 9", containerdStdin="stdin")
    container.run_attached()
    script = "setsid sleep 1000 < /dev/null > /dev/null 2>&1 & echo; exit 3"
    process = make_exec(container, script)
    process.run_attached()
    assert process.wait_end() == 3  # although the stray lives as long as the container
    ps = make_exec(container, ["ps", "-o", "args"])
    ps.run_attached()
    assert b"sleep 1000" in ps.read_end("stdout")[0]
    os.write(container.open("stdin", os.O_WRONLY), b"\n")
    assert container.wait_end() == 9


def test_inherited_descriptors_and_masks_do_not_reach_the_container(
    make_engine: MakeEngine,
) -> None:
    # `true`, or sh would exec cat with what it ignores itself.
    script = "ls /proc/self/fd; cat /proc/self/status; true"
    engine = make_engine(script, containerdStdin="stdin")
    engine.attach("stdout", "stderr")
    rfd, wfd = os.pipe()
    try:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
        try:
            engine.launch(pass_fds=(rfd, wfd))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    finally:
        os.close(rfd)
        os.close(wfd)
    engine.created()
    engine.start()
    (said,) = engine.read_end("stdout")
    listed, _name, status = said.partition(b"Name:")
    assert listed.split() == [b"0", b"1", b"2", b"3"]  # the last is the directory itself
    assert b"SigBlk:\t0000000000000000" in status
    ignored = status.partition(b"SigIgn:\t")[2].split()[0]
    assert int(ignored, 16) & waiting.SETTABLE == 0
    assert engine.wait_end() == 0


def test_closed_standard_descriptors_of_the_shim_are_no_obstacle(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    recorder = runtimes.recorder(tmp_path, tmp_path)
    engine = make_engine(runtime=recorder.path)
    engine.attach("stdout", "stderr")

    def close_all() -> None:
        for fd in range(3):
            os.close(fd)

    engine.launch(preexec_fn=close_all)
    engine.created()
    engine.start()
    assert engine.wait_end() == 7
    assert all(set(call["fds"]) == {"0", "1", "2"} for call in recorder.calls())


def test_the_shim_and_its_workers_are_named_after_the_container(make_engine: MakeEngine) -> None:
    engine = make_engine(
        "read line; echo out; echo err >&2; read line; exit 7", containerdStdin="stdin"
    )
    engine.run_attached()
    assert waiting.title_of(engine.shim_pid) == f"forkshim: {engine.id}"
    stdin = engine.open("stdin", os.O_WRONLY)
    os.write(stdin, b"\n")
    for stream in ("stdin", "stdout", "stderr"):
        worker = waiting.wait_worker(engine.shim_pid, stream)
        assert waiting.title_of(worker) == f"forkshim: {engine.id} [{stream}]"
    os.write(stdin, b"\n")
    assert engine.wait_end() == 7
