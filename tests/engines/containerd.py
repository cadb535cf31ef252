"""A containerd of a test module's own, in a sandbox, driven by `ctr`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.engines.image import IMAGE, write_archive
from tests.engines.sandbox import Process, Sandbox, sandbox
from tests.harness import waiting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from _typeshed import StrPath

STOCK = "io.containerd.runc.v2"
OURS = "io.containerd.runc.forkshim.v2"
RUNTIMES = {"forkshim": OURS, **({"stock": STOCK} if "WITH_STOCK" in os.environ else {})}
"""The runtimes that every test runs with, by the names that pytest shows: `make conformance` shows
that the stock shim keeps the same promises."""
LOSSLESS = {name: runtime for name, runtime in RUNTIMES.items() if runtime != STOCK}
"""Those that keep the output of what ends at once. ctr 1.6 closes its fifos as soon as Wait is
answered, and the stock shim answers before it has copied all: a busy machine loses the end."""

_SETTINGS = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = [{disabled}]
[grpc]
address = "{directory}/c.sock"
[ttrpc]
address = "{directory}/c.sock.ttrpc"
{more}
"""
_DISABLED = (
    "io.containerd.internal.v1.opt",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
)
CRI = "io.containerd.grpc.v1.cri"
_SOCKETS = "/run/containerd/s"
_CGROUPS = Path("/sys/fs/cgroup")
_ENDS_S = 20.0


@dataclass(frozen=True)
class Task:
    """A line of `ctr task ls`."""

    pid: int
    """The pid inside the sandbox; 0 if it has stopped."""
    status: str


