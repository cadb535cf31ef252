"""The supervised process: signals to it, and its exit status, as a child or not.

Its first supervisor is its parent, as subreaper, and reaps it. An adopter is not its parent, so
another process reaps it. Then the kernel returns the status through a pidfd that was opened before
(PIDFD_GET_INFO, Linux 6.15). An older kernel does not, and the end is `Unknown`.

`Process` joins three sources: the kernel's status, its count of OOM kills, and `exitStatus`, which
an earlier supervisor may have written.

`ContainerInit` is the init of the container in which a process was exec'd. The container lives
while its init does. A 2016 engine writes the init's pid to `../init/pid`, beside the exec's state
directory. The pid may be another process's by now. The init is older than this supervisor, and in
the pid namespace of the exec'd process.
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


class InitProcess:
    """One process. Owns its pidfd until `close`."""

    SNAPSHOT = ("pid", "_pidfd", "_is_child")
    TRANSIENT = ("_loop", "_next_look", "_reaper", "_is_watched", "_look_s", "_on_exit")

    def __init__(
        self, loop: Loop, reaper: Reaper, pid: int, pidfd: fds.Fd, *, is_child: bool = True
    ) -> None:
        """Own the pidfd. It may be closed if the process is a child: then the pid is enough."""
        self._loop = loop
        self._next_look = loop.timer(self._on_readable)
        self._reaper = reaper
        self.pid = pid
        self._pidfd = pidfd
        self._is_child = is_child
        self._is_watched = False
        self._look_s = _SHORTEST_LOOK_S
        self._on_exit: Callable[[Termination], None] = lambda _termination: None

    @classmethod
    def of_child(cls, loop: Loop, reaper: Reaper, pid: int) -> InitProcess:
        """Return a child of this process. An unreaped child keeps its pid."""
        try:
            pidfd = fds.Fd(os.pidfd_open(pid))
        except OSError:  # the reaper has its status already; or EMFILE
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
    ) -> InitProcess:
        """Return the process of an earlier supervisor, from what its `snapshot` has returned.

        Without `is_parent` that supervisor is dead, and the process is no child of this process.
        """
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
            self._loop.watch(self._pidfd.fileno(), self._on_readable)

    def signal(self, signum: int) -> None:
        """Send a signal. A process that has ended gets none."""
        if self._pidfd.is_open:
            try:
                signal.pidfd_send_signal(self._pidfd.fileno(), signum)
            except ProcessLookupError:
                return
        elif self._is_child:
            os.kill(self.pid, signum)  # unreaped, so the pid is its own

    def close(self) -> None:
        """Close the pidfd."""
        self._next_look.cancel()
        if self._is_watched:
            self._is_watched = False
            self._loop.forget(self._pidfd.fileno())
        self._pidfd.close()

    def _on_readable(self) -> None:
        """The process is a zombie or was reaped. Its parent may take its time to reap it."""
        if self._is_watched:
            self._is_watched = False
            self._loop.forget(self._pidfd.fileno())
        seen = _look_at_zombie(self.pid, self._pidfd.fileno())
        if seen is not None:
            self._on_exit(seen)
        elif _is_reaped(self._pidfd.fileno()):
            self._on_exit(end_of(self._pidfd.fileno()))
        else:
            # The reaping has no event: a pidfd is readable before and after it.
            look_s, self._look_s = self._look_s, min(2 * self._look_s, _LONGEST_LOOK_S)
            self._next_look.start(look_s)


def _look_at_zombie(pid: int, pidfd: int) -> Termination | None:
    """Return how an unreaped process has ended; None if the kernel does not show it."""
    status = procfs.zombie_wait_status(pid)
    # The pidfd is checked after /proc/PID/stat was read: if the process is still unreaped, the file
    # was its own.
    if status is None or _is_reaped(pidfd):
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
    """Return how a reaped process has ended; `Unknown` if the kernel does not return it.

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
    """One process and its end. Owns its parts until `close`.

    Attributes:
        pid: In this process's pid namespace. After the reaping it may be another process's.
        termination: None while the process lives.
        oom_kills: How many processes of its container the kernel had killed for want of memory when
            the end was recorded.
    """

    SNAPSHOT = ("_init_process", "_exit_status", "_oom")
    TRANSIENT = (
        "_state_dir",
        "_on_end",
        "pid",  # the init process's
        "termination",  # nothing is handed over after the end
        "oom_kills",
    )

    def __init__(
        self,
        init_process: InitProcess,
        state_dir: StateDirectory,
        oom: OomWatch,
        packed: Mapping[str, Any] | None = None,
    ) -> None:
        """Own the process, borrow the state directory; see `of_child` and `restore`."""
        self._init_process = init_process
        self._state_dir = state_dir
        self._exit_status = ExitStatusFile(state_dir, packed)
        self._oom = oom
        self._on_end: Callable[[], None] = lambda: None
        self.pid = init_process.pid
        self.termination: Termination | None = None
        self.oom_kills = 0

    @classmethod
    def of_child(cls, loop: Loop, reaper: Reaper, pid: int, state_dir: StateDirectory) -> Process:
        """Return a child that the runtime has just created. It may be dead already."""
        init_process = InitProcess.of_child(loop, reaper, pid)
        oom = OomWatch(pid)
        return cls(init_process, state_dir, oom)

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
        """Return the process of an earlier supervisor; as `InitProcess.restore`."""
        init_process = InitProcess.restore(
            loop, reaper, packed["init_process"], contents, is_parent=is_parent
        )
        oom = OomWatch(init_process.pid, packed["oom"])
        return cls(init_process, state_dir, oom, packed["exit_status"])

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return what `restore` needs."""
        return {
            "init_process": self._init_process.snapshot(fd_writer),
            "exit_status": self._exit_status.snapshot(),
            "oom": self._oom.snapshot(),
        }

    @property
    def is_alive(self) -> bool:
        """Whether its end is not known yet."""
        return self.termination is None

    def expect(self, on_end: Callable[[], None]) -> None:
        """Call `on_end` once, when the end is known, which may be now."""
        self._on_end = on_end
        self._init_process.expect(self._on_exit)

    def _on_exit(self, termination: Termination) -> None:
        if isinstance(termination, Unknown):
            # An earlier supervisor may have reaped it, written `exitStatus`, and been killed then.
            recorded = from_protocol_status(self._state_dir.read_exit_status())
            termination = recorded or termination
        self.termination = termination
        self._on_end()

    def signal(self, signum: int) -> None:
        """Send a signal, if the process lives."""
        if self.is_alive:
            self._init_process.signal(signum)

    def record_end(self) -> None:
        """Write `exitStatus`, then read the count of OOM kills.

        Raises:
            OSError: `exitStatus` could not be written.
        """
        if self.termination is None:
            raise AssertionError("an exit to record, and none seen")
        try:
            self._exit_status.write(protocol_status(self.termination))
        finally:
            self.oom_kills = self._oom.kills()

    def end_in_words(self) -> str:
        """Return how the process has ended, in words; "" while it lives."""
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
        self._init_process.close()
        self._exit_status.close()


class ContainerInit:
    """One init. Owns a pidfd of it until `close`."""

    def __init__(self, loop: Loop, pidfd: fds.Fd) -> None:
        """Own the pidfd. A closed pidfd stands for an unknown init, which counts as dead."""
        self._loop = loop
        self._pidfd = pidfd
        self._is_watched = False

    @classmethod
    def of_exec(cls, loop: Loop, pid: int, dir_fd: int) -> ContainerInit:
        """Find the init of the exec'd process `pid` from `dir_fd`, the exec's state directory."""
        return cls(loop, _find(pid, dir_fd))

    @classmethod
    def of_parent(cls, loop: Loop, process: Process | None) -> ContainerInit:
        """Return the init of an exec'd process whose container is in this supervisor, too."""
        if process is None or not process.is_alive:
            return cls(loop, fds.Fd(-1))
        try:
            return cls(loop, fds.Fd(os.pidfd_open(process.pid)))  # unreaped: the pid is its own
        except OSError:  # EMFILE
            return cls(loop, fds.Fd(-1))

    @property
    def is_alive(self) -> bool:
        """Whether the init is known and has not ended."""
        return self._pidfd.is_open and not fds.is_readable(self._pidfd.fileno())

    def expect(self, on_end: Callable[[], None]) -> None:
        """Call `on_end` once, when the init has ended. An unknown init calls nothing."""
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
    except (OSError, ValueError):  # another engine's layout; or the init has ended
        return fds.Fd(-1)
    if _is_it(init_pid, pid):
        return pidfd
    pidfd.close()
    return fds.Fd(-1)


def _is_it(init_pid: int, pid: int) -> bool:
    """Return whether this pid is still the init's."""
    try:
        init_began, we_began = procfs.began(init_pid), procfs.began(os.getpid())
        if init_began is None or we_began is None or init_began > we_began:
            return False
        return os.stat(f"/proc/{init_pid}/ns/pid").st_ino == os.stat(f"/proc/{pid}/ns/pid").st_ino
    except FileNotFoundError:  # one of the two is a zombie: its age must suffice
        return True
    except OSError:
        return False
