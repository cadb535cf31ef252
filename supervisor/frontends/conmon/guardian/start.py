"""The guardian's start: it is forked before the supervisor, or a supervisor becomes it.

The second happens when the guardian was killed. The container is the child of its guardian still,
and a successor adopts the container at once.
"""

from __future__ import annotations

import _socket
import fcntl
import os

from supervisor.frontends.conmon.engine import take_null_stdio
from supervisor.frontends.conmon.guardian.link import GuardianLink
from supervisor.frontends.conmon.guardian.script import (
    SHELL,
    STORE_FDS,
    WORDS_FD,
    State,
    guardian_argv,
)
from supervisor.handover.own_command import SUCCESSOR_VARIABLE, own_command
from supervisor.linux import fds, spawn, syscalls
from supervisor.linux.process_exit import exit_process
from supervisor.linux.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import NoReturn

    from supervisor.frontends.conmon.engine import Engine
    from supervisor.frontends.conmon.options import Options

_WORDS_BYTES = 4096
_ABOVE = 10


def guard(options: Options, engine: Engine, supervise: Callable[[GuardianLink], int]) -> NoReturn:
    """Fork the supervisor, which calls `supervise`, and become its guardian.

    Descriptors 0 to 2 are /dev/null in the guardian, and the caller's in the supervisor.

    Raises:
        OSError: The supervisor cannot be forked; or there is no shell, and no guardian.
    """
    os.setsid()
    syscalls.set_child_subreaper(True)
    words_rfd, words_wfd = fds.pipe(_WORDS_BYTES)
    # _socket: the module `socket` takes 8 ms, and this is before the runtime is executed.
    pair = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    ends = (fds.Fd(pair[0].detach()), fds.Fd(pair[1].detach()))
    guardian_pid = os.getpid()

    def work() -> None:
        words_rfd.close()
        exit_process(supervise(GuardianLink(guardian_pid, words_wfd, ends)))

    state = State(spawn.fork_worker(work), 0, title_of(options), engine.score)
    words_wfd.close()
    engine.release()
    engine.hang_up()
    take_null_stdio()
    store_fds = (ends[0].fileno(), ends[1].fileno())
    become(options, engine.environment, state, words_rfd.fileno(), store_fds)


def title_of(options: Options) -> str:
    """Return the guardian's title for ps(1)."""
    return printable(f"forkshim: {options.cid} [guardian]")


def become(
    options: Options,
    environment: Mapping[str, str],
    state: State,
    words_rfd: int,
    store_fds: Sequence[int],
) -> NoReturn:
    """Have this process become the guardian. What else it holds is closed by execve(2).

    Raises:
        OSError: There is no shell; descriptors and signals of this process have changed.
    """
    command = own_command()
    lent = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for fd in (words_rfd, *store_fds)]
    for fd, place in zip(lent, (WORDS_FD, *STORE_FDS), strict=True):
        os.dup2(fd, place, inheritable=True)
    finish = (options.exit_command, *options.exit_command_arg) if options.exit_command else ()
    argv = guardian_argv(state, SUCCESSOR_VARIABLE, command, finish, delay_s=options.exit_delay)
    spawn.replace_process(SHELL, argv, environment)
