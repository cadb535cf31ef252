"""A container writes to its stdout as fast as it can, and a reader drains it.

Both sides run the same container with runc, the same 1 MiB pipes and the same reader; the one
without a shim gives runc the pipe itself. The clock runs from the word "go" to the last byte.
CPU is what the supervisor and its workers used in that time (proc(5), schedstat).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.harness import bundles, waiting
from tests.harness.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Iterator

PIPE_BYTES = 1 << 20


@dataclass
class Bulk:
    """One bundle and one amount; each method is one measurement, in MB/s."""

    rootfs: Path
    total_bytes: int
    shim_cpu_s: list[float]

    def with_shim(self) -> float:
        """Client's fifo behind forkshim-shim."""
        with tempfile.TemporaryDirectory() as directory:
            bundle = self._bundle(Path(directory))
            with Engine(
                Path(directory) / "state",
                bundles.fresh_id("bench"),
                bundle,
                containerdStdin="stdin",
                containerdStderr="",
            ) as engine:
                (stdout,) = engine.attach("stdout")
                os.set_blocking(stdout, True)
                fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
                engine.run()
                stdin = engine.open("stdin", os.O_WRONLY)
                assert engine.shim is not None
                shim = engine.shim.pid
                before = cpu_s(shim)
                rate = drain(stdin, stdout, self.total_bytes)
                self.shim_cpu_s.append(cpu_s(shim) - before)
                os.write(stdin, b"end\n")
                engine.wait_end()
                return rate

    def without(self) -> float:
        """The container's pipe itself."""
        with tempfile.TemporaryDirectory() as directory:
            bundle = self._bundle(Path(directory))
            with bare_container(bundle) as (stdin, stdout):
                rate = drain(stdin, stdout, self.total_bytes)
                os.write(stdin, b"end\n")
                return rate

    def _bundle(self, directory: Path) -> Path:
        blocks = self.total_bytes >> 16
        # It stays alive after the last byte, and with it the worker whose CPU is read then.
        script = f"read go; dd if=/dev/zero bs=64k count={blocks} 2>/dev/null; read end"
        document = bundles.config(self.rootfs, bundles.shell(script))
        return bundles.make_bundle(directory / "bundle", document)


def drain(stdin: int, stdout: int, total_bytes: int) -> float:
    """Say "go" and read so many bytes; returns MB/s."""
    buffer = bytearray(PIPE_BYTES)
    os.write(stdin, b"go\n")
    waiting.wait_readable(stdout)
    began = time.perf_counter()
    left = total_bytes
    while left:
        left -= os.readv(stdout, [buffer])
    return total_bytes / 1e6 / (time.perf_counter() - began)


@contextlib.contextmanager
def bare_container(bundle: Path) -> Iterator[tuple[int, int]]:
    """Run the bundle on two pipes of ours; yields our ends of its stdin and stdout."""
    container_id = bundles.fresh_id("bare")
    theirs_in, ours_in = os.pipe()
    ours_out, theirs_out = os.pipe()
    fcntl.fcntl(ours_out, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    try:
        subprocess.run(
            ["runc", "create", "--bundle", bundle, container_id],
            check=True,
            stdin=theirs_in,
            stdout=theirs_out,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_out)
        subprocess.run(["runc", "start", container_id], check=True)
        yield ours_in, ours_out
        waiting.read_to_end(ours_out)
    finally:
        subprocess.run(["runc", "delete", "--force", container_id], check=True)
        for fd in (theirs_in, ours_in, ours_out):
            os.close(fd)


def cpu_s(shim_pid: int) -> float:
    """Return what a shim and its workers have used of the processors so far, in seconds."""
    workers = [pid for pid in waiting.children_of(shim_pid) if waiting.title_of(pid).endswith("]")]
    return sum(map(spent_s, (shim_pid, *workers)))


def spent_s(pid: int) -> float:
    """Return what one process has used (proc(5), schedstat)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
