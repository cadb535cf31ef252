"""The supervised process itself: signals to it, and how it ended, as a child or not.

Its first supervisor is its parent (as subreaper) and reaps it. A supervisor that has adopted it is
not: another process reaps it, and the kernel tells the status to those who hold a pidfd from before
(PIDFD_GET_INFO, Linux 6.15). Where it does not, the end is `Unknown`.

The end is known from several sources: the kernel has the status and the count of its OOM killer, a
supervisor before this one may have written `exitStatus`. `Process` joins them.

`ContainerInit` is the init of the container that an exec'd process is in: while it lives, the
container does. A 2016 engine has its pid in `../init/pid`, beside the state directory of the exec.
That is a number only: what is meant is a process that is older than this supervisor, which was
started when the container ran already, and that is in the exec'd process's own pid namespace.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import struct
from functools import partial

from supervisor.linux import fds, procfs
from supervisor.linux.errors import reason
from supervisor.linux.exit_status import (
    Unknown,
    from_protocol_status,
    from_wait_status,
    protocol_status,
)
from supervisor.state.directory import ExitStatusFile
from supervisor.systemd.oom import OomWatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from supervisor.linux.event_loop import Loop
    from supervisor.linux.exit_status import Termination
    from supervisor.linux.reaper import Reaper
    from supervisor.state.directory import StateDirectory
    from supervisor.state.fd_store import FdReader, FdWriter

_SHORTEST_LOOK_S = 0.002
_LONGEST_LOOK_S = 1.0

_INFO = struct.Struct("=QQ11Ii")  # struct pidfd_info, PIDFD_INFO_SIZE_VER0
_PIDFD_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11
_PIDFD_INFO_EXIT = 1 << 3

_PATH = os.path.join("..", "init", "pid")
_LONGEST_PID = 10


class Payload:
    """One process. Owns its pidfd until `close`."""

    SNAPSHOT = ("pid", "_pidfd", "_is_child")
    TRANSIENT = ("_loop", "_next_look", "_reaper", "_is_watched", "_look_s", "_on_exit")

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

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return what `restore` needs."""
        pidfd = fd_writer.add(self._pidfd.fileno())
        return {"pid": self.pid, "pidfd": pidfd, "is_child": self._is_child}

    @classmethod
    def restore(
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
    # Before Linux 6.9 there is no POLLHUP: then a signal finds no process once it is reaped.
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
            return Unknown("this kernel tells it to the parent alone")
        return Unknown(f"PIDFD_GET_INFO: {reason(error)}")
    mask, *_ids, exit_code = _INFO.unpack(packed)
    if not mask & _PIDFD_INFO_EXIT:
        return Unknown("the kernel has not kept it")
    return from_wait_status(exit_code)


class Process:
    """One process and its end. Owns what it is made of until `close`.

    Attributes:
        pid: In our pid namespace; another process's once it has been reaped.
        termination: None while it lives.
        oom_kills: How many of its container the kernel had killed for want of memory when its end
            was recorded.
    """

    SNAPSHOT = ("_payload", "_exit_status", "_oom")
    TRANSIENT = (
        "_state_dir",
        "_on_end",
        "pid",  # the payload's
        "termination",  # nothing is handed over after the end
        "oom_kills",
    )

    def __init__(
        self,
        payload: Payload,
        state_dir: StateDirectory,
        oom: OomWatch,
        packed: Mapping[str, Any] | None = None,
    ) -> None:
        """Take the payload, borrow the state directory; see `of_child` and `restore`."""
        self._payload = payload
        self._state_dir = state_dir
        self._exit_status = ExitStatusFile(state_dir, packed)
        self._oom = oom
        self._on_end: Callable[[], None] = lambda: None
        self.pid = payload.pid
        self.termination: Termination | None = None
        self.oom_kills = 0

    @classmethod
    def of_child(cls, loop: Loop, reaper: Reaper, pid: int, state_dir: StateDirectory) -> Process:
        """Return a child of ours that has just been created, or is dead already."""
        payload = Payload.of_child(loop, reaper, pid)
        oom = OomWatch(pid)
        return cls(payload, state_dir, oom)

    @classmethod
    def restore(
        cls,
        loop: Loop,
        reaper: Reaper,
        state_dir: StateDirectory,
        packed: Mapping[str, Any],
        contents: FdReader,
        *,
        is_parent: bool,
    ) -> Process:
        """Return the process of an earlier supervisor, which has `packed` it; see `Payload`."""
        payload = Payload.restore(loop, reaper, packed["payload"], contents, is_parent=is_parent)
        oom = OomWatch(payload.pid, packed["oom"])
        return cls(payload, state_dir, oom, packed["exit_status"])

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return what `restore` needs, among what others have packed."""
        return {
            "payload": self._payload.snapshot(fd_writer),
            "exit_status": self._exit_status.snapshot(),
            "oom": self._oom.snapshot(),
        }

    @property
    def is_alive(self) -> bool:
        """Whether its end is not known so far."""
        return self.termination is None

    def expect(self, on_end: Callable[[], None]) -> None:
        """Call `on_end` once, when its end is known; maybe at once."""
        self._on_end = on_end
        self._payload.expect(self._on_exit)

    def _on_exit(self, termination: Termination) -> None:
        if isinstance(termination, Unknown):
            # A supervisor that was killed after it had seen the end may have written it down.
            recorded = from_protocol_status(self._state_dir.read_exit_status())
            termination = recorded or termination
        self.termination = termination
        self._on_end()

    def signal(self, signum: int) -> None:
        """Send it a signal, if it lives."""
        if self.is_alive:
            self._payload.signal(signum)

    def record_end(self) -> None:
        """Write `exitStatus`, and only then look for what else there is to know.

        Raises:
            OSError: There is none.
        """
        if self.termination is None:
            raise AssertionError("an exit to record, and none seen")
        try:
            self._exit_status.write(protocol_status(self.termination))
        finally:
            self.oom_kills = self._oom.kills()

    def end_in_words(self) -> str:
        """Say how it ended; empty while it lives."""
        if self.termination is None:
            return ""
        if not self.oom_kills:
            return str(self.termination)
        return (
            f"{self.termination}; out of memory: "
            f"the kernel killed {self.oom_kills} of its processes"
        )

    def close(self) -> None:
        """Forget it."""
        self._payload.close()
        self._exit_status.close()


class ContainerInit:
    """One init. Owns a pidfd of it until `close`."""

    def __init__(self, loop: Loop, pidfd: fds.Fd) -> None:
        """Take the pidfd; a closed one is that of an init that is not known, and not alive."""
        self._loop = loop
        self._pidfd = pidfd
        self._is_watched = False

    @classmethod
    def of_exec(cls, loop: Loop, pid: int, dir_fd: int) -> ContainerInit:
        """Find that of the exec'd process `pid`. `dir_fd`: the state directory of the exec."""
        return cls(loop, _find(pid, dir_fd))

    @classmethod
    def of_parent(cls, loop: Loop, process: Process | None) -> ContainerInit:
        """Return that of an exec'd process whose container is in this supervisor, too."""
        if process is None or not process.is_alive:
            return cls(loop, fds.Fd(-1))
        try:
            return cls(loop, fds.Fd(os.pidfd_open(process.pid)))  # unreaped: the pid is its own
        except OSError:  # EMFILE
            return cls(loop, fds.Fd(-1))

    @property
    def is_alive(self) -> bool:
        """Whether it is known and has not ended."""
        return self._pidfd.is_open and not fds.is_readable(self._pidfd.fileno())

    def expect(self, on_end: Callable[[], None]) -> None:
        """Call `on_end` once, when it has ended; never if it is not known."""
        if self._pidfd.is_open and not self._is_watched:
            self._is_watched = True

            def forget_and_tell() -> None:
                self._forget()
                on_end()

            self._loop.watch(self._pidfd.fileno(), forget_and_tell)

    def close(self) -> None:
        """Forget it."""
        self._forget()
        self._pidfd.close()

    def _forget(self) -> None:
        if self._is_watched:
            self._is_watched = False
            self._loop.forget(self._pidfd.fileno())


def _find(pid: int, dir_fd: int) -> fds.Fd:
    try:
        with open(_PATH, "rb", opener=partial(fds.open_without_waiting, dir_fd=dir_fd)) as file:
            text = file.read(_LONGEST_PID)
        init_pid = int(text) if text.isdigit() and len(text) < _LONGEST_PID else 0
        pidfd = fds.Fd(os.pidfd_open(init_pid))
    except (OSError, ValueError):  # another engine's directories; or it has ended
        return fds.Fd(-1)
    if _is_it(init_pid, pid):
        return pidfd
    pidfd.close()
    return fds.Fd(-1)


def _is_it(init_pid: int, pid: int) -> bool:
    """Say whether it is the init, and not another process that has got its pid since."""
    try:
        init_began, we_began = procfs.began(init_pid), procfs.began(os.getpid())
        if init_began is None or we_began is None or init_began > we_began:
            return False
        return os.stat(f"/proc/{init_pid}/ns/pid").st_ino == os.stat(f"/proc/{pid}/ns/pid").st_ino
    except FileNotFoundError:  # one of them is a zombie: then its age has to do
        return True
    except OSError:
        return False
