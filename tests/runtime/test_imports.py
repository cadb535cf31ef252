"""An upgrade, or a removal, takes the files away while containers run: nobody imports any more.

The program is a copy of this checkout's that is removed once the container runs. Every import from
then on, and every one of a forked process at any time, is refused and written down.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import supervisor
from tests.harness import bundles, mounts, runtime_calls, waiting
from tests.harness.fake_journal import FakeJournal, FakeStreams
from tests.harness.person import Person

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.runc

PROGRAM = """\
#!{python}
import os, sys, traceback
LATE, ARMED = {late!r}, {armed!r}
parent = os.getpid()

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if os.getpid() != parent or os.path.exists(ARMED):
            with open(LATE, "a") as file:
                title = open("/proc/self/cmdline").read()
                file.write(f"{{title}}: {{name}}\\n")
                traceback.print_stack(file=file)
            raise ImportError(f"{{name}} is gone")

sys.meta_path.insert(0, Refusal())
from supervisor.cli.main import main
sys.exit(main())
"""


@dataclass(frozen=True)
class Kind:
    """A sink and its options, and the workers that there are for it.

    Attributes:
        log: For --log; LOG stands for a path.
        options: More of `forkshim run`.
        workers: Their names in ps(1).
        is_fifo: LOG is a fifo, whose reader comes late.
        line: What the container says, with a word in the place of WORD.
        is_quiet: It does not say it to stderr as well.
    """

    log: str
    options: tuple[str, ...] = ()
    workers: frozenset[str] = frozenset({"stdout", "stderr"})
    is_fifo: bool = False
    line: str = "WORD"
    is_quiet: bool = False


ONE = frozenset({"stdout"})
"""Both outputs into one file go through one worker."""
JSON = '{"msg": "WORD", "level": "warn", "n": 1}'
CONSOLE = frozenset({"console"})
KINDS = {
    "passthrough": Kind("passthrough", workers=ONE),
    "passthrough that drops": Kind("passthrough,policy=drop-old", workers=ONE),
    "path": Kind("path:LOG", workers=ONE),
    "fifo": Kind("path:LOG", is_fifo=True),
    "fifo that drops": Kind("path,policy=drop-new:LOG", is_fifo=True),
    "file": Kind("file:LOG", workers=ONE),
    "file that rotates and drops": Kind(
        "file,max-size=64k,keep=2,policy=drop-new:LOG", workers=ONE
    ),
    "cri": Kind("cri:LOG"),
    "cri that rotates and drops": Kind("cri,max-size=64k,policy=drop-old:LOG"),
    "journal": Kind("journal"),
    "journal, json": Kind("journal,json=yes", line=JSON),
    "journal, json, joined, dropping": Kind(
        "journal,json=yes,join=indented,policy=drop-new,tag=web,max-line=4k", line=JSON
    ),
    "journal-stream": Kind("journal-stream", workers=ONE, is_quiet=True),
    "journal-stream that drops": Kind("journal-stream,policy=drop-old", workers=ONE, is_quiet=True),
    "console": Kind("cri:LOG", ("--terminal",), workers=CONSOLE),
    "console, journal, json": Kind("journal,json=yes", ("--terminal",), workers=CONSOLE, line=JSON),
    "stdin": Kind(
        "file:LOG", ("--interactive",), workers=frozenset({"stdin", "stdout"}), is_quiet=True
    ),
    "notify": Kind(
        "file:LOG",
        ("--sdnotify=container",),
        workers=frozenset({"notify", "stdout"}),
        is_quiet=True,
    ),
    "no output": Kind("null", workers=frozenset()),
}
"""Whoever adds a kind of worker adds a line."""
SPEAKS = """
import os, socket, sys
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.connect(os.environ["NOTIFY_SOCKET"])
for line in open("/tmp/go"):
    print(line, end="", flush=True)
    manager.send(b"STATUS=" + line.encode())
