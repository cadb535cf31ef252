"""One container from its start to its end, step by step, with a fault at each step.

The container says a block whenever it is given a line, so that a step is as long as the trial wants
it to be, and stdin is under the same faults as the output. Everything is chosen by one seeded
generator: the same seed makes the same steps (not the same instants).
"""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.harness import bundles, fd_stores, waiting
from tests.harness.daemon import Daemon
from tests.harness.engine import Engine
from tests.harness.rewriting import cri_streams

if TYPE_CHECKING:
    from collections.abc import Callable

import subprocess

KINDS = ("fifo", "file", "rotation", "cri", "dropping", "console", "adopted", "fed")
_ENDS_S = 10.0
WITH_A_DISK = ("file", "rotation", "cri")
BLOCK_LINES = 2000
_SCRIPT = """
{first}echo ready
while read line && [ $line = go ]; do cat /tmp/block; done
exit {status}
"""


class LostError(AssertionError):
    """What came out is not what went in."""


class Trial:
    """One container. `run` raises `LostError` or `TimeoutError` if a promise was broken."""

    def __init__(self, rootfs: Path, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.kind = self.random.choice(KINDS)
        self.status = self.random.randrange(1, 100)
        self.faults: Counter[str] = Counter()
        self._fds = 0
        self._rootfs = rootfs
        lines = (b"%x %x" % (seed, self.random.getrandbits(120)) for _ in range(BLOCK_LINES))
        self._block = b"".join(line + b"\n" for line in lines)

    def run(self, steps: int) -> None:
        """Supervise one container through so many steps."""
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            directory = Path(name)
            (directory / "block").write_bytes(self._block)
            subject = self._subject(directory, stack)
            self._fds = len(os.listdir(f"/proc/{subject.pid}/fd"))
            for _ in range(steps):
                self._step(subject)
            subject.finish()
            wanted = b"ready\n" + self._block * steps
            got = subject.output()
            if got != wanted:
                raise LostError(
                    f"{len(got)} bytes {hashlib.sha256(got).hexdigest()[:12]}, "
                    f"wanted {len(wanted)} {hashlib.sha256(wanted).hexdigest()[:12]}"
                )
            ended = subject.status()
            if ended != self.status:
                raise LostError(f"status {ended}, wanted {self.status}")
            with suppress(TimeoutError):  # the kernel is killing a rehearsal, say
                waiting.wait_true(lambda: not subject.living(), limit_s=_ENDS_S)
            if subject.living():
                raise LostError(f"left behind: {subject.living()}")

    def _subject(self, directory: Path, stack: ExitStack) -> Subject:
        first = "stty -echo -onlcr; " if self.kind == "console" else ""
        script = _SCRIPT.format(first=first, status=self.status)
        names = ["block"]
        if self.kind == "adopted":  # a daemon has no stdin
            script = script.replace("read line", "read line < /tmp/go")
            os.mkfifo(directory / "go")
            names.append("go")
        mounts = [bundles.bind(directory / name, f"/tmp/{name}", "ro") for name in names]
        document = bundles.config(
            self._rootfs, bundles.shell(script), terminal=self.kind == "console", mounts=mounts
        )
        bundle = bundles.make_bundle(directory / "bundle", document)
        if self.kind == "adopted":
            return stack.enter_context(Adopted(directory, bundle))
        if self.kind == "fed":
            os.mkfifo(directory / "go")
            return stack.enter_context(Fed(directory, bundle))
        return stack.enter_context(Supervised(directory, bundle, self.kind))

    def _step(self, subject: Subject) -> None:
        menu: dict[str, Callable[[Subject], None]] = {
            "nothing": lambda _subject: None,
            "kill a worker": self._kill_one,
            "kill all workers": self._kill_all,
            "stop a worker": self._stop_one,
            "reload": lambda subject: os.kill(subject.pid, signal.SIGHUP),
            "signal storm": self._storm,
            "no descriptors": self._starve,
            "no reader": lambda _subject: None,
        }
        if isinstance(subject, Supervised) and self.kind in WITH_A_DISK:
            menu["full disk"] = lambda _subject: subject.fill_disk()
        if isinstance(subject, Adopted):
            menu["kill the supervisor"] = lambda _subject: subject.succeed()
        fault = self.random.choice(sorted(menu))
        self.faults[fault] += 1
        subject.feed()
        for _ in range(self.random.randrange(3)):
            subject.take()
        menu[fault](subject)
        subject.expect(len(self._block))
        if fault != "no reader":  # then the next step reads two blocks
            subject.take_all()

    def _kill_one(self, subject: Subject) -> None:
        workers = subject.workers()
        if workers:
            _signal(self.random.choice(workers), signal.SIGKILL)

    def _kill_all(self, subject: Subject) -> None:
        for pid in subject.workers():
            _signal(pid, signal.SIGKILL)

    def _stop_one(self, subject: Subject) -> None:
        workers = subject.workers()
        if workers:
            pid = self.random.choice(workers)
            _signal(pid, signal.SIGSTOP)
            subject.take()
            _signal(pid, signal.SIGCONT)

    def _storm(self, subject: Subject) -> None:
        """Interrupt every system call: the supervisor's by a handler, a worker's by a stop."""
        for _ in range(50):
            _signal(subject.pid, signal.SIGWINCH)
            for pid in subject.workers():
                _signal(pid, signal.SIGSTOP)
                _signal(pid, signal.SIGCONT)

    def _starve(self, subject: Subject) -> None:
        """Let the supervisor open nothing while a worker of it is killed."""
        # A program that begins anew has few open, and could not even be read if it had to stay so.
        lowest = max(self._fds, len(os.listdir(f"/proc/{subject.pid}/fd")))
        before = resource.prlimit(subject.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(subject.pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
        try:
            self._kill_one(subject)
            subject.take()
        finally:
            resource.prlimit(subject.pid, resource.RLIMIT_NOFILE, before)


class Subject(ABC):
    """A container of a trial: how it is fed, and where its output is."""

    pid = 0

    @abstractmethod
    def feed(self) -> None:
        """Let the container say one block."""

    @abstractmethod
    def take(self) -> None:
        """Read some of the output, if it has a reader."""

    @abstractmethod
    def expect(self, size: int) -> None:
        """Know that so much more will come."""

    @abstractmethod
    def take_all(self) -> None:
        """Read all that is expected, if it has a reader."""

    @abstractmethod
    def finish(self) -> None:
        """Give it no more lines, and wait for its end."""

    @abstractmethod
    def output(self) -> bytes:
        """Return all that it has said."""

    @abstractmethod
    def status(self) -> int:
        """Return how it has ended."""

    def workers(self) -> list[int]:
        """Return the pids of the living workers."""
        return [
            pid
            for pid in waiting.children_of(self.pid)
            if waiting.title_of(pid).endswith("]") and waiting.is_alive(pid)
        ]

    def living(self) -> list[str]:
        """Return what should be gone by now."""
        return []


class _Reader:
    """The client of an output fifo."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._is_over = False
        self.data = bytearray()

    def take(self) -> None:
        with suppress(BlockingIOError):
            chunk = os.read(self._fd, 1 << 16)
            self.data += chunk
            self._is_over = not chunk

    def take_until(self, size: int) -> None:
        while len(self.data) < size:
            waiting.wait_readable(self._fd)
            self.take()
            if self._is_over:
                raise LostError(f"the end after {len(self.data)} bytes, of {size} and more")

    def close(self) -> None:
        os.close(self._fd)

    def take_rest(self) -> None:
        self.data += waiting.read_to_end(self._fd)


class Supervised(Subject):
    """Under forkshim-shim, with an engine."""

    def __init__(self, directory: Path, bundle: Path, kind: str) -> None:
        self._disk = directory / "disk"
        self._disk.mkdir()
        sinks = {
            "file": f"file:{self._disk}/log",
            "rotation": f"file,max-size=64k,keep=1000:{self._disk}/log",
            "cri": f"cri:{self._disk}/log",
            "dropping": f"path,policy=drop-old:{directory}/out",
        }
        sink = sinks.get(kind, "stdout")
        self._kind = kind
        self._out = directory / "out"
        self._engine = Engine(
            directory / "state",
            bundles.fresh_id("fault"),
            bundle,
            terminal=kind == "console",
            containerdStdin="stdin",
            containerdStdout=sink,
            containerdStderr="",
        )
        self._reader: _Reader | None = None
        self._wanted = len("ready\n")

    def __enter__(self) -> Supervised:
        engine = self._engine
        if self._kind in WITH_A_DISK:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", self._disk], check=True
            )
        elif self._kind == "dropping":
            os.mkfifo(self._out)
            self._reader = _Reader(os.open(self._out, os.O_RDONLY | os.O_NONBLOCK))
        else:
            self._reader = _Reader(engine.attach("stdout")[0])
        engine.run()
        self.pid = engine.shim_pid
        # Without a descriptor a creation fails, in order: the faults are for what has been created.
        waiting.wait_worker(self.pid, "console" if self._kind == "console" else "stdout")
        self._stdin = engine.open("stdin", os.O_WRONLY)
        if self._reader is not None:
            self._reader.take_until(self._wanted)
        return self

    def __exit__(self, *_error: object) -> None:
        self._engine.__exit__(None, None, None)
        if self._kind in WITH_A_DISK:
            subprocess.run(["umount", self._disk], check=True)
        elif self._kind == "dropping" and self._reader is not None:
            self._reader.close()

    def feed(self) -> None:
        os.write(self._stdin, b"go\n")

    def take(self) -> None:
        if self._reader is not None:
            self._reader.take()

    def expect(self, size: int) -> None:
        self._wanted += size

    def take_all(self) -> None:
        if self._reader is not None:
            self._reader.take_until(self._wanted)

    def fill_disk(self) -> None:
        """Leave no room on it for a moment."""
        status = os.statvfs(self._disk)
        with (self._disk / "filler").open("wb") as file, suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, status.f_bfree * status.f_bsize)
        for _ in range(20):  # whoever has to write gets to it meanwhile
            self.workers()
        (self._disk / "filler").unlink()

    def finish(self) -> None:
        if self._kind == "console":
            os.write(self._stdin, b"\x04")
        self._engine.control("0 0 0\n")
        self._engine.close("stdin")
        if self._reader is not None:
            self._reader.take_rest()
        self._engine.wait_end()
        self._engine.wait_shim()

    def output(self) -> bytes:
        if self._reader is not None:
            return bytes(self._reader.data)
        if self._kind == "cri":
            return cri_streams((self._disk / "log").read_bytes())["stdout"]
        numbered = sorted(
            self._disk.iterdir(),
            key=lambda path: int(path.suffix[1:] or 0),
            reverse=True,
        )
        return b"".join(path.read_bytes() for path in numbered)

    def status(self) -> int:
        return self._engine.exit_status()

    def living(self) -> list[str]:
        return self._engine.leftovers()


class Adopted(Subject):
    """Under `forkshim run --detach`, and under those who adopt it."""

    def __init__(self, directory: Path, bundle: Path) -> None:
        self._directory = directory
        self._bundle = bundle
        self._wanted = len("ready\n")

    def __enter__(self) -> Adopted:
        os.mkfifo(self._directory / "out")
        self._fd = os.open(self._directory / "out", os.O_RDONLY | os.O_NONBLOCK)
        self._go_fd = os.open(self._directory / "go", os.O_RDWR)
        self._daemon = self._run()
        self._reader = _Reader(self._fd)
        self._reader.take_until(self._wanted)
        fd_stores.wait_published(self._daemon.state_dir)
        self.pid = self._daemon.pid
        return self

    def _run(self) -> Daemon:
        return Daemon(self._directory, self._bundle, "--log", self._directory / "out")

    def __exit__(self, *_error: object) -> None:
        os.close(self._fd)
        os.close(self._go_fd)
        self._daemon.close()

    def feed(self) -> None:
        os.write(self._go_fd, b"go\n")

    def take(self) -> None:
        self._reader.take()

    def expect(self, size: int) -> None:
        self._wanted += size

    def take_all(self) -> None:
        self._reader.take_until(self._wanted)

    def succeed(self) -> None:
        # With all of its workers dead at the same instant nobody would have anything left.
        waiting.wait_true(lambda: bool(self.workers()))
        self._daemon.kill()
        self.take()
        self._daemon.succeed_in("adopt", "--detach")
        self.pid = self._daemon.pid

    def finish(self) -> None:
        os.write(self._go_fd, b"end\n")
        self._reader.take_rest()

    def output(self) -> bytes:
        return bytes(self._reader.data)

    def status(self) -> int:
        return int(self._daemon.wait_end())

    def living(self) -> list[str]:
        return self._daemon.living()


class Fed(Adopted):
    """The same with a stdin: under `forkshim run -i` in a session of its own at first."""

    def _run(self) -> Daemon:
        log = ("--log", self._directory / "out")
        return Daemon(self._directory, self._bundle, *log, stdin=self._go_fd)

    def status(self) -> int:
        try:
            return super().status()
        except FileNotFoundError:  # the first one takes all away when it sees the end
            return self._daemon.wait_first()


def _signal(pid: int, signum: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signum)
