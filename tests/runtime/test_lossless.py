"""A worker killed at any instant, hundreds of times, costs nothing: not a byte, not the container.

The kills are placed by a seeded generator at positions in the stream, not in time: a
failing run can be repeated with the same FORKSHIM_SEED.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, waiting
from tests.harness.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.runc, pytest.mark.slow, pytest.mark.timeout(300)]

KILLS = 500
BLOCK_BYTES = (61 << 20) + 12_345
BLOCKS = 34
TOTAL_BYTES = BLOCK_BYTES * BLOCKS  # a little over 2 GiB
SEED = int(os.environ.get("FORKSHIM_SEED", "20161109"))


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of random bytes, of which a stream is made by repeating it."""
    path = tmp_path_factory.mktemp("data") / "block"
    path.write_bytes(random.Random(SEED).randbytes(BLOCK_BYTES))
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def wanted_hash(block: Path) -> str:
    data = block.read_bytes()
    whole = hashlib.sha256()
    for _ in range(BLOCKS):
        whole.update(data)
    return whole.hexdigest()


class Killer:
    """Kills the worker of one stream whenever the stream has come to the next position."""

    def __init__(self, shim_pid: int, stream: str, stream_bytes: int) -> None:
        self._shim_pid = shim_pid
        self._stream = stream
        # As many positions as make KILLS likely, although a worker may be between two lives.
        self._random = random.Random(SEED)
        self.mean_gap = stream_bytes // (KILLS * 2)
        self._next = 0
        self._can_end = False
        self.kills = 0

    def pass_position(self, position: int) -> None:
        """Kill, if it is time; a missing worker is being replaced, or has come to its end."""
        if position < self._next:
            return
        pid = self._worker()
        if pid is None:
            return
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # it has come to its end just now
        self.kills += 1
        self._next = position + self._random.randrange(2 * self.mean_gap)

    def _worker(self) -> int | None:
        """Wait for a worker, or a reader who is behind would pass many positions meanwhile."""
        if self._can_end:
            return waiting.worker_of(self._shim_pid, self._stream)
        try:
            return waiting.wait_worker(self._shim_pid, self._stream, limit_s=5.0)
        except TimeoutError:
            self._can_end = True  # all that is left is in the pipes
            return None


def read_all(fd: int, killer: Killer) -> tuple[int, str]:
    """Read to end of file; returns the count and the hash."""
    digest, count = hashlib.sha256(), 0
    while True:
        waiting.wait_readable(fd)
        chunk = os.read(fd, min(1 << 18, killer.mean_gap))  # or one read would pass many of them
        if not chunk:
            return count, digest.hexdigest()
        digest.update(chunk)
        count += len(chunk)
        killer.pass_position(count)


def test_two_gib_of_stdout_survive_500_kills_of_the_worker(
    tmp_path: Path, rootfs: Path, block: Path, wanted_hash: str
) -> None:
    script = f"i=0; while [ $i -lt {BLOCKS} ]; do cat /tmp/block; i=$((i+1)); done; exit 23"
    with Engine(
        tmp_path / "state", bundles.fresh_id("out"), _bundle(tmp_path, rootfs, block, script)
    ) as engine:
        stdout, _stderr = engine.attach("stdout", "stderr")
        engine.run()
        assert engine.shim is not None
        killer = Killer(engine.shim.pid, "stdout", TOTAL_BYTES)
        assert read_all(stdout, killer) == (TOTAL_BYTES, wanted_hash)
        assert killer.kills >= KILLS
        assert engine.wait_end() == 23
        assert engine.wait_shim() == 0


def test_two_gib_of_stdin_survive_500_kills_of_the_worker(
    tmp_path: Path, rootfs: Path, block: Path, wanted_hash: str
) -> None:
    bundle = _bundle(tmp_path, rootfs, block, "cat; exit 24")
    with Engine(
        tmp_path / "state", bundles.fresh_id("in"), bundle, containerdStdin="stdin"
    ) as engine:
        stdout, _stderr = engine.attach("stdout", "stderr")
        engine.run()
        assert engine.shim is not None
        feed = f'for i in $(seq {BLOCKS}); do cat "$1" || exit 1; done > "$2"'
        with subprocess.Popen(["sh", "-c", feed, "feed", block, engine.dir / "stdin"]) as client:
            try:
                waiting.wait_readable(stdout)  # the client has the fifo open
                engine.control("0 0 0\n")
                killer = Killer(engine.shim.pid, "stdin", TOTAL_BYTES)
                assert read_all(stdout, killer) == (TOTAL_BYTES, wanted_hash)
                assert killer.kills >= KILLS
                assert client.wait() == 0
            finally:
                client.kill()  # a failure would wait for it, and it for a reader
        assert engine.wait_end() == 24
        assert engine.wait_shim() == 0


def test_numbered_lines_on_a_console_survive_500_kills_of_the_worker(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    lines = 2_000_000
    bundle = make_bundle(f"read go; seq {lines}; exit 25", terminal=True)
    with Engine(
        tmp_path / "state",
        bundles.fresh_id("tty"),
        bundle,
        terminal=True,
        containerdStdin="stdin",
        containerdStderr="",
    ) as engine:
        (stdout,) = engine.attach("stdout")
        engine.run()
        assert engine.shim is not None
        os.write(engine.open("stdin", os.O_WRONLY), b"go\n")
        wanted = b"go\r\n" + b"".join(b"%d\r\n" % i for i in range(1, lines + 1))
        killer = Killer(engine.shim.pid, "console", len(wanted))
        count, digest = read_all(stdout, killer)
        assert (count, digest) == (len(wanted), hashlib.sha256(wanted).hexdigest())
        assert killer.kills >= KILLS
        assert engine.wait_end() == 25
        assert engine.wait_shim() == 0


def test_a_plain_file_gets_every_byte_once_through_500_kills(
    tmp_path: Path, rootfs: Path, block: Path
) -> None:
    """The file's offset is the memory: a successor goes on where its predecessor stopped."""
    log = tmp_path / "log"
    part = tmp_path / "part"
    part.write_bytes(block.read_bytes()[: (4 << 20) + 321])
    size = part.stat().st_size
    with Engine(
        tmp_path / "state",
        bundles.fresh_id("file"),
        _bundle(tmp_path, rootfs, part, "while read go; do cat /tmp/block; done"),
        containerdStdin="stdin",
        containerdStdout=f"file:{log}",
        containerdStderr="",
    ) as engine:
        engine.run()
        assert engine.shim is not None
        stdin = engine.open("stdin", os.O_WRONLY)
        killer = Killer(engine.shim.pid, "stdout", size * KILLS // 4)
        parts = 0
        while killer.kills < KILLS:
            os.write(stdin, b"go\n")
            parts += 1
            while (copied := log.stat().st_size) < parts * size:
                killer.pass_position(copied)
        engine.close("stdin")
        engine.control("0 0 0\n")
        assert engine.wait_end() == 0
        digest = hashlib.sha256()
        for _ in range(parts):
            digest.update(part.read_bytes())
        with open(log, "rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == digest.hexdigest()
        log.unlink()


def _bundle(tmp_path: Path, rootfs: Path, block: Path, script: str) -> Path:
    mount = bundles.bind(block, "/tmp/block", "ro")
    document = bundles.config(rootfs, bundles.shell(script), mounts=[mount])
    return bundles.make_bundle(tmp_path / "bundle", document)
