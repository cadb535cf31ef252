"""Children that a test forks itself: each ends in os._exit and is reaped, however the test went."""

from __future__ import annotations

import os
import resource
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from supervisor.linux import exit_status, spawn
from tests.harness import waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Child:
    """A child process that is reaped by `wait` or at the end of its `with` block."""

    def __init__(self, pid: int) -> None:
        """Take ownership of a child that nobody has waited for."""
        self.pid = pid
        self._ended: exit_status.Termination | None = None

    def wait(self) -> exit_status.Termination:
        """Wait for its end and reap it; a second call returns the same."""
        if self._ended is None:
            waiting.wait_process(self.pid)
            info = os.waitid(os.P_PID, self.pid, os.WEXITED)
            assert info is not None
            self._ended = exit_status.from_siginfo(info)
        return self._ended

    def kill(self) -> exit_status.Termination:
        """Kill it with SIGKILL, if it lives, and reap it."""
        if self._ended is None:
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def status(self) -> dict[str, str]:
        """Return the fields of /proc/PID/status."""
        with open(f"/proc/{self.pid}/status") as file:
            return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


@contextmanager
def owned(pid: int) -> Iterator[Child]:
    """Own the child `pid` for a block, and kill it at its end if it still lives."""
    child = Child(pid)
    try:
        yield child
    finally:
        child.kill()


@contextmanager
def forked(work: Callable[[], None]) -> Iterator[Child]:
    """Run `work` in a child: status 0, or 70 and a traceback if it raised."""
    with owned(spawn.fork_worker(work)) as child:
        yield child


@contextmanager
def finishing(work: Callable[[], None]) -> Iterator[Child]:
    """As `forked`, but the child comes to its end by itself: it is waited for and not killed."""
    with forked(work) as child:
        yield child
        child.wait()


@contextmanager
def file_limit(limit_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond `limit_bytes`; undone for what is written later."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def has_no_children() -> bool:
    """Say whether this process has no child at all, not even an unreaped one."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False
