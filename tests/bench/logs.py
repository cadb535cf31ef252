"""A container fills a log: `cri:` beside conmon's k8s-file, on a file system in memory.

Both sides run the same container with runc. The clock runs from the word "go" until the log has
at least all the bytes that were written, with their heads.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.harness import bundles
from tests.harness.engine import FORKSHIM

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BLOCK_BYTES = 32 << 20
_MEMORY = "/dev/shm"
_LEAST_HEAD_BYTES = len("2016-10-06T00:17:09.669794202Z stdout F ")
_SCRIPT = "read go < /tmp/c/go; for i in $(seq {blocks}); do cat /tmp/c/block; done"
_LOOK_S = 0.001


def lines_block() -> bytes:
    """Return lines of 100 bytes."""
    return (b"x" * 99 + b"\n") * (BLOCK_BYTES // 100)


def endless_block() -> bytes:
    """Return bytes without a newline."""
    return bytes(range(32, 127)) * (BLOCK_BYTES // 95)


@dataclass(frozen=True)
class Logs:
    """One kind of content; each method is one measurement, in MB/s of content."""

    rootfs: Path
    block: bytes
    blocks: int

    def forkshim(self) -> float:
        """`forkshim run --log cri:`."""
        with self._site() as (directory, bundle):
            command = forkshim_command(directory, bundle, f"cri:{directory / 'log'}")
            with subprocess.Popen(command) as supervisor:
                rate = self._measure(directory)
                assert supervisor.wait() == 0
            return rate

    def conmon(self) -> float:
        """Conmon with a k8s-file."""
        with (
            self._site() as (directory, bundle),
            conmon(directory, bundle, f"k8s-file:{directory / 'log'}"),
        ):
            return self._measure(directory)

    @contextlib.contextmanager
    def _site(self) -> Iterator[tuple[Path, Path]]:
        with tempfile.TemporaryDirectory(dir=_MEMORY) as name:
            directory = Path(name)
            script = _SCRIPT.format(blocks=self.blocks)
            yield directory, make_site(directory, self.rootfs, self.block, script)

    def _measure(self, directory: Path) -> float:
        content = len(self.block) * self.blocks
        lines = self.block.count(b"\n") * self.blocks
        wanted = content + lines * _LEAST_HEAD_BYTES
        let_go(directory)
        began = time.perf_counter()
        while not _size(directory / "log") >= wanted:
            time.sleep(_LOOK_S)
        return content / 1e6 / (time.perf_counter() - began)


def make_site(directory: Path, rootfs: Path, block: bytes, script: str) -> Path:
    """Make a bundle whose container finds a fifo `go` and the file `block` in /tmp/c."""
    shared = directory / "shared"
    shared.mkdir()
    os.mkfifo(shared / "go")
    (shared / "block").write_bytes(block)
    mount = bundles.bind(shared, "/tmp/c", "ro")
    document = bundles.config(rootfs, bundles.shell(script), mounts=[mount])
    return bundles.make_bundle(directory / "bundle", document)


def let_go(directory: Path) -> None:
    """Wait until the container waits for its word, and give it."""
    (directory / "shared/go").write_text("go\n")


def forkshim_command(directory: Path, bundle: Path, sink: str) -> Sequence[str | Path]:
    """Return the command that runs the bundle."""
    options: list[str | Path] = ["--root", directory / "root", "--bundle", bundle, "--log", sink]
    return [FORKSHIM, "run", *options, bundles.fresh_id("bench")]


@contextlib.contextmanager
def conmon(directory: Path, bundle: Path, log: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the bundle under conmon, as Podman and CRI-O do, to its end."""
    container_id = bundles.fresh_id("conmon")
    pid_file = directory / "pid"
    words: list[str | Path] = ["--sync", "-c", container_id, "-u", container_id]
    words += ["-n", container_id, "-r", "/usr/sbin/runc", "-b", bundle, "-p", pid_file, "-l", log]
    exits = directory / "exits"
    exits.mkdir()
    words += ["--exit-dir", exits, "--socket-dir-path", directory]
    null = subprocess.DEVNULL
    try:
        with subprocess.Popen(["conmon", *words], stdin=null, stdout=null, stderr=null) as monitor:
            while _size(pid_file) <= 0:
                time.sleep(_LOOK_S)
            subprocess.run(["runc", "start", container_id], check=True)
            yield monitor
            monitor.wait()
    finally:
        subprocess.run(["runc", "delete", "--force", container_id], check=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
