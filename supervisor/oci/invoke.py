"""Running the OCI runtime: one process per operation, ended by the kernel if we die.

Every call is asynchronous: it is forked here, reaped by the reaper, and tells its end by a
callback, so that the loop goes on reaping and serving while a runtime works.
"""

from __future__ import annotations

import os
import select
import signal

from supervisor.linux import fds, spawn
from supervisor.linux.errors import RuntimeMissingError, ShimError, reason
from supervisor.linux.reaper import wait_for
from supervisor.oci.command_line import find_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from supervisor.linux.event_loop import Loop, Timer
    from supervisor.linux.exit_status import Termination
    from supervisor.linux.reaper import Reaper

HURRY_S = 5.0
"""The time that a runtime's create or start still gets once a stop was asked for."""
CALL_LIMIT_S = 10.0
"""For calls that have no reason to take long (kill, delete, state): then the runtime is killed."""

_MOST_OUTPUT = 1 << 20


class RuntimeInvoker:
    """Starts the runtime and knows which of its processes still run."""

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
        """Borrow everything. `name` is looked for in the PATH of `environment` now.

        Raises:
            RuntimeMissingError: PATH has no such program.
        """
        program = find_program(name, environment.get("PATH", os.defpath))
        if program is None:
            raise RuntimeMissingError(f"{name} not installed on system")
        self._program = program
        self._environment = spawn.without_systemds(environment)
        self._loop = loop
        self._reaper = reaper
        self._cwd = cwd
        self._null_fd = null_fd
        self._running: dict[int, Timer] = {}

    @property
    def is_idle(self) -> bool:
        """Whether no runtime process of ours is left to be reaped."""
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
        """Start `argv` and return its pid; `on_end` follows when it has been reaped.

        Args:
            argv: From `supervisor.oci.command_line`.
            on_end: Called once, from the loop.
            cwd: Default: the state directory.
            stdio: Descriptors lent for 0, 1 and 2; default /dev/null.
            limit_s: SIGKILL after so long; None for no limit.
            program: Another program than the runtime, by its path.
            keep: As for `spawn.exec_program`.
            environment: Variables beside those of `__init__`.
            prepare: As for `spawn.exec_program`.
            from_three: The same.

        Raises:
            ShimError: It could not be started.
        """
        null_fd = self._null_fd
        program = program or self._program
        # The container is deleted even if its state directory was removed.
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
            # The words of Go's os/exec, which engines have shown for years, and what failed.
            failed = f"chdir {cwd}: " if cwd is not None and error.filename == cwd else ""
            raise ShimError(f"fork/exec {program}: {failed}{reason(error)}") from error
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
    ) -> None:
        """As `run`, and hand over up to 1 MiB of what it wrote to stdout.

        Read after its end, not while it runs: a pipe of 1 MiB holds it, and a runtime that wrote
        more is killed by the limit. `stdin` is lent; the default is /dev/null.
        """
        try:
            rfd, wfd = fds.pipe(_MOST_OUTPUT)
        except OSError as error:  # EMFILE
            raise ShimError(f"pipe: {reason(error)}") from error
        os.set_blocking(rfd.fileno(), False)

        def on_exit(termination: Termination) -> None:
            try:
                output = os.read(rfd.fileno(), _MOST_OUTPUT)
            except BlockingIOError:
                output = b""  # it left a process behind that still holds the pipe
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
            )
        except ShimError:
            rfd.close()
            raise
        finally:
            wfd.close()

    def set_deadline(self, pid: int, limit_s: float) -> None:
        """Kill one runtime process in `limit_s` from now, if it still runs then."""
        if pid in self._running:
            self._running[pid].start(limit_s)

    def kill(self, pid: int) -> None:
        """Kill one runtime process, if it still runs."""
        self.signal(pid, signal.SIGKILL)

    def signal(self, pid: int, signum: int) -> None:
        """Send a signal to one runtime process, if it still runs."""
        if pid in self._running:
            os.kill(pid, signum)  # unreaped, so the pid is its own

    def kill_running(self) -> None:
        """Kill every runtime process that still runs."""
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)


def ask_runtime(
    name: str, argv: Sequence[str], cwd: str = "/", *, environment: Mapping[str, str]
) -> bytes:
    """Run the runtime in `cwd`, wait for it, return what it wrote to stdout, whatever its status.

    Only for a front end before it supervises: afterwards there is one reaper and one loop.

    Raises:
        RuntimeMissingError: PATH has no such program.
        ShimError: It could not be started.
    """
    program = find_program(name, environment.get("PATH", os.defpath))
    if program is None:
        raise RuntimeMissingError(f"{name} not installed on system")
    # Inherited as ignored, the kernel would reap the runtime and `wait_for` find no child.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    null = fds.Fd(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
    rfd, wfd = fds.pipe()
    try:
        pid = spawn.exec_program(
            program,
            argv,
            cwd=cwd,
            stdio=(null.fileno(), wfd.fileno(), null.fileno()),
            environment=spawn.without_systemds(environment),
        )
        wfd.close()
        return _output_of(pid, rfd.fileno())
    except OSError as error:
        raise ShimError(f"fork/exec {program}: {reason(error)}") from error
    finally:
        for owner in (null, rfd, wfd):
            owner.close()


def _output_of(pid: int, rfd: int) -> bytes:
    """Reap `pid` and return what it wrote, up to 1 MiB; killed if it takes longer than the limit.

    It is over when the runtime has ended, not at end of file: it may have left a process behind.
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
