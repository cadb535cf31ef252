"""The init of the container that an exec'd process is in: while it lives, the container does.

The engine has it in `../init/pid`, beside the state directory of the exec (containerd 0.2). That is
a number only: what is meant is a process that is older than this supervisor, which was started when
the container ran already, and that is in the exec'd process's own pid namespace.
"""

from __future__ import annotations

import os
from functools import partial

from supervisor.linux import fds, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.linux.event_loop import Loop

_PATH = os.path.join("..", "init", "pid")
_LONGEST_PID = 10


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
