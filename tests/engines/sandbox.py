"""A pid and mount namespace for daemons: its own /proc and /run, and an end that leaves nothing.

containerd and its shims keep sockets, fifos and the runtime's state in /run/containerd, wherever
their own directories are. Each sandbox has a /run of its own, so test runs do not meet there.
The kernel kills what lives in a pid namespace when its first process ends.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.harness import waiting

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from _typeshed import StrPath

_NS_GET_PARENT = 0xB702

# The first process ignores SIGCHLD: the kernel reaps the orphans that it inherits (wait(2)).
_FIRST_PROCESS = """\
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -m 711 /run/containerd
echo ready
exec env --ignore-signal=CHLD sleep infinity
"""


@dataclass(frozen=True)
class Process:
    """A process of a sandbox, by its pid outside."""

    pid: int
    title: str


@dataclass(frozen=True)
class Sandbox:
    """The namespaces of the process `first_pid`, its pid outside."""

    first_pid: int

    def enter(self, *words: StrPath) -> Sequence[StrPath]:
        """Return the command that runs `words` inside. Its pid is that of nsenter(1)."""
        return ["nsenter", "-t", str(self.first_pid), "-m", "-p", "--", *words]

    def run(self, *words: StrPath, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end; `options` are those of subprocess.run.

        Raises:
            AssertionError: The command failed, and `check` was not False.
        """
        check = options.pop("check", True)
        options = {"stdin": subprocess.DEVNULL, "timeout": waiting.LIMIT_S, **options}
        if "input" in options:
            del options["stdin"]
        done = subprocess.run(self.enter(*words), capture_output=True, text=True, **options)
        assert not check or done.returncode == 0, (words, done.returncode, done.stdout, done.stderr)
        return done

    def spawn_daemon(self, *words: StrPath, log: Path, env: Mapping[str, str]) -> int:
        """Start a daemon inside, a child of the first process; returns its pid outside.

        Its output is appended to `log`.
        """
        script = 'echo $$; exec "$@" >>"$0" 2>&1'
        daemon = ("setsid", "--fork", "sh", "-c", script, log, *words)
        inside = self.run(*daemon, env=env).stdout
        return self.pid_outside(int(inside))

    def processes(self) -> list[Process]:
        """Return the living processes inside, containers' too, without the first, by their pids."""
        is_inside: dict[str, bool] = {}
        found = []
        for name in filter(str.isdecimal, os.listdir("/proc")):
            try:
                namespace = os.readlink(f"/proc/{name}/ns/pid")
                if namespace not in is_inside:
                    is_inside[namespace] = self._has_inside(f"/proc/{name}/ns/pid")
            except OSError:  # gone, or a zombie
                continue
            pid = int(name)
            if is_inside[namespace] and pid != self.first_pid and waiting.is_alive(pid):
                found.append(Process(pid, waiting.title_of(pid)))
        return sorted(found, key=lambda process: process.pid)

    def _has_inside(self, path: str) -> bool:
        """Say whether a pid namespace is the sandbox's or below it (ioctl_ns(2))."""
        wanted = os.stat(f"/proc/{self.first_pid}/ns/pid").st_ino
        fd = os.open(path, os.O_RDONLY)
        try:
            while os.fstat(fd).st_ino != wanted:
                parent = fcntl.ioctl(fd, _NS_GET_PARENT)
                os.close(fd)
                fd = parent
        except PermissionError:  # it is our own
            return False
        finally:
            os.close(fd)
        return True

    def pid_outside(self, pid_inside: int) -> int:
        """Return the pid outside of a process that has `pid_inside` inside."""
        for process in self.processes():
            with suppress(FileNotFoundError, ProcessLookupError):  # another one that has ended
                if self.pid_inside(process.pid) == pid_inside:
                    return process.pid
        raise ProcessLookupError(f"no process has pid {pid_inside} in the sandbox")

    def pid_inside(self, pid: int) -> int:
        """Return the pid inside of a process of the sandbox (proc(5), NSpid)."""
        level = len(_pids(self.first_pid)) - 1
        return _pids(pid)[level]

    def path(self, path: str) -> Path:
        """Return the path outside of a file that has an absolute `path` inside."""
        return Path(f"/proc/{self.first_pid}/root{path}")

    def mounts(self) -> list[str]:
        """Return the mount points inside, in the order of their mounts."""
        with open(f"/proc/{self.first_pid}/mountinfo") as file:
            return [line.split()[4] for line in file]


def _pids(pid: int) -> list[int]:
    """Return the pids of a process in each pid namespace, ours first."""
    with open(f"/proc/{pid}/status") as file:
        (line,) = (line for line in file if line.startswith("NSpid:"))
    return [int(word) for word in line.split()[1:]]


@contextmanager
def sandbox() -> Iterator[Sandbox]:
    """Make the namespaces; kill what is inside at the end, or when the test run dies."""
    command = [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("sh", "-ec", _FIRST_PROCESS),
    ]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as unshare:
        assert unshare.stdout is not None
        assert waiting.read_until(unshare.stdout.fileno(), b"ready\n")
        (first_pid,) = waiting.children_of(unshare.pid)
        try:
            yield Sandbox(first_pid)
        finally:
            unshare.kill()
            # The kernel ends the first process after all others of its namespace.
            waiting.wait_process(first_pid)
