"""A console that nobody has open for a moment: a getty, vhangup(2), a daemon that reopens it."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import bundles, runtime_calls, shim_log, waiting
from tests.harness.daemon import Daemon
from tests.harness.engine import FORKSHIM, Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.runc

LINES = b"".join(b"%d\r\n" % n for n in range(1, 5001))
CLOSES = "echo ready; exec 0<&- 1>&- 2>&-; read word < /tmp/go"
OPENS = "exec </dev/console >/dev/console 2>&1; seq 1 5000"
HANGS_UP = """
import ctypes, os, signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
print("ready", flush=True)
open("/tmp/go").read(1)
assert ctypes.CDLL(None, use_errno=True).vhangup() == 0, ctypes.get_errno()
open("/proc/self/comm", "w").write("hung up")
open("/tmp/go").read(1)
console = os.open("/dev/console", os.O_RDWR)
for fd in range(3):
    os.dup2(console, fd)
print(*range(1, 5001), sep="\\n", flush=True)
os._exit(7)
"""


class Gate:
    """A fifo that the container reads a line from before it opens its console again."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "go"
        os.mkfifo(self.path)
        self.mount = bundles.bind(self.path, "/tmp/go")
        self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)

    def let_through(self) -> None:
        os.write(self._fd, b"go\n")

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path)
    yield made
    made.close()


@pytest.fixture
def bundle(tmp_path: Path, rootfs: Path, gate: Gate) -> Path:
    args = bundles.shell(f"{CLOSES}; {OPENS}; exit 7")
    document = bundles.config(rootfs, args, terminal=True, mounts=[gate.mount])
    return bundles.make_bundle(tmp_path / "bundle", document)


def wait_closed(pid: int) -> None:
    """Wait until the process has no terminal open."""
    waiting.wait_true(lambda: not any("pts" in file for file in _files(pid)))


def _files(pid: int) -> list[str]:
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except FileNotFoundError:
            continue
    return found


@pytest.mark.parametrize("times", [0, 2], ids=["", "reloaded"])
def test_what_comes_after_a_reopened_console_arrives(
    tmp_path: Path, bundle: Path, gate: Gate, times: int
) -> None:
    with Engine(
        tmp_path / "state",
        bundles.fresh_id("reopens"),
        bundle,
        terminal=True,
        containerdStdin="stdin",
        containerdStderr="",
    ) as engine:
        (stdout,) = engine.attach("stdout")
        pid = engine.run()
        waiting.read_until(stdout, b"ready\r\n")
        wait_closed(pid)
        for _again in range(times):
            shim_log.reload(engine.shim_pid, engine.dir / "shim-log.json")
        gate.let_through()
        assert waiting.read_to_end(stdout) == LINES
        assert engine.wait_end() == 7
        assert engine.wait_shim() == 0
        assert engine.log("warn") == []
        assert engine.leftovers() == []


def test_a_console_that_was_hung_up_is_none_that_has_ended(tmp_path: Path, gate: Gate) -> None:
    rootfs, mounts = bundles.make_host_rootfs(tmp_path / "rootfs")
    args = ["/usr/bin/python3", "-ISc", HANGS_UP]
    document: dict[str, Any] = bundles.config(
        rootfs, args, terminal=True, mounts=[*mounts, gate.mount]
    )
    for rights in document["process"]["capabilities"].values():
        rights.append("CAP_SYS_TTY_CONFIG")
    with Engine(
        tmp_path / "state",
        bundles.fresh_id("hangup"),
        bundles.make_bundle(tmp_path / "bundle", document),
        terminal=True,
        containerdStderr="",
    ) as engine:
        (stdout,) = engine.attach("stdout")
        pid = engine.run()
        waiting.read_until(stdout, b"ready\r\n")  # first: vhangup(2) drops what is on its way
        gate.let_through()
        waiting.wait_true(lambda: Path(f"/proc/{pid}/comm").read_text() == "hung up\n")
        gate.let_through()
        assert waiting.read_to_end(stdout) == LINES
        assert engine.wait_end() == 7
        assert engine.log("warn") == []


