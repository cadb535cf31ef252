"""A container whose stdin and stdout are plumbed to us, in five ways, with the same ends for us.

`forkshim`: forkshim-shim on an engine's fifos. `bare`: the runtime is given our pipes, or its
terminal is given to us. `copier`: those, and between them and us `dd bs=32k`. `conmon`: its attach
socket, which is how Podman hears and feeds a container; without a log. All pipes hold 1 MiB.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench import peers, processes
from tests.bench.case import Variant
from tests.bench.sites import WAIT, let_go, make_site
from tests.harness import bundles
from tests.harness.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.case import Sample, Setting
    from tests.bench.installed import Programs

PIPE_BYTES = 1 << 20
_PACKET_BYTES = 32 << 10
_BLOCK = bytes(PIPE_BYTES)

INPUT = f"{WAIT}; dd of=/dev/null bs=64k iflag=fullblock count={{writes}} 2>&-; echo x; {WAIT}"
"""Reads so many blocks of 64 KiB and then says that it has."""
OUTPUT = f"{WAIT}; dd if=/dev/zero bs={{size}} count={{writes}} 2>/dev/null; {WAIT}"
"""Says so much, in so many writes, when it is let go."""
BLOCK_BYTES = 64 << 10


@dataclass(frozen=True)
class Plumbed:
    """A running container and our ends.

    Attributes:
        read: Waits for output and takes some of it; returns how many bytes.
        write: Writes some of a block; returns how many bytes.
        pids: Of those who copy.
    """

    read: Callable[[], int]
    write: Callable[[memoryview], int]
    pids: list[int]


Pipes = Callable[[Path, Path], AbstractContextManager[Plumbed]]
"""Runs a bundle, with a directory for what it needs besides."""


@contextlib.contextmanager
def forkshim(
    programs: Programs, terminal: bool, directory: Path, bundle: Path
) -> Iterator[Plumbed]:
    """An engine's fifos behind forkshim-shim."""
    state_dir, name = directory / "state", bundles.fresh_id("bench")
    fields: dict[str, Any] = {"terminal": True} if terminal else {}
    with Engine(
        state_dir, name, bundle, containerdStdin="stdin", containerdStderr="", **fields
    ) as engine:
        (stdout,) = engine.attach("stdout")
        os.set_blocking(stdout, True)
        fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        engine.run(shim=programs.shim)
        stdin = engine.open("stdin", os.O_WRONLY)
        fcntl.fcntl(stdin, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        pids = processes.forkshim_pids(engine.shim_pid)
        yield Plumbed(_reader(stdout), partial(os.write, stdin), pids)
        engine.wait_end()
        engine.wait_shim()


@contextlib.contextmanager
def bare(terminal: bool, directory: Path, bundle: Path) -> Iterator[Plumbed]:
    """The container's own pipes or terminal."""
    with bare_ends(terminal, directory, bundle) as (stdin, stdout):
        yield Plumbed(_reader(stdout), partial(os.write, stdin), [])


@contextlib.contextmanager
def copier(terminal: bool, directory: Path, bundle: Path) -> Iterator[Plumbed]:
    """The same, each through a copier."""
    theirs_in, ours_in = pipe()
    ours_out, theirs_out = pipe()
    try:
        with (
            bare_ends(terminal, directory, bundle) as (stdin, stdout),
            peers.copier(stdout, theirs_out) as out_pid,
            peers.copier(theirs_in, stdin) as in_pid,
        ):
            yield Plumbed(_reader(ours_out), partial(os.write, ours_in), [out_pid, in_pid])
    finally:
        peers.close(theirs_in, ours_in, ours_out, theirs_out)


@contextlib.contextmanager
def conmon(terminal: bool, directory: Path, bundle: Path) -> Iterator[Plumbed]:
    """Conmon's attach socket: packets of 8 KiB with a byte before each, and 32 KiB to it."""
    clients: list[socket.socket] = []
    options = ["-t"] if terminal else []
    with peers.conmon(directory, bundle, "off", "-i", *options, attach=clients) as monitor:
        (client,) = clients
        buffer = bytearray(PIPE_BYTES)
        with client:
            yield Plumbed(
                lambda: client.recv_into(buffer) - 1,
                lambda block: client.send(block[:_PACKET_BYTES]),
                [monitor.pid],
            )


@contextlib.contextmanager
def bare_ends(terminal: bool, directory: Path, bundle: Path) -> Iterator[tuple[int, int]]:
    """Run a bundle by the runtime alone; yields where its stdin is written and its stdout read."""
    if terminal:
        with (
            socket.socket(socket.AF_UNIX) as listener,
            contextlib.ExitStack() as stack,
        ):
            listener.bind(str(directory / "console"))
            listener.listen()
            create = peers.runc_create(bundle, "--console-socket", directory / "console")
            container_id = stack.enter_context(create)
            ptmx_fd = _received(listener)
            stack.callback(os.close, ptmx_fd)
            peers.start(container_id)
            yield ptmx_fd, ptmx_fd
        return
    theirs_in, ours_in = pipe()
    ours_out, theirs_out = pipe()
    try:
        with peers.runc_create(bundle, stdin=theirs_in, stdout=theirs_out) as container_id:
            peers.start(container_id)
            yield ours_in, ours_out
    finally:
        peers.close(theirs_in, ours_in, ours_out, theirs_out)


def _received(listener: socket.socket) -> int:
    connection, _address = listener.accept()
    with connection:
        _words, (ptmx_fd,), _flags, _from = socket.recv_fds(connection, 4096, 1)
    return ptmx_fd


def pipe() -> tuple[int, int]:
    """Return both ends of a pipe that holds 1 MiB."""
    rfd, wfd = os.pipe()
    fcntl.fcntl(rfd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return rfd, wfd


def _reader(fd: int) -> Callable[[], int]:
    buffer = bytearray(PIPE_BYTES)
    return lambda: os.readv(fd, [buffer])


def variants(
    setting: Setting,
    script: str,
    much: int,
    *,
    terminal: bool = False,
    size: int = BLOCK_BYTES,
    conmon_much: int = 0,
) -> list[Variant]:
    """Return the four sides.

    Args:
        setting: What all cases share.
        script: OUTPUT or INPUT.
        much: How many bytes are moved.
        terminal: The container has one.
        size: Of each of the container's writes.
        conmon_much: How many bytes conmon moves, if that is less: a rate is a rate.
    """

    def side(who: str, pipes: Pipes, total: int, **more: object) -> Variant:
        measure = partial(_measure, setting.rootfs, pipes, script, total, size, terminal)
        return Variant(who, measure, **more)  # type: ignore[arg-type] # `lack` and `is_ours`

    return [
        side("forkshim", partial(forkshim, setting.programs, terminal), much, is_ours=True),
        side("bare terminal" if terminal else "bare pipe", partial(bare, terminal), much),
        side("copier", partial(copier, terminal), much),
        side(
            "conmon",
            partial(conmon, terminal),
            conmon_much or much,
            lack=peers.need(peers.CONMON),
        ),
    ]


def _measure(
    rootfs: Path, pipes: Pipes, script: str, total: int, size: int, terminal: bool
) -> Sample:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        words = script.format(size=size, writes=total // size)
        bundle = make_site(directory, rootfs, b"", words, terminal=terminal)
        with pipes(directory, bundle) as plumbed:
            let_go(directory)
            cpu_s = processes.cpu_s(plumbed.pids)
            began = time.perf_counter()
            if script == INPUT:
                _feed(plumbed, total)
            else:
                _drain(plumbed, total)
            took_s = time.perf_counter() - began
            cpu_s = processes.cpu_s(plumbed.pids) - cpu_s
            let_go(directory)
    found = {"MB/s": total / 1e6 / took_s}
    if plumbed.pids:
        found["CPU s/GB"] = cpu_s / (total / 1e9)
    return found


def _drain(plumbed: Plumbed, total: int) -> None:
    while total > 0:
        total -= plumbed.read()


def _feed(plumbed: Plumbed, total: int) -> None:
    block = memoryview(_BLOCK)
    while total > 0:
        total -= plumbed.write(block[: min(total, len(block))])
    plumbed.read()
