"""Workers whose `forkshim-shim` was killed: nobody can adopt them, and each comes to its end."""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import TYPE_CHECKING

import pytest

from supervisor.linux import fds
from tests.harness import runtime_calls, waiting

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.engine import Engine
    from tests.runtime.conftest import MakeEngine

pytestmark = pytest.mark.runc

SINKS = {
    "fifo": "stdout",
    "fifo, drop-new": "path,policy=drop-new:{}/stdout",
    "fifo, drop-old": "path,policy=drop-old:{}/stdout",
    "file": "file:{}/log",
    "file, drop-new": "file,policy=drop-new:{}/log",
    "file that rotates": "file,max-size=1M:{}/log",
    "existing file": "path:{}/existing",
    "cri": "cri:{}/log",
    "full device": "path:/dev/full",
    "full device, drop-new": "path,policy=drop-new:/dev/full",
    "null": "null",
}


def kill_shim(engine: Engine) -> list[int]:
    """Kill the shim as a person would; returns its workers."""
    workers = [
        pid
        for pid in waiting.children_of(engine.shim_pid)
        if waiting.title_of(pid).startswith("forkshim: ")
    ]
    os.kill(engine.shim_pid, signal.SIGKILL)
    waiting.wait_hangup(engine.exit_fd)
    return workers


def _is_full(client: int) -> bool:
    writer = fds.reopen(client, os.O_WRONLY)
    try:
        return not fds.is_writable(writer.fileno())
    finally:
        writer.close()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("terminal", [False, True], ids=["", "terminal"])
@pytest.mark.parametrize("sink", SINKS.values(), ids=SINKS)
def test_without_a_client_every_worker_ends(
    make_engine: MakeEngine, tmp_path: Path, sink: str, when: str, *, terminal: bool
) -> None:
    (tmp_path / "existing").touch()
    if "{}/stdout" in sink:
        os.mkfifo(tmp_path / "stdout")
    engine = make_engine(
        "echo up >&2; seq 1 400000; sleep 1000",
        terminal=terminal,
        containerdStdin="stdin",
        containerdStdout=sink.format(tmp_path),
        containerdStderr="" if terminal else "stderr",
    )
    client = -1
    if "{}/stdout" in sink:
        client = os.open(tmp_path / "stdout", os.O_RDONLY | os.O_NONBLOCK)
    elif sink == "stdout":
        client = os.dup(engine.attach("stdout")[0])
        engine.close("stdout")
    if not terminal:
        engine.attach("stderr")
    pid = engine.run()
    try:
        if client >= 0:  # its worker waits for room, or has bytes that wait for it
            waiting.wait_true(partial(_is_full, client))
        elif not terminal:
            waiting.read_until(engine.fd("stderr"), b"up\n")
        if client >= 0 and when == "before":
            os.close(client)
        if not terminal:
            engine.close("stderr")
        workers = kill_shim(engine)
        os.kill(pid, signal.SIGKILL)
        waiting.wait_process(pid)
        runtime_calls.delete(engine.id)
        if client >= 0 and when == "after":
            os.close(client)
        for worker in workers:
            waiting.wait_process(worker, limit_s=15)
    finally:
        for worker in waiting.children_of(os.getpid()):
            if engine.id in waiting.title_of(worker) and waiting.is_alive(worker):
                os.kill(worker, signal.SIGKILL)


def test_a_client_that_reads_has_everything(make_engine: MakeEngine) -> None:
    """Strangers may send the workers the signal that tells them of their parent's death."""
    count = 400_000
    engine = make_engine(
        f"read up; echo up; echo up >&2; read go; seq 1 {count}; echo end >&2",
        containerdStdin="stdin",
    )
    stdout, stderr = engine.run_attached()
    stdin = engine.open("stdin", os.O_WRONLY)
    os.write(stdin, b"up\n")
    for fd in (stdout, stderr):
        assert waiting.read_until(fd, b"\n") == b"up\n"
    for stream in ("stdin", "stdout", "stderr"):
        os.kill(waiting.wait_worker(engine.shim_pid, stream), signal.SIGHUP)
    workers = kill_shim(engine)
    os.write(stdin, b"go\n")
    assert waiting.read_to_end(stdout) == b"".join(b"%d\n" % n for n in range(1, count + 1))
    assert waiting.read_to_end(stderr) == b"end\n"
    for worker in workers:
        waiting.wait_process(worker)


def test_a_client_that_leaves_later_ends_the_worker_then(make_engine: MakeEngine) -> None:
    engine = make_engine("while :; do echo more; done")
    stdout, _stderr = engine.run_attached()
    pid = int((engine.dir / "pid").read_text())
    worker = waiting.wait_worker(engine.shim_pid, "stdout")
    workers = kill_shim(engine)
    for _each in range(100):
        assert waiting.read_until(stdout, b"more\n")
    engine.close("stdout")
    waiting.wait_process(worker)
    os.kill(pid, signal.SIGKILL)
    for each in workers:
        waiting.wait_process(each)