def test_input_reaches_a_console_that_was_closed_for_a_moment(
    tmp_path: Path, rootfs: Path, gate: Gate
) -> None:
    script = f"{CLOSES}; exec </dev/console >/dev/console; echo open; read line; echo got $line"
    document = bundles.config(rootfs, bundles.shell(script), terminal=True, mounts=[gate.mount])
    with Engine(
        tmp_path / "state",
        bundles.fresh_id("input"),
        bundles.make_bundle(tmp_path / "bundle", document),
        terminal=True,
        containerdStdin="stdin",
        containerdStderr="",
    ) as engine:
        (stdout,) = engine.attach("stdout")
        pid = engine.run()
        waiting.read_until(stdout, b"ready\r\n")
        wait_closed(pid)
        gate.let_through()
        waiting.read_until(stdout, b"open\r\n")
        os.write(engine.open("stdin", os.O_WRONLY), b"words\n")
        assert b"got words" in waiting.read_to_end(stdout)
        assert engine.wait_end() == 0


def test_a_run_with_a_console_that_is_closed_for_a_moment(
    tmp_path: Path, bundle: Path, gate: Gate
) -> None:
    container_id = bundles.fresh_id("run")
    with subprocess.Popen(
        [FORKSHIM, "run", "--root", tmp_path / "root", "--bundle", bundle, container_id],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == b"ready\r\n"
            wait_closed(int((tmp_path / "root" / container_id / "init/pid").read_text()))
            gate.let_through()
            assert process.stdout.read() == LINES
            assert process.wait(waiting.LIMIT_S) == 7
            assert process.stderr.read() == b""
        finally:
            process.kill()
            runtime_calls.delete(container_id)


@pytest.mark.parametrize("when", ["after the adoption", "while nobody supervises"])
def test_an_adopter_has_what_comes_after_a_reopened_console(
    tmp_path: Path, bundle: Path, gate: Gate, when: str
) -> None:
    log = tmp_path / "log"
    with ExitStack() as stack:
        daemon = Daemon(tmp_path, bundle, "--log", f"file:{log}")
        stack.callback(daemon.close)
        waiting.wait_true(lambda: log.exists() and log.read_bytes() == b"ready\r\n")
        wait_closed(daemon.payload_pid)
        daemon.kill()
        if when == "after the adoption":
            daemon.adopt()
        gate.let_through()
        if when != "after the adoption":
            daemon.adopt()
        waiting.wait_true(lambda: log.read_bytes().endswith(b"5000\r\n"))
        assert log.read_bytes() == b"ready\r\n" + LINES
        daemon.wait_end()
        assert (daemon.state_dir / "exitStatus").read_text() in ("7", "unknown")


def test_the_end_of_a_container_is_the_end_of_its_console(
    make_console: Callable[[str], Engine],
) -> None:
    """Without its death the console could be opened again; after it the drain is no wait."""
    engine = make_console("echo ready; exec 0<&- 1>&- 2>&-; exit 3")
    (stdout,) = engine.attach("stdout")
    engine.run()
    assert waiting.read_to_end(stdout) == b"ready\r\n"
    assert engine.wait_end() == 3
    assert engine.log("warn") == []


@pytest.fixture
def make_console(tmp_path: Path, rootfs: Path) -> Iterator[Callable[[str], Engine]]:
    with ExitStack() as stack:

        def make(script: str) -> Engine:
            document = bundles.config(rootfs, bundles.shell(script), terminal=True)
            bundle = bundles.make_bundle(tmp_path / "console", document)
            options: dict[str, Any] = {"terminal": True, "containerdStderr": ""}
            return stack.enter_context(
                Engine(tmp_path / "state", bundles.fresh_id("console"), bundle, **options)
            )

        yield make