class Containerd:
    """One daemon, its client, and what its containers leave. Owns the daemon, not the sandbox.

    Public attributes: `sandbox`, `directory` (its own, with a short name), `cgroup` (the parent of
    its containers' cgroups, which no other test run has), `namespace` (of containerd; the same name
    unless a test wants another), `log` (its stderr and stdout), `pid`.
    """

    def __init__(
        self,
        inside: Sandbox,
        directory: Path,
        path: str,
        *,
        namespace: str = "",
        has_cri: bool = False,
        more: str = "",
    ) -> None:
        """Write the settings. `path` is the daemon's PATH, `more` lines of its settings."""
        self.sandbox = inside
        self.directory = directory
        self.cgroup = f"fst-{os.getpid()}-{os.urandom(3).hex()}"
        self.namespace = namespace or self.cgroup
        self.log = directory / "containerd.log"
        self.pid = 0
        self._path = path
        disabled = [*_DISABLED, *([] if has_cri else [CRI])]
        (directory / "config.toml").write_text(
            _SETTINGS.format(
                directory=directory,
                disabled=", ".join(f'"{name}"' for name in disabled),
                more=more,
            )
        )

    @property
    def address(self) -> Path:
        """The socket of its API."""
        return self.directory / "c.sock"

    def start(self) -> None:
        """Start the daemon, and wait until it answers."""
        self.pid = self.sandbox.spawn_daemon(
            *("containerd", "--config", self.directory / "config.toml"),
            log=self.log,
            env={**os.environ, "PATH": self._path},
        )
        waiting.wait_path(self.address, Path.exists)
        waiting.wait_true(lambda: self.ctr("version", check=False).returncode == 0)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Signal the daemon, and wait for its end. Its containers go on."""
        os.kill(self.pid, number)
        waiting.wait_process(self.pid)
        self.address.unlink(missing_ok=True)  # so that `start` waits for the next daemon's

    def words(self, *words: StrPath) -> Sequence[StrPath]:
        """Return the command that runs `ctr WORDS` in the sandbox."""
        client = ("ctr", "--address", self.address, "--namespace", self.namespace)
        return self.sandbox.enter(*client, *words)

    def ctr(self, *words: StrPath, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `ctr WORDS` to its end; as `Sandbox.run`."""
        client = ("ctr", "--address", self.address, "--namespace", self.namespace)
        return self.sandbox.run(*client, *words, **options)

    def run(
        self,
        runtime: str,
        container_id: str,
        *command: str,
        options: Sequence[StrPath] = (),
        **run: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` in a new container of the image by `ctr run`; `run` as `Sandbox.run`."""
        words = ("run", "--runtime", runtime, *options, IMAGE, container_id, *command)
        return self.ctr(*words, **run)

    def tasks(self) -> dict[str, Task]:
        """Return the tasks by their ids."""
        lines = self.ctr("task", "ls").stdout.splitlines()[1:]
        fields = (line.split() for line in lines)
        return {name: Task(int(pid), status) for name, pid, status in fields}

    def wait_status(self, container_id: str, status: str) -> None:
        """Wait until a task is RUNNING, STOPPED, ..."""
        waiting.wait_true(lambda: self.status(container_id) == status)

    def status(self, container_id: str) -> str:
        """Return the status of a task, empty if there is none."""
        task = self.tasks().get(container_id)
        return task.status if task is not None else ""

    def remove_task(self, container_id: str) -> int:
        """Remove a stopped task by `ctr task rm`; returns its exit status, of which ctr tells."""
        told = self.ctr("task", "rm", container_id).stderr
        return int(told.partition("exit code ")[2].partition('"')[0] or 0)

    def bundle(self, container_id: str) -> Path:
        """Return the path outside of a container's bundle."""
        where = f"{self.directory}/state/io.containerd.runtime.v2.task/{self.namespace}"
        return self.sandbox.path(f"{where}/{container_id}")

    @contextmanager
    def events(self) -> Iterator[Events]:
        """Follow the events of all namespaces, from now on."""
        with subprocess.Popen(
            self.words("events"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        ) as client:
            assert client.stdout is not None
            events = Events(client.stdout.fileno())
            try:
                # No word tells that the subscription is there: an event of our own comes through.
                name = f"probe-{os.urandom(4).hex()}"
                waiting.wait_true(lambda: self._probe(events, name))
                yield events
            finally:
                for pid in waiting.children_of(client.pid):
                    os.kill(pid, signal.SIGKILL)

    def _probe(self, events: Events, name: str) -> bool:
        self.ctr("namespaces", "label", self.namespace, f"{name}=1")
        events.read_ready()
        return any(name in event.text for event in events.take_all())

    def shims(self) -> list[Process]:
        """Return the shims that serve, the oldest first, whichever runtime they belong to."""
        return [
            process
            for process in self.sandbox.processes()
            if "containerd-shim-" in process.title
            and f"-namespace {self.namespace} " in process.title
            and not process.title.endswith((" start", " delete"))
        ]

    def leftovers(self, *others: int) -> list[str]:
        """Return what is there besides the daemon: tasks, processes, mounts, sockets, cgroups.

        `others` are the pids of other daemons in the sandbox.
        """
        own = {self.pid, *others}
        found = [f"task {name}" for name in self.tasks()]
        found += [f"container {name}" for name in self.ctr("container", "ls", "-q").stdout.split()]
        found += [
            f"process {process.title}"
            for process in self.sandbox.processes()
            if process.pid not in own
        ]
        state = str(self.directory / "state")
        found += [f"mount {where}" for where in self.sandbox.mounts() if where.startswith(state)]
        with suppress(FileNotFoundError):
            found += [f"socket {path}" for path in self.sandbox.path(_SOCKETS).iterdir()]
        with suppress(FileNotFoundError):
            bundles = self.bundle("x").parent
            found += [f"bundle {path}" for path in bundles.iterdir()]
        found += [f"cgroup {path}" for path in self.cgroups()]
        return found

    def wait_clean(self, *others: int) -> None:
        """Wait until nothing is left over; as `leftovers`.

        Raises:
            AssertionError: Something is, after 20 s.
        """
        with suppress(TimeoutError):
            waiting.wait_true(lambda: not self.leftovers(*others), limit_s=_ENDS_S)
        if left := self.leftovers(*others):
            raise AssertionError(f"left behind: {left}")

    def wipe(self) -> None:
        """End and remove what a failed test has left, so that the next one finds nothing."""
        for process in self.sandbox.processes():
            if process.pid != self.pid:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        with suppress(TimeoutError):  # containerd runs `delete` for each shim that has gone
            waiting.wait_true(lambda: not self.tasks(), limit_s=_ENDS_S)
        for name in self.ctr("container", "ls", "-q").stdout.split():
            self.ctr("container", "rm", name, check=False)
        for path in self.sandbox.path(_SOCKETS).glob("*"):
            path.unlink()

    def cgroups(self) -> list[Path]:
        """Return the containers' cgroups, in each hierarchy (v1) or in the one (v2)."""
        return [path for top in self._tops() for path in sorted(top.rglob("*")) if path.is_dir()]

    def remove_cgroups(self) -> None:
        """Remove the daemon's cgroups, once the sandbox has ended."""
        for path in [*self._tops(), *self.cgroups()][::-1]:
            path.rmdir()

    def _tops(self) -> list[Path]:
        parents = (_CGROUPS, *_CGROUPS.iterdir())
        return [path for parent in parents if (path := parent / self.cgroup).is_dir()]


@dataclass(frozen=True)
class Event:
    """A line of `ctr events`."""

    topic: str
    text: str

    @property
    def fields(self) -> dict[str, Any]:
        """The event's own fields, by the names of their JSON form."""
        document: dict[str, Any] = json.loads(self.text)
        return document


class Events:
    """Events that `ctr events` has written to `fd`, in their order. Borrows the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = b""
        self._events: list[Event] = []

    def read_ready(self) -> None:
        """Read what is there."""
        while waiting.is_readable(self._fd):
            chunk = os.read(self._fd, 65536)
            if not chunk:
                raise EOFError("ctr events has ended")
            *lines, self._buffer = (self._buffer + chunk).split(b"\n")
            for line in lines:
                topic, _, text = line.decode().partition(" /")[2].partition(" ")
                self._events.append(Event("/" + topic, text))

    def take_all(self) -> list[Event]:
        """Return, and forget, what has been read."""
        taken, self._events = self._events, []
        return taken

    def wait_for(self, topic: str) -> list[Event]:
        """Read until an event of a topic has come; forgets all until then, returns the tasks'."""
        while not any(event.topic == topic for event in self._events):
            waiting.wait_readable(self._fd)
            self.read_ready()
        last = next(i for i, event in enumerate(self._events) if event.topic == topic)
        taken, self._events = self._events[: last + 1], self._events[last + 1 :]
        return [event for event in taken if event.topic.startswith("/tasks/")]


@contextmanager
def containerd(
    directory: Path,
    rootfs: Path,
    *,
    namespace: str = "",
    has_cri: bool = False,
    more: str = "",
    first_on_path: str = "",
) -> Iterator[Containerd]:
    """Run a containerd with the image `IMAGE` in a sandbox; everything inside ends with it.

    Args:
        directory: The daemon's own; a short name, for the sockets in it.
        rootfs: What the image consists of.
        namespace: The one of containerd that `ctr` uses, instead of one with a fresh name.
        has_cri: Whether the CRI plugin runs, too.
        more: More lines for the daemon's settings.
        first_on_path: The directories where the daemon looks for shims first, colons between.
    """
    path = ":".join(filter(None, (first_on_path, os.environ["PATH"], "/usr/sbin:/sbin")))
    with sandbox() as inside:
        daemon = Containerd(
            inside, directory, path, namespace=namespace, has_cri=has_cri, more=more
        )
        daemon.start()
        archive = directory / "image.tar"
        write_archive(archive, rootfs)
        daemon.ctr("image", "import", archive)
        try:
            yield daemon
        finally:
            with suppress(ProcessLookupError):
                os.kill(daemon.pid, signal.SIGKILL)
    daemon.remove_cgroups()
