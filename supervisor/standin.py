"""The process that stands in for a supervisor of the zygote's: what its caller has started.

The caller (systemd, an engine) watches the process that it started, a small shell script
(`systemd/zygote/stand-in`), and not us, who are the zygote's child. So that nobody can tell:

- it passes on every signal, and ends with the status that we write to its status pipe;
- a status pipe at end of file without one means that we were killed; it then kills itself;
- if it is killed, the kernel kills us: its end of the link pipe closes, and the other is ours, with
  O_ASYNC, F_SETOWN and F_SETSIG SIGKILL (fcntl(2)). No code of ours has to run for that.

A reload (`supervisor.upgrade`) keeps both pipes. A process that nobody stands in for has none.
"""

from __future__ import annotations

import fcntl
import os
import select

from supervisor.errors import ShimError
from workers.lean import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

VARIABLE = "FORKSHIM_STANDIN"
_F_SETSIG = 10  # include/uapi/asm-generic/fcntl.h; the module `fcntl` lacks it


class StandIn:
    """One such process. Owns our ends of both pipes for the life of this process."""

    def __init__(self, pid: int, status_wfd: int, link_rfd: int) -> None:
        """Take the pipes."""
        self.pid = pid
        self._status_wfd = status_wfd
        self._link_rfd = link_rfd
        self._has_been_told = False

    @property
    def fds(self) -> tuple[int, int]:
        """What a reload keeps."""
        return (self._status_wfd, self._link_rfd)

    @property
    def setting(self) -> str:
        """What `resume` of the next program reads in its environment."""
        return f"{self.pid} {self._status_wfd} {self._link_rfd}"

    def die_with_it(self) -> None:
        """Have the kernel kill this process when the stand-in ends; that may have happened."""
        fcntl.fcntl(self._link_rfd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(self._link_rfd, _F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(self._link_rfd, fcntl.F_GETFL)
        fcntl.fcntl(self._link_rfd, fcntl.F_SETFL, flags | os.O_ASYNC)
        if is_hung_up(self._link_rfd):
            os.kill(os.getpid(), signal.SIGKILL)

    def end_with(self, status: int) -> None:
        """Have it end with `status`; the first one counts. The last that this process does."""
        if not self._has_been_told:
            self._has_been_told = True
            # What it is waiting for, then what it ends with; twice, as its child that reads the
            # first word may be killed with that in its hands: see the script.
            os.write(self._status_wfd, b"ended\n%d\n" % status * 2)

    def processes(self) -> list[int]:
        """Return its pid and those of its children, which belong where we belong."""
        found = [self.pid]
        try:
            with open(f"/proc/{self.pid}/task/{self.pid}/children") as file:
                found += map(int, file.read().split())
        except (FileNotFoundError, ProcessLookupError):
            return []
        return found


_ours: StandIn | None = None


def ours() -> StandIn | None:
    """Return whoever stands in for this process; None if its caller has started it itself."""
    return _ours


def companions() -> Iterable[int]:
    """Return the processes that are one with this one to whoever looks from outside."""
    return _ours.processes() if _ours is not None else ()


def be_stood_in_for(by: StandIn) -> None:
    """Have `ours` say so from now on."""
    global _ours
    _ours = by


def resume() -> None:
    """Have what an earlier program of this process had; does nothing if it had none.

    Raises:
        ShimError: The variable is not ours.
    """
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        return
    try:
        pid, status_wfd, link_rfd = map(int, text.split())
        for fd in (status_wfd, link_rfd):
            os.set_inheritable(fd, False)
    except (ValueError, OverflowError, OSError):
        raise ShimError(f"{VARIABLE}: not ours: {text!r}") from None
    be_stood_in_for(StandIn(pid, status_wfd, link_rfd))


def tell(status: int) -> int:
    """Have whoever stands in for this process end with `status`, which is returned."""
    if _ours is not None:
        _ours.end_with(status)
    return status


def is_hung_up(fd: int) -> bool:
    """Say whether nobody has the other end of a pipe open."""
    poller = select.poll()
    poller.register(fd, 0)
    return any(events & select.POLLHUP for _fd, events in poller.poll(0))