sys.exit(7)
"""


@dataclass
class Checkout:
    """A copy of the program, for one test."""

    directory: Path
    late: Path
    armed: Path

    @property
    def program(self) -> Path:
        return self.directory / "forkshim"

    def remove(self) -> None:
        """Take it away, and refuse every import from now on."""
        self.armed.touch()
        shutil.rmtree(self.directory)

    def check(self) -> None:
        """Fail if something was imported all the same."""
        assert not self.late.exists(), self.late.read_text()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    made = Checkout(tmp_path / "copy", tmp_path / "late", tmp_path / "armed")
    source = Path(supervisor.__file__).parent.parent
    for name in ("supervisor", "workers"):
        shutil.copytree(source / name, made.directory / name)
    text = PROGRAM.format(python=sys.executable, late=str(made.late), armed=str(made.armed))
    made.program.write_text(text)
    made.program.chmod(0o755)
    return made


@pytest.fixture
def journal() -> Iterator[tuple[Path, Callable[[], None]]]:
    """What makes a journald of ours the one of a process, and where it keeps what came."""
    with ExitStack() as stack:
        run = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        (run / "systemd/journal").mkdir(parents=True)
        stack.enter_context(FakeJournal(run / "systemd/journal/socket"))
        stack.enter_context(FakeStreams(run / "systemd/journal/stdout"))
        yield run / "systemd/journal", mounts.make_run(run)


class Container:
    """One that says the lines that it is told to, under a program that will be gone."""

    def __init__(
        self,
        kind: Kind,
        checkout: Checkout,
        tmp_path: Path,
        rootfs: Path,
        journal: tuple[Path, Callable[[], None]],
    ) -> None:
        self.id = bundles.fresh_id("imports")
        self.kind = kind
        self.root = tmp_path / "root"
        self._log = tmp_path / "log"
        self._journal = journal[0]
        self._heard = bytearray()
        self._reader = -1
        os.mkfifo(tmp_path / "go")
        self._go = os.open(tmp_path / "go", os.O_RDWR)
        more = "" if kind.is_quiet else 'echo "$line" >&2;'
        script = f'while read -r line; do echo "$line"; {more} done < /tmp/go; exit 7'
        if not kind.workers:
            script = f"exec > /dev/null 2>&1; {script}"
        if "stdin" in kind.workers:
            script = 'while read -r line; do echo "$line"; done; exit 7'
        mount = bundles.bind(tmp_path / "go", "/tmp/go")
        has_terminal = "--terminal" in kind.options
        args, mounts = bundles.shell(script), [mount]
        self._manager: socket.socket | None = None
        if "notify" in kind.workers:
            self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._manager.bind(str(tmp_path / "manager"))
            rootfs, more_mounts = bundles.make_host_rootfs(tmp_path / "host")
            args, mounts = ["/usr/bin/python3", "-c", SPEAKS], [mount, *more_mounts]
        document = bundles.config(rootfs, args, mounts=mounts, terminal=has_terminal)
        bundle = bundles.make_bundle(tmp_path / "bundle", document)
        if kind.is_fifo:
            os.mkfifo(self._log)
        else:
            self._log.touch()
        sink = kind.log.replace("LOG", str(self._log))
        with open(os.devnull if kind.is_fifo else self._log, "wb") as output:
            self.command = subprocess.Popen(
                [
                    *(checkout.program, "run", "--root", self.root, "--bundle", bundle),
                    *("--log", sink, *kind.options, self.id),
                ],
                stdin=subprocess.PIPE,
                stdout=output if kind.log.startswith("passthrough") else subprocess.DEVNULL,
                stderr=output if kind.log.startswith("passthrough") else subprocess.PIPE,
                env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "manager")}
                if self._manager is not None
                else None,
                start_new_session=True,
                preexec_fn=journal[1],
            )
        if kind.is_fifo:
            waiting.wait_child(self.command.pid)  # which waits for a reader
            self._reader = os.open(self._log, os.O_RDONLY | os.O_NONBLOCK)

    def workers(self) -> dict[str, int]:
        """Return the living ones' pids by their names."""
        titles = {pid: waiting.title_of(pid) for pid in waiting.children_of(self.command.pid)}
        prefix = f"forkshim: {self.id} ["
        return {
            title.removeprefix(prefix)[:-1]: pid
            for pid, title in titles.items()
            if title.startswith(prefix) and waiting.is_alive(pid)
        }

    def wait_workers(self, killed: dict[str, int] | None = None) -> dict[str, int]:
        """Wait until all are there, and none is of `killed`."""

        def are_there() -> bool:
            found = self.workers()
            return found.keys() == {*self.kind.workers, "fds"} and not (
                killed and set(found.values()) & set(killed.values())
            )

        waiting.wait_true(are_there)
        return self.workers()

    def say(self, word: str) -> None:
        """Have the container say it, and wait until that has come where it belongs."""
        line = self.kind.line.replace("WORD", word) + "\n"
        if "stdin" in self.kind.workers:
            assert self.command.stdin is not None
            self.command.stdin.write(line.encode())
            self.command.stdin.flush()
        else:
            os.write(self._go, line.encode())
        if not self.kind.workers:
            return
        wanted = 1 if self.kind.is_quiet else 2
        waiting.wait_true(lambda: self.said().count(word.encode()) >= wanted)

    def said(self) -> bytes:
        if self._manager is not None:
            while waiting.is_readable(self._manager.fileno()):
                self._heard += self._manager.recv(65536) + b"\n"
            return bytes(self._heard)
        if self._reader >= 0:
            if waiting.is_readable(self._reader):
                self._heard += os.read(self._reader, 65536)
            return bytes(self._heard)
        if self.kind.log.startswith("journal-stream"):
            return (self._journal / "stdout.kept").read_bytes()
        if self.kind.log.startswith("journal"):
            return (self._journal / "socket.kept").read_bytes()
        return self._log.read_bytes()

    def tell(self, order: str) -> None:
        control = os.open(self.root / self.id / "init" / "control", os.O_RDWR)
        os.write(control, order.encode() + b"\n")
        waiting.wait_true(lambda: not waiting.is_readable(control))
        os.close(control)

    def end(self) -> tuple[int, str]:
        """Let it come to its end; returns the supervisor's status and what that has said."""
        os.close(self._go)
        self._go = -1
        _stdout, stderr = self.command.communicate(timeout=waiting.LIMIT_S)
        return self.command.returncode, (stderr or b"").decode()

    def close(self) -> None:
        for fd in (self._go, self._reader):
            if fd >= 0:
                os.close(fd)
        if self._manager is not None:
            self._manager.close()
        self.command.kill()
        self.command.communicate()
        runtime_calls.delete(self.id)


