"""The `conmon` of this checkout as a program, for an engine or for a test that plays one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tests.harness import waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_PROGRAM = """\
#!{python}
import os
os.environ.pop("PYTHONSAFEPATH", None)
from supervisor.frontends.conmon.main import main
main()
"""
_LONGEST_MESSAGE = 65536


def make_program(directory: Path) -> Path:
    """Make the program, which has to be called `conmon`; returns its path."""
    path = directory / "conmon"
    path.write_text(_PROGRAM.format(python=sys.executable))
    path.chmod(0o755)
    return path


class Call:
    """One conmon of a test that plays the engine. Owns the sockets until `close`."""

    def __init__(
        self,
        program: Path,
        words: Sequence[str],
        *,
        is_attached: bool = False,
        enter: Callable[[], None] | None = None,
        parked: Sequence[int] = (),
    ) -> None:
        """Start it; it waits for `start`. `enter` is called in the child; it gets `parked`, too."""
        pairs = {
            name: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for name in ("_OCI_SYNCPIPE", "_OCI_STARTPIPE", "_OCI_ATTACHPIPE")
            if is_attached or name != "_OCI_ATTACHPIPE"
        }
        self.pipes = {name: pair[0] for name, pair in pairs.items()}
        theirs = {name: pair[1] for name, pair in pairs.items()}
        environment = {name: str(end.fileno()) for name, end in theirs.items()}
        self.process = subprocess.Popen(
            [program, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[*parked, *(end.fileno() for end in theirs.values())],
            env={**os.environ, **environment},
            preexec_fn=enter,
        )
        for end in theirs.values():
            end.close()

    def start(self) -> None:
        """Say the word for which conmon waits."""
        self.pipes["_OCI_STARTPIPE"].send(b"\0")

    def message(self, name: str = "_OCI_SYNCPIPE") -> dict[str, Any] | None:
        """Return the next message; None at the end."""
        packet = self.pipes[name].recv(_LONGEST_MESSAGE)
        return json.loads(packet) if packet else None

    def forked(self) -> None:
        """Wait until the first process has ended: the supervisor is forked."""
        stdout, stderr = self.process.communicate(timeout=60)
        assert (self.process.returncode, stdout, stderr) == (0, b"", b"")

    def close(self) -> None:
        """Hang up."""
        for end in self.pipes.values():
            end.close()


def run(
    program: Path, *words: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run it to the end of its first process."""
    return subprocess.run(
        [program, *words], capture_output=True, text=True, env=env, timeout=60, check=False
    )


def exit_command(script: str) -> list[str]:
    """Return the options for an exit command that is a shell script."""
    words = ("-c", script)
    return ["--exit-command", "/bin/sh", *(f"--exit-command-arg={word}" for word in words)]


STAYS = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"
PROCESS = {
    "user": {"uid": 0, "gid": 0},
    "env": ["PATH=/bin"],
    "cwd": "/",
    "noNewPrivileges": True,
}


