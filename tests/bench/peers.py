"""Those that forkshim stands beside: runc alone, conmon, containerd with its shim, a copier.

Each is started here and ended here. A container's own end is the rule: `let_go`, then it ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.sites import has_content
from tests.engines.containerd import STOCK
from tests.harness import bundles, waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CONMON, CONTAINERD, CTR, CRUN = "conmon", "containerd", "ctr", "crun"
_NULL = subprocess.DEVNULL
_CONTAINERD_CONFIG = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "{directory}/containerd.sock"
[ttrpc]
address = "{directory}/containerd.sock.ttrpc"
"""


def need(program: str) -> Callable[[], str]:
    """Return a `Variant.lack` that wants a program."""
    return lambda: "" if shutil.which(program) else f"no {program} here"


def need_crun(rootfs: Path) -> Callable[[], str]:
    """Return a `Variant.lack` that wants a crun that can: Debian 12's has no hybrid cgroups."""

    @cache
    def lack() -> str:
        if why := need(CRUN)():
            return why
        with tempfile.TemporaryDirectory() as name:
            bundle = bundles.make_bundle(Path(name), bundles.config(rootfs, ["true"]))
            command = [CRUN, "run", "--bundle", str(bundle), bundles.fresh_id("probe")]
            done = subprocess.run(command, stdin=_NULL, capture_output=True, text=True)
        return done.stderr.strip() if done.returncode else ""

    return lack


@contextlib.contextmanager
def runc_create(
    bundle: Path, *options: str | Path, stdin: int = _NULL, stdout: int = _NULL
) -> Iterator[str]:
    """Create a container by the runtime alone, on descriptors that are given; yields its id."""
    container_id = bundles.fresh_id("bare")
    command = ["runc", "create", "--bundle", bundle, *options, container_id]
    try:
        subprocess.run(command, check=True, stdin=stdin, stdout=stdout, stderr=_NULL)
        yield container_id
    finally:
        delete(container_id)


def start(container_id: str) -> None:
    """Run the runtime's start."""
    subprocess.run(["runc", "start", container_id], check=True)


def delete(container_id: str, runtime: str = "runc") -> None:
    """Remove what is left of a container, which by now has ended if all went well."""
    subprocess.run([runtime, "delete", "--force", container_id], check=True)


def conmon_command(
    directory: Path, bundle: Path, container_id: str, log: str, *options: str
) -> Sequence[str | Path]:
    """Return how Podman and CRI-O start conmon, except that it stays our child (--sync)."""
    runc = shutil.which("runc")
    assert runc is not None
    exits = directory / "exits"
    exits.mkdir()
    words: list[str | Path] = ["--sync", "-c", container_id, "-u", container_id]
    words += ["-n", container_id, "-r", runc, "-b", bundle, "-p", directory / "pid", "-l", log]
    return [CONMON, *words, "--exit-dir", exits, "--socket-dir-path", directory, *options]


@contextlib.contextmanager
def conmon(
    directory: Path,
    bundle: Path,
    log: str,
    *options: str,
    attach: list[socket.socket] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the bundle under conmon to its end.

    Args:
        directory: Has conmon's files.
        bundle: The bundle.
        log: A log driver and its path.
        options: More words.
        attach: Gets conmon's attach socket, connected before the container starts.
    """
    container_id = bundles.fresh_id("conmon")
    command = conmon_command(directory, bundle, container_id, log, *options)
    try:
        with subprocess.Popen(command, stdin=_NULL, stdout=_NULL, stderr=_NULL) as monitor:
            try:
                waiting.wait_path(directory / "pid", has_content)
                if attach is not None:
                    attach.append(_attached(bundle))
                subprocess.run(["runc", "start", container_id], check=True, capture_output=True)
                yield monitor
                monitor.wait()
            except BaseException:
                # Its container ends with it, by SIGPIPE or by the `delete` below.
                monitor.kill()
                raise
    finally:
        delete(container_id)


def _attached(bundle: Path) -> socket.socket:
    waiting.wait_path(bundle / "attach", Path.exists)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.connect(str(bundle / "attach"))
    return client


@dataclass(frozen=True)
class Containerd:
    """A containerd of our own, driven by `ctr`.

    Attributes:
        address: Of its socket.
        runtime: Of the containers that it runs.
    """

    address: Path
    runtime: str = STOCK

    def ctr(self, *words: str | Path) -> Sequence[str | Path]:
        """Return a command of `ctr`."""
        return [CTR, "--address", self.address, *words]

    def run_command(
        self, bundle: Path, container_id: str, *options: str | Path
    ) -> Sequence[str | Path]:
        """Return the command that runs a bundle: no image, no snapshot, no network of its own."""
        words = ("--runtime", self.runtime, *options, "--config", bundle / "config.json")
        return self.ctr("run", *words, container_id)


@contextlib.contextmanager
def containerd(runtime: str = STOCK, first_on_path: Path | None = None) -> Iterator[Containerd]:
    """Start a daemon with its own root, state and socket and without CRI; ends it by its pid.

    It looks for its shims in `first_on_path` first.

    It ends with us in any case (pdeathsig). What is in /run/containerd wherever the state is, the
    sockets of containerd-shim-runc-v2 and the fifos of `ctr`, has names of its own and is removed.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        settings = directory / "config.toml"
        settings.write_text(_CONTAINERD_CONFIG.format(directory=directory))
        daemon = Containerd(directory / "containerd.sock", runtime)
        path = os.pathsep.join(map(str, filter(None, (first_on_path, os.environ["PATH"]))))
        command = ["setpriv", "--pdeathsig", "TERM", CONTAINERD, "--config", str(settings)]
        with (
            (directory / "log").open("wb") as log,
            subprocess.Popen(
                command,
                stdin=_NULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": path},
                process_group=0,
            ) as process,
        ):
            try:
                waiting.wait_path(daemon.address, Path.exists)
                _wait_served(daemon)
                yield daemon
            finally:
                process.terminate()
                process.wait()


def _wait_served(daemon: Containerd) -> None:
    """Wait until it answers: its socket is there a little earlier."""
    waiting.wait_true(
        lambda: subprocess.run(daemon.ctr("version"), capture_output=True).returncode == 0
    )


@contextlib.contextmanager
def copier(source: int, sink: int) -> Iterator[int]:
    """Copy by read(2) and write(2) of 32 KiB, as io.Copy of a shim in Go does; yields its pid.

    dd(1) is in C and has nothing else to do: a copier cannot be much cheaper. Borrows both.
    """
    command = ["dd", "bs=32k", "status=none"]
    with subprocess.Popen(command, stdin=source, stdout=sink, stderr=_NULL) as process:
        try:
            yield process.pid
        finally:
            process.kill()  # a terminal never ends with an end of file


def close(*descriptors: int) -> None:
    """Close descriptors."""
    for fd in descriptors:
        os.close(fd)
