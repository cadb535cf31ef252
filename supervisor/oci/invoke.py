"""Runs the OCI runtime: one process per operation, which the kernel kills if the supervisor dies.

Every call is asynchronous: the reaper reaps the process and calls back. The event loop runs on
while a runtime works.
"""

from __future__ import annotations

import errno
import os
import select
import signal

from supervisor.linux import fds, spawn
from supervisor.linux.errors import MachineError, RuntimeMissingError, ShimError, reason
from supervisor.linux.reaper import wait_for
from supervisor.oci.command_line import find_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from supervisor.linux.event_loop import Loop, Timer
    from supervisor.linux.exit_status import Termination
    from supervisor.linux.reaper import Reaper

CANCEL_LIMIT_S = 5.0
"""How long a runtime's create or start may still run after a stop was requested."""
CALL_LIMIT_S = 10.0
"""Limit for calls that are normally short (kill, delete, state); then SIGKILL."""

_MOST_OUTPUT = 1 << 20


class RuntimeInvoker:
    """Starts the runtime, and owns its processes until they were reaped."""

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        *,
        name: str,
        cwd: str,
        null_fd: int,
        environment: Mapping[str, str],
    ) -> None:
        """Borrow everything. Find `name` in the PATH of `environment`.

        Raises:
            RuntimeMissingError: PATH has no such program.
        """
        program = find_program(name, environment.get("PATH", os.defpath))
        if program is None:
            raise RuntimeMissingError(f"{name} not installed on system")
        self._program = program
        self._environment = spawn.without_manager_variables(environment)
        self._loop = loop
        self._reaper = reaper
        self._cwd = cwd
        self._null_fd = null_fd
        self._running: dict[int, Timer] = {}

    @property
    def is_idle(self) -> bool:
        """Whether every process of the runtime was reaped."""
        return not self._running

    def run(
        self,
        argv: Sequence[str],
        on_end: Callable[[Termination], None],
        *,
        cwd: str | None = None,
        stdio: tuple[int, int, int] | None = None,
        limit_s: float | None = CALL_LIMIT_S,
        program: str | None = None,
        keep: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[dict[str, str]], None] | None = None,
        from_three: Sequence[int] = (),
    ) -> int:
        """Start `argv` and return its pid. `on_end` follows when it was reaped.

        Args:
            argv: From `supervisor.oci.command_line`.
            on_end: Called once, from the loop.
            cwd: Default: the state directory.
            stdio: Descriptors lent for 0, 1 and 2; default /dev/null.
            limit_s: Seconds until SIGKILL; None for no limit.
            program: Another program than the runtime, by its path.
            keep: As for `spawn.exec_program`.
            environment: Variables beside those of `__init__`.
            prepare: As for `spawn.exec_program`.
            from_three: As for `spawn.exec_program`.

        Raises:
            ShimError: fork(2), chdir(2) or execve(2) failed.
        """
        null_fd = self._null_fd
        program = program or self._program
        # A container can be deleted even if its state directory was removed.
        default_cwd = self._cwd if os.path.isdir(self._cwd) else "/"
        try:
            pid = spawn.exec_program(
                program,
                argv,
                cwd=cwd or default_cwd,
                stdio=stdio or (null_fd, null_fd, null_fd),
                keep=keep,
                environment={**self._environment, **(environment or {})},
                prepare=prepare,
                from_three=from_three,
            )
        except OSError as error:
            # The format of Go's os/exec, which engines' users know, and the failed call.
            failed = f"chdir {cwd}: " if cwd is not None and error.filename == cwd else ""
            raise _start_error(error, f"fork/exec {program}: {failed}{reason(error)}") from error
        timer = self._loop.timer(lambda: self.kill(pid))
        self._running[pid] = timer
        if limit_s is not None:
            timer.start(limit_s)

        def on_exit(termination: Termination) -> None:
            timer.cancel()
            del self._running[pid]
            on_end(termination)

        self._reaper.expect(pid, on_exit)
        return pid

    def capture(
        self,
        argv: Sequence[str],
        on_end: Callable[[Termination, bytes], None],
        *,
        cwd: str | None = None,
        with_stderr: bool = False,
        program: str | None = None,
        keep: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        stdin: int | None = None,
        limit_s: float | None = CALL_LIMIT_S,
    ) -> None:
        """As `run`; `on_end` also gets up to 1 MiB of the output on stdout.

        The output is read after the exit: a pipe of 1 MiB holds it. A runtime that writes more
        blocks and is killed at the limit. `stdin` is lent; the default is /dev/null.
        """
        try:
            rfd, wfd = fds.pipe(_MOST_OUTPUT)
        except OSError as error:  # EMFILE
            raise MachineError(f"pipe: {reason(error)}") from error
        os.set_blocking(rfd.fileno(), False)

        def on_exit(termination: Termination) -> None:
            try:
                output = os.read(rfd.fileno(), _MOST_OUTPUT)
            except BlockingIOError:
                output = b""  # no output, and a process that it has left still holds the pipe
            rfd.close()
            on_end(termination, output)

        try:
            self.run(
                argv,
                on_exit,
                cwd=cwd,
                stdio=(
                    self._null_fd if stdin is None else stdin,
                    wfd.fileno(),
                    wfd.fileno() if with_stderr else self._null_fd,
                ),
                program=program,
                keep=keep,
                environment=environment,
                limit_s=limit_s,
            )
        except ShimError:
            rfd.close()
            raise
        finally:
            wfd.close()

    def set_deadline(self, pid: int, limit_s: float) -> None:
        """Kill a runtime process `limit_s` seconds from now if it still runs then."""
        if pid in self._running:
            self._running[pid].start(limit_s)

    def kill(self, pid: int) -> None:
        """Kill a runtime process if it still runs."""
        self.signal(pid, signal.SIGKILL)

    def signal(self, pid: int, signum: int) -> None:
        """Send a signal to a runtime process if it still runs."""
        if pid in self._running:
            os.kill(pid, signum)  # unreaped, so no other process has the pid

    def kill_running(self) -> None:
        """Kill every runtime process that still runs."""
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)