class Engine:
    """Plays an engine for one container. Deletes it at the end.

    Attributes:
        enter: Called in each conmon before it is executed; None for nothing.
        parked: Descriptors that each conmon gets beside its pipes.
        runtime: The path of the runtime.
    """

    def __init__(self, directory: Path, bundle: Path) -> None:
        self.directory = directory
        self.bundle = bundle
        self.cid = f"conmon-{os.getpid()}-{directory.name}"[:60]
        self.program = make_program(directory)
        self.calls: list[Call] = []
        self.created: dict[str, Any] | None = None
        self.enter: Callable[[], None] | None = None
        self.parked: list[int] = []
        self.runtime = "/usr/sbin/runc"
        for name in ("exits", "persist"):
            (directory / name).mkdir()

    def words(self, *more: str, log: str | None = None) -> list[str]:
        return [
            *("-c", self.cid, "-u", self.cid, "-r", self.runtime, "-n", "name"),
            *("-l", log or f"k8s-file:{self.directory}/log", "--log-level", "info"),
            *("--exit-dir", f"{self.directory}/exits", "--full-attach", *more),
        ]

    def call(self, words: list[str], *, is_attached: bool = False) -> Call:
        call = Call(
            self.program, words, is_attached=is_attached, enter=self.enter, parked=self.parked
        )
        self.calls.append(call)
        return self.calls[-1]

    def create(self, *more: str, log: str | None = None) -> Call:
        """Create the container; the runtime's start is still to come."""
        call = self.begin(*more, log=log)
        self.created = call.message()
        return call

    def begin(self, *more: str, log: str | None = None) -> Call:
        """Begin the creation."""
        files = (f"{self.directory}/{name}" for name in ("pid", "conmon.pid", "persist"))
        pid, own, persist = files
        more = ("-p", pid, "-P", own, "--persist-dir", persist, *more)
        words = ["--api-version", "1", "-b", str(self.bundle), *more]
        call = self.call(self.words(*words, log=log))
        call.start()
        call.forked()
        return call

    def exec(
        self, script: str, *more: str, is_attached: bool = False, has_bundle: bool = True
    ) -> Call:
        """Execute a shell script in the container."""
        spec = self.directory / f"spec-{len(self.calls)}"
        spec.write_text(json.dumps({**PROCESS, "args": ["sh", "-c", script]}))
        session = self.directory / f"session-{len(self.calls)}"
        session.mkdir()
        bundle = ("-b", str(session)) if has_bundle else ()
        words = self.words(
            *("-e", "--exec-process-spec", str(spec), "-p", f"{session}/pid"), *bundle, *more
        )
        return self.call(words, is_attached=is_attached)

    def runc(self, *words: str) -> None:
        subprocess.run(["runc", *words], check=True, capture_output=True, timeout=60)

    @property
    def monitor(self) -> int:
        """The guardian, whose pid the engine knows."""
        return int((self.directory / "conmon.pid").read_text())

    @property
    def supervisor(self) -> int:
        """The parent of the workers; it waits until there is one."""
        found: list[int] = []

        def is_there() -> bool:
            children = waiting.children_of(self.monitor)
            found[:] = [pid for pid in children if waiting.title_of(pid) == f"forkshim: {self.cid}"]
            return len(found) == 1

        waiting.wait_true(is_there)
        return found[0]

    def kill_supervisor(self) -> None:
        """Kill the supervisor, and wait until another one has adopted the container."""
        before = self.own_log().count("adopted: version")
        waiting.send(self.supervisor, signal.SIGKILL)
        waiting.wait_true(lambda: self.own_log().count("adopted: version") > before)

    def status(self) -> str:
        """Wait for the exit file; return what it says."""
        path = self.directory / "exits" / self.cid
        waiting.wait_true(path.exists)
        return path.read_text()

    def log(self) -> list[str]:
        """Return the records of the log without their times."""
        lines = (self.directory / "log").read_text().splitlines()
        return [line.partition(" ")[2] for line in lines]

    def own_log(self) -> str:
        """Return the supervisor's own log."""
        return (self.bundle / ".forkshim" / "shim-log.json").read_text()

    def close(self) -> None:
        subprocess.run(["runc", "delete", "--force", self.cid], capture_output=True, check=False)
        with suppress(FileNotFoundError, ProcessLookupError):
            waiting.wait_process(self.monitor)
        for call in self.calls:
            call.process.communicate(timeout=60)
            call.close()


class Client:
    """A client of an attach socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(60)
        directory = os.open(path.parent, os.O_PATH)
        try:
            self.socket.connect(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
        self.heard = b""

    def send(self, data: bytes) -> None:
        self.socket.send(data)

    def hear(self, wanted: bytes) -> None:
        """Receive until this was heard."""
        while wanted not in self.heard:
            self.hear_more()

    def hear_more(self) -> None:
        """Receive one packet."""
        packet = self.socket.recv(8193)
        assert packet, self.heard[-99:]
        self.heard += packet[1:]

    def hear_end(self) -> None:
        """Receive to the end."""
        while packet := self.socket.recv(8193):
            self.heard += packet[1:]

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
