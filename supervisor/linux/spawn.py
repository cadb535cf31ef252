"""The only module that forks, and what may happen between fork and exec.

Between fork(2) and exec(2) the child of this single-threaded process may run Python, but it still
has the parent's signal handlers, wakeup pipe and descriptors. So every signal is blocked around
the fork: else the child would write a SIGTERM into the *parent's* wakeup pipe, and the parent would
stop. The child first resets the handlers and closes the pipe, then unblocks the signals. From then
on a signal to the child acts on the child.

Both kinds of child end in os._exit: sys.exit would run the parent's clean-up a second time.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys

from supervisor.linux import fds, signals, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import NoReturn

_EXEC_FAILED_STATUS = 127
_BUG_STATUS = 70

_OURS_ALONE = frozenset(
    {
        *("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"),
        *("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"),
    }
)
"""Between systemd and us (sd_notify(3), sd_listen_fds(3)). runc would take NOTIFY_SOCKET for its
own: it relays for the container, then waits for a READY=1 that never comes. crun would take
LISTEN_FDS for its own without a look at LISTEN_PID."""


def fork_worker(work: Callable[[], None], *, dies_with_us: bool = False) -> int:
    """Fork a child that calls `work` and ends with status 0, or 70 after a bug's traceback.

    The caller owns the child: the returned pid goes to the reaper. `work` runs with default
    signal dispositions and every descriptor of this process; it closes what is not its own.
    With `dies_with_us` the kernel kills it when we die; a copy worker goes on to end of file.
    """
    supervisor_pid = os.getpid()
    pid = _fork()
    if pid == 0:
        _run_worker(work, supervisor_pid if dies_with_us else None)
    return pid


def exec_program(
    program: str,
    argv: Sequence[str],
    *,
    cwd: str,
    stdio: tuple[int, int, int],
    environment: Mapping[str, str],
    keep: Sequence[int] = (),
    prepare: Callable[[dict[str, str]], None] | None = None,
    from_three: Sequence[int] = (),
) -> int:
    """Fork and exec `program`, killed by the kernel if we die first. Returns its pid.

    The caller owns the child. `stdio` lends three descriptors that become 0, 1 and 2, `from_three`
    those that become 3, 4, ...; every other one of ours is close-on-exec, but for those of `keep`,
    which may not be there together with `from_three`. The program gets default signal
    dispositions, an empty signal mask and `environment`. `prepare` is called in the child, before
    it goes to `cwd`, with these variables, which it may change.

    Raises:
        OSError: fork, `prepare`, chdir or exec failed; `filename` is `cwd` of a chdir, else
            `program`.

    Source: prctl(2) PR_SET_PDEATHSIG; the error comes over a pipe whose end of file means that
    exec has worked.
    """
    supervisor_pid = os.getpid()
    error_rfd, error_wfd = fds.pipe(4096)
    try:
        pid = _fork()
        if pid == 0:
            _exec(
                program,
                argv,
                cwd,
                (*stdio, *from_three),
                keep,
                environment,
                prepare,
                supervisor_pid,
                error_wfd.fileno(),
            )
        error_wfd.close()
        failure = os.read(error_rfd.fileno(), 4096)
    finally:
        error_rfd.close()
        error_wfd.close()
    if failure:
        stage, errno_text = failure.decode().split(":")
        errno = int(errno_text)
        raise OSError(errno, os.strerror(errno), cwd if stage == "chdir" else program)
    return pid


def become(program: str, argv: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Replace this process by a program with default signals; its descriptors are those kept open.

    Raises:
        OSError: As execve(2); the signals are at their default.
    """
    _default_signals()
    os.execve(program, [*argv], environment)


def _fork() -> int:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.EVERY_SIGNAL)
    pid = -1
    try:
        pid = os.fork()
    finally:  # EAGAIN as well: who is refused a child has still to hear
        if pid != 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if pid != 0:
        return pid
    _default_signals()
    return 0


def _default_signals() -> None:
    signals.drop_handlers()
    for signum in syscalls.C_LIBRARY_SIGNALS:
        syscalls.set_ignored(signum, is_ignored=False)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _run_worker(work: Callable[[], None], dies_with_pid: int | None) -> NoReturn:
    status = _BUG_STATUS
    try:
        if dies_with_pid is not None:
            syscalls.set_pdeathsig(signal.SIGKILL)
            if os.getppid() != dies_with_pid:  # it died before the prctl took effect
                os._exit(status)
        work()
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())  # to the descriptor 2 the worker has left itself
    finally:
        os._exit(status)


def _exec(
    program: str,
    argv: Sequence[str],
    cwd: str,
    lent: Sequence[int],
    keep: Sequence[int],
    environment: Mapping[str, str],
    prepare: Callable[[dict[str, str]], None] | None,
    supervisor_pid: int,
    error_wfd: int,
) -> NoReturn:
    stage = "prctl"
    try:
        syscalls.set_pdeathsig(signal.SIGKILL)
        if os.getppid() != supervisor_pid:  # it died before the prctl took effect
            os._exit(_EXEC_FAILED_STATUS)
        os.setpgid(0, 0)  # a ^C at our terminal is for us to act on, not for `runc delete`
        stage = "dup"
        (error_wfd,) = _above(len(lent), [error_wfd])
        for fd, source_fd in enumerate(_above(len(lent), lent)):
            os.dup2(source_fd, fd, inheritable=True)
        for fd in keep:
            os.set_inheritable(fd, True)  # in this process alone
        if prepare is not None:
            stage = "prepare"
            environment = dict(environment)
            prepare(environment)
        stage = "chdir"
        os.chdir(cwd)
        stage = "exec"
        os.execve(program, [*argv], environment)
    except OSError as error:
        os.write(error_wfd, f"{stage}:{error.errno}".encode())
    finally:
        os._exit(_EXEC_FAILED_STATUS)


def without_systemds(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for another program: without what systemd says to the supervisor."""
    return {name: value for name, value in environment.items() if name not in _OURS_ALONE}


def _above(count: int, lent: Sequence[int]) -> list[int]:
    # A source that sits on a number below `count` would be overwritten before its turn.
    return [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, count) if fd < count else fd for fd in lent]
