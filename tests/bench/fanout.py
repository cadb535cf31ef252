"""`forkshim attach`: what 1 and 3 listeners cost a container, beside the same without any.

A container writes to its stdout as fast as it can, which the bench drains from a pipe behind
`forkshim run`. The clock runs from the word "go" to the last byte in that pipe. CPU is that of
supervisor and workers; each listener, whose own is not counted, writes to /dev/null. No sink waits
for a listener: "heard" is how much of it all they got, of 1.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import processes
from tests.bench.case import Case, Sample, Setting, Variant
from tests.bench.sites import WAIT, let_go, make_site, running
from tests.bench.streams import PIPE_BYTES
from tests.harness import bundles, waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

_HELLO = b"x" * 4095 + b"\n"  # more than `attach` writes of its own accord
_SCRIPT = f"""
while {WAIT}; [ $word = hello ]; do cat /tmp/c/block; done
dd if=/dev/zero bs=64k count={{blocks}} 2>/dev/null
{WAIT}
"""

_SETTLED_S = 0.2


def cases(setting: Setting) -> Iterator[Case]:
    """The case; forkshim alone."""

    def side(who: str, attach_clients: int) -> Variant:
        return Variant(who, partial(_measure, setting, attach_clients), is_ours=attach_clients > 0)

    yield Case(
        "fanout",
        f"{setting.scale.bulk_bytes >> 20:,} MiB of stdout and listeners",
        [side("1 listener", 1), side("3 listeners", 3), side("no listener", 0)],
    )


def _measure(setting: Setting, attach_clients: int) -> Sample:
    total = setting.scale.bulk_bytes
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        script = _SCRIPT.format(blocks=total >> 16)
        bundle = make_site(directory, setting.rootfs, _HELLO, script)
        container_id, root = bundles.fresh_id("fanout"), directory / "root"
        rfd, wfd = os.pipe()
        fcntl.fcntl(rfd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, rfd)
            run = stack.enter_context(
                running(
                    [*setting.programs.run, "--root", root, "--bundle", bundle, container_id],
                    stdin=subprocess.DEVNULL, stdout=wfd, stderr=subprocess.PIPE,
                )
            )  # fmt: skip
            os.close(wfd)
            _greet(directory, rfd)
            hearing = [
                stack.enter_context(
                    running(
                        [setting.programs.forkshim, "attach", "--root", root, container_id],
                        stdout=subprocess.DEVNULL,
                    )
                )
                for _ in range(attach_clients)
            ]
            heard = [_until_heard(directory, rfd, each.pid) for each in hearing]
            before = sum(map(processes.written_bytes, heard))
            pids = _settled(run.pid)
            let_go(directory)
            cpu_s, began = processes.cpu_s(pids), time.perf_counter()
            _drain(rfd, total)
            took_s, cpu_s = time.perf_counter() - began, processes.cpu_s(pids) - cpu_s
            after = sum(map(processes.written_bytes, heard))
            let_go(directory)
    found = {"MB/s": total / 1e6 / took_s, "CPU s/GB": cpu_s / (total / 1e9)}
    if attach_clients:
        found["heard"] = (after - before) / total / attach_clients
    return found


def _settled(supervisor: int) -> list[int]:
    """Wait until the workers that let newcomers hear are there to stay; returns all pids."""
    pids: list[int] = []
    while pids != (pids := processes.forkshim_pids(supervisor)):
        time.sleep(_SETTLED_S)
    return pids


def _greet(directory: Path, rfd: int) -> None:
    let_go(directory, "hello")
    waiting.read_until(rfd, b"\n")


def _until_heard(directory: Path, rfd: int, listener: int) -> int:
    """Have the container say hello until a listener has heard it; returns its pid."""
    before = processes.written_bytes(listener)

    def has_heard() -> bool:
        _greet(directory, rfd)
        return processes.written_bytes(listener) >= before + len(_HELLO)

    waiting.wait_true(has_heard)
    return listener


def _drain(rfd: int, total: int) -> None:
    buffer = bytearray(PIPE_BYTES)
    while total:
        total -= os.readv(rfd, [buffer])
