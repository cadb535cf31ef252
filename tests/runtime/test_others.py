"""The end of an exec'd process, whose streams others of the living container have: `server &`."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import shim_log, waiting

if TYPE_CHECKING:
    from tests.harness.engine import Engine
    from tests.runtime.conftest import MakeEngine, MakeExec

pytestmark = pytest.mark.runc

SERVER = (
    "(while read line <&3; do [ $line = quit ] && exit; echo log $line; done) 3<>/tmp/go & "
    "echo $! >&2; exit 3"
)


def box(make_engine: MakeEngine, *, host_pid: bool = False) -> Engine:
    """Run a container with a fifo /tmp/go; it ends with 9 when it gets a line."""
    engine = make_engine(
        "mkfifo /tmp/go; echo up; read line; exit 9", containerdStdin="stdin", host_pid=host_pid
    )
    stdout, _stderr = engine.run_attached()
    waiting.read_until(stdout, b"up\n")
    return engine


def say(container: Engine, line: str) -> None:
    """Give the server of a box a line to say."""
    root = Path(f"/proc/{(container.dir / 'pid').read_text()}/root")
    with open(root / "tmp/go", "w") as go:
        go.write(line + "\n")


def end(container: Engine) -> None:
    os.write(container.open("stdin", os.O_WRONLY), b"\n")
    assert container.wait_end() == 9
    assert container.leftovers() == []


@pytest.mark.parametrize("host_pid", [False, True])
@pytest.mark.parametrize("reloads", [0, 1])
def test_the_end_is_told_at_once_and_the_servers_lines_arrive(
    make_engine: MakeEngine, make_exec: MakeExec, *, host_pid: bool, reloads: int
) -> None:
    container = box(make_engine, host_pid=host_pid)
    process = make_exec(container, f"read go; {SERVER}", containerdStdin="stdin")
    stdout, stderr = process.run_attached()
    for _each in range(reloads):
        shim_log.reload(process.shim_pid, process.dir / "shim-log.json")
    os.write(process.open("stdin", os.O_WRONLY), b"go\n")
    waiting.read_until(stderr, b"\n")
    assert process.wait_end() == 3
    assert process.shim is not None
    assert process.shim.poll() is None
    shutil.rmtree(process.dir)  # the daemon's part, when it has heard of the end
    for n in range(3):
        say(container, str(n))
        assert waiting.read_until(stdout, b"\n") == b"log %d\n" % n
    end(container)
    assert waiting.read_to_end(stdout) == b""
    assert process.wait_shim() == 0


def test_a_server_that_ends_ends_its_shim(make_engine: MakeEngine, make_exec: MakeExec) -> None:
    container = box(make_engine)
    process = make_exec(container, SERVER)
    stdout, _stderr = process.run_attached()
    assert process.wait_end() == 3
    say(container, "x")
    assert waiting.read_until(stdout, b"\n") == b"log x\n"
    say(container, "quit")
    assert waiting.read_to_end(stdout) == b""
    assert process.wait_shim() == 0
    assert process.log("warn") == []
    end(container)


def test_a_stop_of_the_shim_hangs_up_on_the_others(
    make_engine: MakeEngine, make_exec: MakeExec
) -> None:
    container = box(make_engine)
    process = make_exec(container, SERVER)
    stdout, _stderr = process.run_attached()
    assert process.wait_end() == 3
    os.kill(process.shim_pid, signal.SIGTERM)
    assert waiting.read_to_end(stdout) == b""
    assert process.wait_shim() == 0
    assert "holds it open" in process.log("warn")[0]
    end(container)


def test_a_terminal_of_an_exec_that_others_have(
    make_engine: MakeEngine, make_exec: MakeExec
) -> None:
    container = box(make_engine)
    server = (
        "trap '' HUP; (while read line <&3; do echo log $line; done) 3<>/tmp/go & echo up; exit 3"
    )
    process = make_exec(container, server, terminal=True, containerdStderr="")
    (stdout,) = process.run_attached()
    assert waiting.read_until(stdout, b"up\r\n") == b"up\r\n"
    assert process.wait_end() == 3
    say(container, "x")
    assert waiting.read_until(stdout, b"\n") == b"log x\r\n"
    end(container)
    assert waiting.read_to_end(stdout) == b""
    assert process.wait_shim() == 0


@pytest.mark.parametrize("whose", ["nobody's", "another's", "no number"])
def test_without_a_container_that_can_be_seen_the_bounds_hold(
    make_engine: MakeEngine, make_exec: MakeExec, whose: str
) -> None:
    """A pid that another process has got since is not the container."""
    container = box(make_engine)
    process = make_exec(container, SERVER)
    stdout, _stderr = process.attach("stdout", "stderr")
    pid_file = container.dir / "pid"
    pid = pid_file.read_text()
    process.launch()
    process.shim_pid  # noqa: B018 -- it is there: whoever comes now is younger
    stranger = os.fork()
    if stranger == 0:
        signal.pause()
    try:
        wrong = {"nobody's": "4194304000", "another's": str(stranger), "no number": "x"}[whose]
        pid_file.write_text(wrong)
        assert process.wait_end() == 3
        assert waiting.read_to_end(stdout) == b""
        assert process.wait_shim() == 0
        assert "holds it open" in process.log("warn")[0]
    finally:
        os.kill(stranger, signal.SIGKILL)
        os.waitpid(stranger, 0)
        pid_file.write_text(pid)
    end(container)


# A client that has left.


@pytest.mark.parametrize("lines", [1, 200_000, 2_000_000])
def test_a_client_that_has_left_is_not_waited_for(make_engine: MakeEngine, lines: int) -> None:
    """1 line: in its fifo. 200,000: in the pipe, too. 2,000,000: the container waits to the end."""
    end_ = "exit 7" if lines < 1_000_000 else "read line; exit 7"
    engine = make_engine(f"(seq 1 {lines} &) ; read line; {end_}", containerdStdin="stdin")
    stdout, _stderr = engine.run_attached()
    waiting.wait_readable(stdout)
    engine.close("stdout")
    os.write(engine.open("stdin", os.O_WRONLY), b"\n\n")
    assert engine.wait_end() == 7
    assert engine.wait_shim() == 0
    assert not any("the client does not read it" in message for message in engine.log("warn"))
    told = engine.log("warn")
    assert any("never read" in message or "dropped" in message for message in told), told
    assert engine.leftovers() == []