@pytest.mark.parametrize("name", KINDS)
def test_nobody_imports_once_the_container_runs(
    checkout: Checkout,
    tmp_path: Path,
    rootfs: Path,
    journal: tuple[Path, Callable[[], None]],
    name: str,
) -> None:
    kind = KINDS[name]
    container = Container(kind, checkout, tmp_path, rootfs, journal)
    try:
        container.say("alpha")
        killed = container.wait_workers()
        checkout.remove()
        for pid in killed.values():
            os.kill(pid, signal.SIGKILL)
        if kind.workers:
            container.say("beta")
        container.wait_workers(killed)
        if not kind.is_fifo:
            container.tell("reopen")
        hears = tmp_path / "root" / container.id / "init" / "attach.1"
        os.mkfifo(hears, 0o600)
        listener = os.open(hears, os.O_RDONLY | os.O_NONBLOCK)
        container.tell("attach stdout attach.1")
        waiting.wait_true(lambda: os.fstat(listener).st_mode & 0o777 != 0o600)
        if os.fstat(listener).st_mode & 0o777 == 0o400:
            container.say("gamma")
            assert waiting.read_until(listener, b"gamma")
        os.close(listener)
        status, said = container.end()
        assert status == 7
        assert "Traceback" not in said
    finally:
        container.close()
    checkout.check()


def test_a_worker_that_gives_a_terminal_back_imports_nothing(
    checkout: Checkout, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    container_id = bundles.fresh_id("imports")
    bundle = make_bundle("echo ready; read word; echo $word; exit 7")
    words = ("--root", tmp_path / "root", "--bundle", bundle, "-t", "-i", container_id)
    with Person(*words, program=checkout.program) as person:
        person.see(b"ready")
        checkout.remove()
        (worker,) = (
            pid
            for pid in waiting.children_of(person.command.pid)
            if waiting.title_of(pid).endswith("[stdin]")
        )
        os.kill(worker, signal.SIGKILL)
        person.type(b"hello\r")
        assert person.wait() == 7
        assert person.has_its_terminal_back
    checkout.check()
