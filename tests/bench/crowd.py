"""Containers that are started one by one, do nothing, and end together: a crowd of one kind.

Each container says "ready" and waits for a word. Whatever happens, a crowd's `with` ends it all.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import peers, processes
from tests.bench.sites import STOPPED_S, WAIT, has_content, let_go, make_site, wait_waiting
from tests.engines.containerd import STOCK
from tests.harness import bundles, waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from tests.bench.installed import Programs

_NULL = subprocess.DEVNULL
_SCRIPT = f"echo ready; {WAIT}"


class Crowd(ABC):
    """Owns its containers, their directories and their supervisors."""

    _script = _SCRIPT
    _annotations: Mapping[str, str] = {}

    def __init__(self, rootfs: Path) -> None:
        """Start empty."""
        self._rootfs = rootfs
        self._stack = contextlib.ExitStack()
        self._sites: list[Path] = []
        self._limit_s = waiting.LIMIT_S

    def __enter__(self) -> Crowd:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let everybody go, wait for each, clear up."""
        self._limit_s = waiting.LIMIT_S if error is None else 0.1
        with self._stack:
            for directory in self._sites:
                with contextlib.suppress(TimeoutError):  # made to end by what follows
                    let_go(directory, limit_s=self._limit_s)
        self._sites = []

    def __len__(self) -> int:
        """How many there are."""
        return len(self._sites)

    def add(self, count: int = 1) -> float:
        """Start so many at once; returns the seconds until the last of them has said its word."""
        sites = [self._site() for _ in range(count)]
        began = time.perf_counter()
        hear = [self._start(directory, bundle) for directory, bundle in sites]
        for each in hear:
            each()
        took_s = time.perf_counter() - began
        self._sites += [directory for directory, _bundle in sites]
        return took_s

    def _site(self) -> tuple[Path, Path]:
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        return directory, make_site(
            directory, self._rootfs, b"", self._script, annotations=self._annotations
        )

    def _own(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for it in the end; who does not end by itself, in a bad end, is made to."""

        def finish() -> None:
            with process:
                try:
                    process.wait(self._limit_s)
                except subprocess.TimeoutExpired:
                    process.terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(STOPPED_S)
                    process.kill()

        self._stack.callback(finish)

    def _forget(self, container_id: str, pid_file: Path) -> None:
        """Delete a container of runc's that is about to end."""
        with contextlib.suppress(FileNotFoundError, ValueError, TimeoutError):
            waiting.wait_process(int(pid_file.read_text()), self._limit_s)
        peers.delete(container_id)

    @abstractmethod
    def _start(self, directory: Path, bundle: Path) -> Callable[[], object]:
        """Start one; returns what waits for its word."""

    @abstractmethod
    def pids(self) -> Sequence[int]:
        """Return all processes that supervise, without the containers' own."""


class Forkshims(Crowd):
    """`forkshim run`, with both outputs in pipes."""

    def __init__(self, rootfs: Path, programs: Programs) -> None:
        """Start empty; these commands will start each."""
        super().__init__(rootfs)
        self._programs = programs
        self._started: list[int] = []

    def _start(self, directory: Path, bundle: Path) -> Callable[[], object]:
        root, container_id = directory / "root", bundles.fresh_id("crowd")
        process = subprocess.Popen(
            [*self._programs.run, "--root", root, "--bundle", bundle, container_id],
            stdin=_NULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._own(process)
        self._started.append(process.pid)
        return _word(process)

    def pids(self) -> Sequence[int]:
        """Return supervisors and workers."""
        return [pid for started in self._started for pid in processes.forkshim_pids(started)]


class Runcs(Crowd):
    """`runc run --detach`, with both outputs in pipes, without a supervisor."""

    def _start(self, directory: Path, bundle: Path) -> Callable[[], object]:
        container_id = bundles.fresh_id("crowd")
        pid_file = directory / "pid"
        self._stack.callback(self._forget, container_id, pid_file)
        words: list[str | Path] = ["--detach", "--bundle", bundle, "--pid-file", pid_file]
        process = subprocess.Popen(
            ["runc", "run", *words, container_id],
            stdin=_NULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._own(process)
        return _word(process)

    def pids(self) -> Sequence[int]:
        """Return no process: there is no supervisor."""
        return []


class Conmons(Crowd):
    """Conmon with a k8s-file, as Podman runs it."""

    def __init__(self, rootfs: Path) -> None:
        """Start empty."""
        super().__init__(rootfs)
        self._monitors: list[int] = []

    def _start(self, directory: Path, bundle: Path) -> Callable[[], object]:
        container_id, log = bundles.fresh_id("crowd"), directory / "log"
        command = peers.conmon_command(directory, bundle, container_id, f"k8s-file:{log}")
        self._stack.callback(self._forget, container_id, directory / "pid")
        monitor = subprocess.Popen(command, stdin=_NULL, stdout=_NULL, stderr=_NULL)
        self._own(monitor)
        self._monitors.append(monitor.pid)

        def hear() -> None:
            waiting.wait_path(directory / "pid", has_content)
            subprocess.run(["runc", "start", container_id], check=True, capture_output=True)
            waiting.wait_path(log, lambda path: b"ready" in path.read_bytes())

        return hear

    def pids(self) -> Sequence[int]:
        """Return the monitors."""
        return self._monitors


class Containerds(Crowd):
    """A runtime-v2 shim with a log file for each container, started by `ctr run --detach`."""

    def __init__(
        self,
        rootfs: Path,
        runtime: str = STOCK,
        first_on_path: Path | None = None,
        *,
        group: str = "",
        says: str = "echo ready",
    ) -> None:
        """Start a containerd for them.

        Args:
            rootfs: Of every container.
            runtime: As `peers.containerd` has it, and `first_on_path`.
            first_on_path: See there.
            group: One shim serves all; "" for one of each container.
            says: What the script does at first; it says "ready", or nothing.
        """
        super().__init__(rootfs)
        self._daemon = self._stack.enter_context(peers.containerd(runtime, first_on_path))
        self._ids: list[str] = []
        self._script = f"{says}; {WAIT}"
        self._annotations = {"io.containerd.runc.v2.group": group} if group else {}
        self._is_silent = says == ":"
        self._stack.callback(self._remove)

    def _start(self, directory: Path, bundle: Path) -> Callable[[], object]:
        container_id, log = bundles.fresh_id("crowd"), directory / "log"
        self._ids.append(container_id)
        options: list[str | Path] = [
            "--detach",
            "--log-uri",
            f"file://{log}",
            "--pid-file",
            directory / "pid",
        ]
        subprocess.run(
            self._daemon.run_command(bundle, container_id, *options), check=True, stdin=_NULL
        )
        if self._is_silent:
            return lambda: wait_waiting(directory)
        return lambda: waiting.wait_path(log, lambda path: b"ready" in path.read_bytes())

    def _remove(self) -> None:
        for what in (["task", "rm", "--force"], ["container", "rm"]):
            subprocess.run(self._daemon.ctr(*what, *self._ids), check=True, capture_output=True)

    def pids(self) -> Sequence[int]:
        """Return the shims and their helpers."""
        inits = [int((directory / "pid").read_text()) for directory in self._sites]
        return [*{pid for init in inits for pid in processes.shim_pids(init)}]


def _word(process: subprocess.Popen[bytes]) -> Callable[[], object]:
    assert process.stdout is not None
    stdout = process.stdout

    def hear() -> None:
        assert waiting.read_until(stdout.fileno(), b"\n") == b"ready\n"

    return hear