def ask_runtime(
    name: str,
    argv: Sequence[str],
    cwd: str = "/",
    *,
    environment: Mapping[str, str],
    stderr: int | None = None,
) -> bytes:
    """Run the runtime in `cwd`, wait for it, and return its stdout, whatever its status.

    `stderr` is lent; the default is /dev/null.

    Only for a front end before it supervises: the reaper would steal the status afterwards.

    Raises:
        RuntimeMissingError: PATH has no such program.
        ShimError: fork(2), chdir(2) or execve(2) failed.
    """
    program = find_program(name, environment.get("PATH", os.defpath))
    if program is None:
        raise RuntimeMissingError(f"{name} not installed on system")
    # With an inherited SIG_IGN the kernel would reap the runtime, and `wait_for` find no child.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    null = fds.Fd(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
    rfd, wfd = fds.pipe()
    try:
        pid = spawn.exec_program(
            program,
            argv,
            cwd=cwd,
            stdio=(null.fileno(), wfd.fileno(), null.fileno() if stderr is None else stderr),
            environment=spawn.without_manager_variables(environment),
        )
        wfd.close()
        return _output_of(pid, rfd.fileno())
    except OSError as error:
        raise _start_error(error, f"fork/exec {program}: {reason(error)}") from error
    finally:
        for owner in (null, rfd, wfd):
            owner.close()


def _start_error(error: OSError, message: str) -> ShimError:
    """Return the error of a runtime that was not executed: the machine's fault or the runtime's."""
    is_machine = error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
    return MachineError(message) if is_machine else ShimError(message)


def _output_of(pid: int, rfd: int) -> bytes:
    """Reap `pid` and return its output, up to 1 MiB. Kill it at the limit.

    The function returns at the runtime's exit, not at end of file: a process that the runtime has
    left may hold the pipe.
    """
    os.set_blocking(rfd, False)
    pidfd = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(CALL_LIMIT_S * 1000):
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(pidfd)
    wait_for(pid)
    try:
        return os.read(rfd, _MOST_OUTPUT)
    except BlockingIOError:
        return b""
