"""Real podman's clients of the attach socket: what they hear and say, also stopped or killed."""

from __future__ import annotations

import hashlib
import os
import pty
import random
import signal
import subprocess
import tempfile
import termios
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engines.podman import IMAGE, Podman, podman
from tests.harness import waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.engine, pytest.mark.process]


@pytest.fixture(scope="module")
def installed(rootfs: Path) -> Iterator[Podman]:
    with tempfile.TemporaryDirectory(prefix="pma-") as name, podman(Path(name), rootfs) as made:
        yield made


@pytest.fixture
def pm(installed: Podman) -> Iterator[Podman]:
    yield installed
    installed.run("rm", "--all", "--force", "--time", "0")


@contextmanager
def _started(pm: Podman, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run one podman command with pipes, and kill it at the end."""
    process = subprocess.Popen(
        pm.command(*words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


@contextmanager
def _on_terminal(pm: Podman, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run one podman command on a terminal of its own; yields it with the terminal's other end."""
    ptmx, pts = pty.openpty()
    process = subprocess.Popen(
        pm.command(*words), stdin=pts, stdout=pts, stderr=pts, start_new_session=True
    )
    os.close(pts)
    try:
        yield process, ptmx
    finally:
        process.kill()
        process.wait()
        os.close(ptmx)


def _read_until(fd: int, ending: bytes) -> bytes:
    said = b""
    while ending not in said:
        waiting.wait_readable(fd)
        said += os.read(fd, 65536)
    return said


def _wait_for_prompt(ptmx: int) -> None:
    """Wait until podman has made the terminal raw, too: it flushes what was typed before."""
    _read_until(ptmx, b"# ")
    waiting.wait_true(lambda: not termios.tcgetattr(ptmx)[3] & termios.ICANON)


def _id_of(pm: Podman, name: str) -> str:
    found: list[str] = []

    def is_there() -> bool:
        done = pm.run("inspect", "--format", "{{.Id}} {{.State.Running}}", name, check=False)
        found[:] = str(done.stdout).split()
        return found[1:] == ["true"]

    waiting.wait_true(is_there)
    return found[0]


def _workers(container_id: str) -> dict[str, int]:
    """Return the pids of a container's workers by stream."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                title = (entry / "cmdline").read_bytes().rstrip(b"\0").decode()
                if title.startswith(f"forkshim: {container_id} ["):
                    found[title.partition("[")[2].rstrip("]")] = int(entry.name)
    return found


def test_what_goes_in_comes_out(pm: Podman) -> None:
    content = random.Random(1).randbytes(8 << 20)
    done = subprocess.run(
        pm.command("run", "--rm", "-i", IMAGE, "cat"),
        input=content,
        capture_output=True,
        check=True,
        timeout=120,
    )
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(content).digest()


def test_stdout_and_stderr_stay_apart(pm: Podman) -> None:
    script = "echo out; echo err >&2; exit 7"
    pm.run("run", "-d", "--name", "c", IMAGE, "sleep", "1000")
    for words in (("run", "--rm", IMAGE), ("exec", "-i", "c")):
        done = pm.run(*words, "sh", "-c", script, check=False)
        assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)


def test_an_exec_hears_all_of_a_short_output(pm: Podman) -> None:
    """The client has connected before the process runs, however quick that is."""
    pm.run("run", "-d", "--name", "c", IMAGE, "sleep", "1000")
    for number in range(10):
        assert pm.out("exec", "c", "echo", str(number)) == str(number)
    content = random.Random(2).randbytes(2 << 20)
    done = subprocess.run(
        pm.command("exec", "-i", "c", "cat"), input=content, capture_output=True, check=True
    )
    assert done.stdout == content


def test_a_person_types_at_a_terminal(pm: Podman) -> None:
    with _on_terminal(pm, "run", "--rm", "-it", "--name", "t", IMAGE, "sh") as (process, ptmx):
        _wait_for_prompt(ptmx)
        os.write(ptmx, b"echo A$((40+2))\r")
        _read_until(ptmx, b"A42")
        with _on_terminal(pm, "exec", "-it", "t", "sh") as (inner, other):
            _wait_for_prompt(other)
            os.write(other, b"echo B$((40+2)); exit 5\r")
            _read_until(other, b"B42")
            assert inner.wait(60) == 5
        os.write(ptmx, b"exit 6\r")
        assert process.wait(60) == 6


def test_two_clients_hear_the_same_and_may_both_speak(pm: Podman) -> None:
    pm.run(
        "run", "-d", "-i", "--name", "c", IMAGE, "sh", "-c", "while read l; do echo got $l; done"
    )
    with _started(pm, "attach", "c") as first, _started(pm, "attach", "c") as second:
        assert first.stdin is not None
        assert second.stdin is not None
        assert first.stdout is not None
        assert second.stdout is not None
        container_id = _id_of(pm, "c")
        bundle = Path(pm.inspect("c", ".StaticDir"))
        assert (bundle / "attach").is_socket()
        waiting.wait_true(lambda: _connections(bundle / "attach") == 2)
        first.stdin.write(b"one\n")
        first.stdin.flush()
        for client in (first, second):
            assert client.stdout is not None
            assert client.stdout.readline() == b"got one\n"
        second.stdin.write(b"two\n")
        second.stdin.flush()
        for client in (first, second):
            assert client.stdout is not None
            assert client.stdout.readline() == b"got two\n"
        killed = _workers(container_id)
        for pid in killed.values():
            os.kill(pid, signal.SIGKILL)
        waiting.wait_true(lambda: not set(killed.values()) & set(_workers(container_id).values()))
        second.stdin.write(b"after kills\n")
        second.stdin.close()
        for client in (first, second):
            assert client.stdout is not None
            # A packet may be repeated by a kill. podman attach ends with a line of its own.
            heard = client.stdout.read().removeprefix(b"got two\n")
            assert heard == b"got after kills\n\n"
        assert pm.out("logs", "c") == "got one\ngot two\ngot after kills"


def _connections(path: Path) -> int:
    """Return how many connections a socket has. Source: proc(5), /proc/net/unix, state 03."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    ending = f"/{path.name}"
    fields = [line.split() for line in lines]
    return sum(each[5] == "03" and each[-1].endswith(ending) and len(each) == 8 for each in fields)


_MIB = 1 << 20
_KILLED_BYTES = 96 * _MIB


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_workers_lose_nothing_of_a_stream(pm: Podman) -> None:
    """Fault 1 of the table: conmon, killed, takes the container's output with it."""
    block = random.Random(3).randbytes(_MIB)
    sent = hashlib.sha256()
    got: list[bytes] = []
    with _started(pm, "run", "-i", "--name", "c", IMAGE, "cat") as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def write() -> None:
            for number in range(_KILLED_BYTES // _MIB):
                part = number.to_bytes(4, "big") + block[4:]
                sent.update(part)
                stdin.write(part)
            stdin.close()

        def read() -> None:
            while part := stdout.read(_MIB):
                got.append(part)

        threads = [threading.Thread(target=each) for each in (write, read)]
        for each in threads:
            each.start()
        container_id = _id_of(pm, "c")
        chance, kills = random.Random(5), 0
        while threads[0].is_alive():
            workers = list(_workers(container_id).values())
            if workers:
                with suppress(ProcessLookupError):
                    os.kill(chance.choice(workers), signal.SIGKILL)
                    kills += 1
            threads[1].join(0.01)
        for each in threads:
            each.join()
        assert process.wait(60) == 0
    content = b"".join(got)
    repeated = len(content) - _KILLED_BYTES
    assert kills > 20
    if repeated == 0:
        assert hashlib.sha256(content).digest() == sent.digest()
    else:  # a packet between its send(2) and its commit: at most one for each kill
        assert 0 < repeated <= 8192 * kills
    log = Path(pm.inspect("c", ".HostConfig.LogConfig.Path"))
    logged = b"".join(line.split(b" ", 3)[3] for line in log.read_bytes().split(b"\n") if line)
    assert len(logged) + _newlines(log) == _KILLED_BYTES


def _newlines(log: Path) -> int:
    return sum(b" F " in line[:48] for line in log.read_bytes().split(b"\n"))


_WRITER = "while :; do echo 0123456789012345678901234567890123456789; done"


def test_a_stopped_attach_client_harms_nobody(pm: Podman) -> None:
    """Fault 5 of the table: under conmon the container stops, and its end is never told."""
    pm.run("run", "-d", "--name", "c", IMAGE, "sh", "-c", _WRITER)
    log = Path(pm.inspect("c", ".HostConfig.LogConfig.Path"))
    waiting.wait_true(lambda: log.stat().st_size > 0)
    with _started(pm, "attach", "--no-stdin", "c") as client:
        assert client.stdout is not None
        client.stdout.readline()
        os.kill(client.pid, signal.SIGSTOP)
        before = log.stat().st_size
        # More than all pipes, the ring and the client's queue can hold together.
        waiting.wait_true(lambda: log.stat().st_size > before + 12 * _MIB)
        pm.run("stop", "--time", "0", "c")
        assert pm.inspect("c", ".State.Status") == "exited"
        assert waiting.state_of(client.pid) == "T"


def test_a_stopped_foreground_client_is_waited_for_until_the_container_ends(pm: Podman) -> None:
    """Fault 6 of the table: a consumer, as the reader of a pipe. The end waits 3 s for it."""
    with _started(pm, "run", "--name", "c", IMAGE, "sh", "-c", _WRITER) as client:
        assert client.stdout is not None
        client.stdout.readline()
        # The client holds podman's lock of the container until the start is written down.
        assert pm.inspect("c", ".State.Status") == "running"
        log = Path(pm.inspect("c", ".HostConfig.LogConfig.Path"))
        os.kill(client.pid, signal.SIGSTOP)
        sizes: list[int] = []

        def stands_still() -> bool:
            sizes.append(log.stat().st_size)
            return len(sizes) > 20 and len(set(sizes[-20:])) == 1

        waiting.wait_true(stands_still)
        pm.run("kill", "c")
        assert pm.out("wait", "c") == "137"
        assert waiting.state_of(client.pid) == "T"
        lines = log.read_bytes().splitlines()
        texts = {line.split(b" ", 3)[3] for line in lines[:-1]}
        assert texts == {b"0123456789012345678901234567890123456789"}
