"""A sink that takes nothing, under each policy: what the container sees, and what is counted."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import bundles, waiting
from tests.harness.daemon import Daemon
from tests.harness.rewriting import cri_streams

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.runc, pytest.mark.timeout(120)]

SCRIPT = (
    "cat /tmp/shared/block; echo > /tmp/shared/said; read x < /tmp/shared/go; echo bye; exit 21"
)
LAST_WORDS = "read x < /tmp/shared/go; cat /tmp/shared/block; exit 21"
BLOCK = b"".join(b"line %06d %s\n" % (number, b"." * (number % 90)) for number in range(100_000))
SAID = BLOCK + b"bye\n"
DISK_BYTES = 1 << 20


class Speaker(Daemon):
    """A container that says BLOCK, tells that it has, and ends when it is told to."""

    def __init__(self, directory: Path, rootfs: Path, sink: str, script: str = SCRIPT) -> None:
        self.shared = directory / "shared"
        self.shared.mkdir()
        (self.shared / "block").write_bytes(BLOCK)
        os.mkfifo(self.shared / "go")
        mount = bundles.bind(self.shared, "/tmp/shared")
        document = bundles.config(rootfs, bundles.shell(script), mounts=[mount])
        bundle = bundles.make_bundle(directory / "bundle", document)
        super().__init__(directory, bundle, "--log", sink)

    @property
    def has_said_all(self) -> bool:
        return (self.shared / "said").exists()

    def wait_said(self) -> None:
        waiting.wait_path(self.shared / "said", lambda path: path.exists())

    def wait_warning(self, words: str) -> str:
        """Wait for a line of the log with these words; returns it."""
        path = self.state_dir / "shim-log.json"
        waiting.wait_path(path, lambda path: words in path.read_text())
        return next(message for message in self.log("warn") if words in message)

    def tell_to_end(self) -> None:
        (self.shared / "go").write_text("\n")

    def end(self) -> dict[str, Any]:
        """Let it end; returns what the exit record says of stdout."""
        self.tell_to_end()
        assert self.wait_end() == "21"
        record = self.record()
        assert (record["status"], record["exitCode"]) == (21, 21)
        stdout: dict[str, Any] = record["streams"]["stdout"]
        return stdout

    def succeed(self) -> None:
        """Kill the supervisor, and have another one adopt the container."""
        self.kill()
        self.adopt()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Disk:
    """A file system that is full soon."""

    def __init__(self, point: Path, stack: ExitStack) -> None:
        self.point = point
        point.mkdir()
        options = f"size={DISK_BYTES}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", point], check=True)
        stack.callback(lambda: subprocess.run(["umount", point], check=True))

    def grow(self) -> None:
        subprocess.run(["mount", "-o", "remount,size=64m", self.point], check=True)


def _content(kind: str, path: Path) -> bytes:
    content = path.read_bytes()
    return cri_streams(content)["stdout"] if kind == "cri" else content


def _check(content: bytes, stdout: dict[str, Any]) -> None:
    """See that each byte is in the sink or was counted, and that whole lines were dropped."""
    assert stdout["bytes"] == len(content)
    assert stdout["bytes"] + stdout["droppedBytes"] == len(SAID)
    assert content.count(b"\n") + stdout["droppedLines"] == SAID.count(b"\n")
    rest = iter(SAID.splitlines())
    assert all(line in rest for line in content.splitlines())


@pytest.mark.parametrize("kind", ["file", "cri"])
def test_with_block_the_container_waits_for_a_full_disk(
    tmp_path: Path, rootfs: Path, stack: ExitStack, kind: str
) -> None:
    disk = Disk(tmp_path / "disk", stack)
    daemon = Speaker(tmp_path, rootfs, f"{kind},policy=block:{disk.point}/log")
    stack.callback(daemon.close)
    daemon.wait_warning("No space left on device (ENOSPC)")
    assert not daemon.has_said_all
    disk.grow()
    daemon.wait_said()
    stdout = daemon.end()
    assert _content(kind, disk.point / "log") == SAID
    assert (stdout["bytes"], stdout["droppedBytes"], stdout["droppedLines"]) == (len(SAID), 0, 0)


@pytest.mark.parametrize("policy", ["drop-new", "drop-old"])
@pytest.mark.parametrize("kind", ["file", "cri"])
def test_with_a_drop_policy_it_does_not_and_what_is_dropped_is_counted(
    tmp_path: Path, rootfs: Path, stack: ExitStack, kind: str, policy: str
) -> None:
    disk = Disk(tmp_path / "disk", stack)
    daemon = Speaker(tmp_path, rootfs, f"{kind},policy={policy}:{disk.point}/log")
    stack.callback(daemon.close)
    daemon.wait_said()
    failed = daemon.wait_warning("No space left on device (ENOSPC)")
    assert failed.endswith(
        "the worker tries again at least every 5 s; lines are dropped when the buffer is full"
    )
    disk.grow()
    told = daemon.wait_warning(": dropped ")
    stdout = daemon.end()
    content = _content(kind, disk.point / "log")
    _check(content, stdout)
    assert told == (
        f"stdout {disk.point}/log: dropped {stdout['droppedBytes']} bytes, "
        f"{stdout['droppedLines']} lines"
    )
    assert content.endswith(b"bye\n")
    assert content.startswith(BLOCK[:1000])
    assert (BLOCK[-1000:] in content) == (policy == "drop-old")


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["drop-new", "drop-old"])
def test_what_a_disk_that_stays_full_never_took_is_counted_as_well(
    tmp_path: Path, rootfs: Path, stack: ExitStack, policy: str
) -> None:
    disk = Disk(tmp_path / "disk", stack)
    daemon = Speaker(tmp_path, rootfs, f"file,policy={policy}:{disk.point}/log")
    stack.callback(daemon.close)
    daemon.wait_said()
    stdout = daemon.end()
    _check((disk.point / "log").read_bytes(), stdout)
    assert stdout["droppedBytes"] > 2 << 20


@pytest.mark.parametrize("policy", ["drop-new", "drop-old"])
def test_a_client_that_stops_reading_does_not_stop_the_container(
    tmp_path: Path, rootfs: Path, stack: ExitStack, policy: str
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    stack.callback(os.close, reader)
    daemon = Speaker(tmp_path, rootfs, f"path,policy={policy}:{fifo}")
    stack.callback(daemon.close)
    daemon.wait_said()  # and nobody has read a byte
    daemon.tell_to_end()
    content = bytearray()
    while True:
        waiting.wait_readable(reader)
        chunk = os.read(reader, 1 << 20)
        if not chunk:
            break
        content += chunk
    (daemon.shared / "go").unlink()
    daemon.wait_end()
    stdout = daemon.record()["streams"]["stdout"]
    _check(bytes(content), stdout)
    assert stdout["droppedBytes"] > 0


def test_with_block_a_full_disk_is_no_reason_to_lose_the_container(
    tmp_path: Path, rootfs: Path, stack: ExitStack
) -> None:
    disk = Disk(tmp_path / "disk", stack)
    daemon = Speaker(tmp_path, rootfs, f"file:{disk.point}/log")
    stack.callback(daemon.close)
    daemon.wait_warning("No space left on device (ENOSPC)")
    for _each in range(3):
        waiting.wait_worker(daemon.pid, "stdout")  # it tries, or waits to try again
        daemon.succeed()
    disk.grow()
    daemon.wait_said()
    stdout = daemon.end()
    assert (disk.point / "log").read_bytes() == SAID
    assert (stdout["bytes"], stdout["droppedBytes"], stdout["droppedLines"]) == (len(SAID), 0, 0)


def test_the_policy_goes_on_under_another_supervisor(
    tmp_path: Path, rootfs: Path, stack: ExitStack
) -> None:
    """A reload and an adoption, while the disk is full: the counters are those of the stream."""
    disk = Disk(tmp_path / "disk", stack)
    daemon = Speaker(tmp_path, rootfs, f"cri,policy=drop-old:{disk.point}/log")
    stack.callback(daemon.close)
    daemon.wait_said()
    daemon.wait_warning("No space left on device (ENOSPC)")
    daemon.reload()
    daemon.succeed()
    disk.grow()
    daemon.wait_warning(": dropped ")
    stdout = daemon.end()
    _check(_content("cri", disk.point / "log"), stdout)
    assert stdout["droppedBytes"] > 0


def test_a_worker_that_somebody_has_stopped_takes_no_last_word_along(
    tmp_path: Path, rootfs: Path, stack: ExitStack
) -> None:
    """Without systemd's watchdog nobody looks at it before the end."""
    daemon = Speaker(tmp_path, rootfs, f"file:{tmp_path}/log", script=f"echo up; {LAST_WORDS}")
    stack.callback(daemon.close)
    (tmp_path / "shared" / "block").write_bytes(b"last words\n")
    stopped = waiting.wait_worker(daemon.pid, "stdout")
    os.kill(stopped, signal.SIGSTOP)
    waiting.wait_true(lambda: waiting.state_of(stopped) == "T")
    stdout = daemon.end()
    assert (tmp_path / "log").read_bytes() == b"up\nlast words\n"
    assert stdout == {"bytes": 14, "respawned": 1, "droppedBytes": 0, "droppedLines": 0}
    assert daemon.log("warn")[0] == f"stdout: worker {stopped} is stuck; killing and replacing it"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "file,max-size=1M", "cri"])
def test_what_a_full_disk_never_took_is_counted_with_block_as_well(
    tmp_path: Path, rootfs: Path, stack: ExitStack, kind: str
) -> None:
    disk = Disk(tmp_path / "disk", stack)
    said = BLOCK[: 600 << 10]
    daemon = Speaker(tmp_path, rootfs, f"{kind}:{disk.point}/log", script=LAST_WORDS)
    stack.callback(daemon.close)
    (tmp_path / "shared" / "block").write_bytes(said)
    with (disk.point / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, DISK_BYTES - (100 << 10))
    stdout = daemon.end()
    content = _content(kind, disk.point / "log")
    assert said.startswith(content)
    assert stdout["bytes"] == len(content)
    assert stdout["droppedBytes"] == len(said) - len(content) > 400 << 10
    assert stdout["droppedLines"] == said.count(b"\n") - content.count(b"\n")
