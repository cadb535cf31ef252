"""The supervised process itself: signals to it, and how it ended, whoever's child it is.

Its first supervisor is its parent (as subreaper) and reaps it. A supervisor that has adopted it is
not: whoever is the parent now reaps it, and the kernel tells the status to those who hold a pidfd
from before (PIDFD_GET_INFO, Linux 6.15). Where it does not, the end is `Unknown`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import struct

from supervisor.linux import fds, procfs
from supervisor.linux.errors import reason
from supervisor.linux.exit_status import Unknown, from_wait_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from supervisor.linux.event_loop import Loop
    from supervisor.linux.exit_status import Termination
    from supervisor.linux.reaper import Reaper
    from supervisor.state.fd_store import FdReader, FdWriter

_SHORTEST_LOOK_S = 0.002
_LONGEST_LOOK_S = 1.0

_INFO = struct.Struct("=QQ11Ii")  # struct pidfd_info, PIDFD_INFO_SIZE_VER0
_PIDFD_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11
_PIDFD_INFO_EXIT = 1 << 3


class Payload:
    """One process. Owns its pidfd until `close`."""

    def __init__(
        self, loop: Loop, reaper: Reaper, pid: int, pidfd: fds.Fd, *, is_child: bool = True
    ) -> None:
        """Take the pidfd, which may be a closed one; of a child the pid is enough."""
        self._loop = loop
        self._next_look = loop.timer(self._on_end_of_a_stranger)
        self._reaper = reaper
        self.pid = pid
        self._pidfd = pidfd
        self._is_child = is_child
        self._is_watched = False
        self._look_s = _SHORTEST_LOOK_S
        self._on_exit: Callable[[Termination], None] = lambda _termination: None

    @classmethod
    def of_child(cls, loop: Loop, reaper: Reaper, pid: int) -> Payload:
        """Return a child of ours: while we have not reaped it, the pid is its own."""
        try:
            pidfd = fds.Fd(os.pidfd_open(pid))
        except OSError:  # reaped already, and remembered; or no descriptor is left
            pidfd = fds.Fd(-1)
        return cls(loop, reaper, pid, pidfd)

    def pack(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return what `go_on` needs."""
        pidfd = fd_writer.add(self._pidfd.fileno())
        return {"pid": self.pid, "pidfd": pidfd, "is_child": self._is_child}

    @classmethod
    def go_on(
        cls,
        loop: Loop,
        reaper: Reaper,
        packed: Mapping[str, Any],
        contents: FdReader,
        *,
        is_parent: bool,
    ) -> Payload:
        """Return the process of an earlier supervisor: of our own past, or of one that has died."""
        is_child = is_parent and packed["is_child"]
        return cls(loop, reaper, packed["pid"], contents.take(packed["pidfd"]), is_child=is_child)

    def expect(self, on_exit: Callable[[Termination], None]) -> None:
        """Call `on_exit` once, when the process has ended; maybe at once."""
        self._on_exit = on_exit
        if self._is_child:
            self._reaper.expect(self.pid, on_exit)
        elif not self._pidfd.is_open:
            on_exit(Unknown("no pidfd of it was left"))
        else:
            self._is_watched = True
            self._loop.watch(self._pidfd.fileno(), self._on_end_of_a_stranger)

    def signal(self, signum: int) -> None:
        """Send a signal; one that comes too late does nothing."""
        if self._pidfd.is_open:
            try:
                signal.pidfd_send_signal(self._pidfd.fileno(), signum)
            except ProcessLookupError:
                return
        elif self._is_child:
            os.kill(self.pid, signum)  # unreaped, so the pid is its own

    def close(self) -> None:
        """Forget it."""
        self._next_look.cancel()
        if self._is_watched:
            self._is_watched = False
            self._loop.forget(self._pidfd.fileno())
        self._pidfd.close()

    def _on_end_of_a_stranger(self) -> None:
        """It is a zombie at least, whose parent may take its time."""
        if self._is_watched:
            self._is_watched = False
            self._loop.forget(self._pidfd.fileno())
        seen = _look_at_zombie(self.pid, self._pidfd.fileno())
        if seen is not None:
            self._on_exit(seen)
        elif _is_reaped(self._pidfd.fileno()):
            self._on_exit(end_of(self._pidfd.fileno()))
        else:
            # No event tells of the reaping: a pidfd is readable before and after it.
            look_s, self._look_s = self._look_s, min(2 * self._look_s, _LONGEST_LOOK_S)
            self._next_look.start(look_s)


def _look_at_zombie(pid: int, pidfd: int) -> Termination | None:
    """Return how an unreaped process has ended; None if that cannot be seen."""
    status = procfs.zombie_wait_status(pid)
    # The pidfd is checked after the file: only then did the file tell of this process, and not of
    # another that has its pid now. A 0 is also what a reader without the right to trace sees.
    if not status or _is_reaped(pidfd):
        return None
    return from_wait_status(status)


def _is_reaped(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    # Before Linux 6.9 there is no POLLHUP: then a signal finds nobody once it is reaped.
    if any(events & select.POLLHUP for _fd, events in poller.poll(0)):
        return True
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def end_of(pidfd: int) -> Termination:
    """Return how a process ended that its parent has reaped; `Unknown` if the kernel won't tell.

    Source: include/uapi/linux/pidfd.h, PIDFD_GET_INFO with PIDFD_INFO_EXIT.
    """
    packed = bytearray(_INFO.pack(_PIDFD_INFO_EXIT, *[0] * 13))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, packed)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL):
            return Unknown("this kernel tells it to nobody but the parent")
        return Unknown(f"PIDFD_GET_INFO: {reason(error)}")
    mask, *_ids, exit_code = _INFO.unpack(packed)
    if not mask & _PIDFD_INFO_EXIT:
        return Unknown("the kernel has not kept it")
    return from_wait_status(exit_code)
