"""The only module that forks.

The child of this single-threaded process may run Python between fork(2) and execve(2). But it still
has the parent's signal handlers, wakeup pipe and descriptors. So every signal is blocked around the
fork: otherwise the child would write a SIGTERM to the *parent's* wakeup pipe, and the parent would
stop. The child first resets the handlers and the wakeup pipe, then unblocks the signals. From then
on a signal to the child acts on the child.

Both kinds of child end with os._exit: sys.exit would run the parent's clean-up a second time.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys

from supervisor.linux import fd_limit, fds, signals, syscalls

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
"""systemd sets them for the supervisor only (sd_notify(3), sd_listen_fds(3)). runc would use
NOTIFY_SOCKET: it relays for the container, and waits for a READY=1 that never comes. crun would use
LISTEN_FDS without checking LISTEN_PID."""


def fork_worker(work: Callable[[], None], *, dies_with_parent: bool = False) -> int:
    """Fork a child that calls `work` and exits with status 0, or with 70 after a traceback.

    The caller owns the child, and passes the returned pid to the reaper. `work` runs with default
    signal dispositions and every descriptor of this process. It must close those that are not its
    own. With `dies_with_parent` the kernel kills the child when this process dies.

    Raises:
        OSError: EAGAIN, ENOMEM: limits of the user or the cgroup.
    """
    supervisor_pid = os.getpid()
    pid = _fork()
    if pid == 0:
        _run_worker(work, supervisor_pid if dies_with_parent else None)
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
    """Fork and execute `program`. The kernel kills it when this process dies.

    The program gets default signal dispositions, an empty signal mask and its own process group.
    An error of the child comes over a pipe. End of file means that execve(2) has succeeded.

    Args:
        program: Path of the program.
        argv: Its arguments, argv[0] first.
        cwd: Its working directory.
        stdio: Descriptors, lent, that become 0, 1 and 2.
        environment: All of its variables.
        keep: Descriptors, lent, that it inherits under their numbers. Not with `from_three`.
        prepare: Called in the child before chdir(2), with the variables, which it may change.
        from_three: Descriptors, lent, that become 3, 4, ...

    Returns:
        The pid of the child, which the caller owns.

    Raises:
        OSError: fork(2), `prepare`, chdir(2) or execve(2) failed. `filename` is `cwd` for chdir(2),
            else `program`.

    Source: prctl(2), PR_SET_PDEATHSIG.
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


def replace_process(program: str, argv: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Execute a program in this process, with default signals and the inheritable descriptors.

    Raises:
        OSError: As execve(2). The signals are at their default then.
    """
    _default_signals()
    fd_limit.give_back()
    os.execve(program, [*argv], environment)


def _fork() -> int:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.EVERY_SIGNAL)
    pid = -1
    try:
        pid = os.fork()
    finally:  # also after EAGAIN: this process must get its signals
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
            if os.getppid() != dies_with_pid:  # the parent died before prctl(2) took effect
                os._exit(status)
        work()
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
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
        if os.getppid() != supervisor_pid:  # the parent died before prctl(2) took effect
            os._exit(_EXEC_FAILED_STATUS)
        os.setpgid(0, 0)  # ^C at the user's terminal must reach the supervisor, not `runc delete`
        stage = "dup"
        (error_wfd,) = _above(len(lent), [error_wfd])
        for fd, source_fd in enumerate(_above(len(lent), lent)):
            os.dup2(source_fd, fd, inheritable=True)
        for fd in keep:
            os.set_inheritable(fd, True)  # only in the child
        if prepare is not None:
            stage = "prepare"
            environment = dict(environment)
            prepare(environment)
        stage = "chdir"
        os.chdir(cwd)
        fd_limit.give_back()
        stage = "exec"
        os.execve(program, [*argv], environment)
    except OSError as error:
        os.write(error_wfd, f"{stage}:{error.errno}".encode())
    finally:
        os._exit(_EXEC_FAILED_STATUS)


def without_manager_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for another program: without systemd's variables for this process."""
    return {name: value for name, value in environment.items() if name not in _OURS_ALONE}


def _above(count: int, lent: Sequence[int]) -> list[int]:
    # dup2(2) would overwrite a source whose number is below `count`.
    return [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, count) if fd < count else fd for fd in lent]
