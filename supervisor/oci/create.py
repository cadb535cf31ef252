"""Runs the runtime's create, exec or restore until it yields a pid and a console, or an error.

It succeeds with three things: the runtime exits with 0, the pid file names a child of this
supervisor, and the console has arrived if there is a terminal. The container's process may exit
before the supervisor has read its pid: the reaper remembers that status.
"""

from __future__ import annotations

import os
import signal
import time
from enum import Enum
from functools import partial

from supervisor.linux.errors import MachineError, RuntimeFailedError, ShimError, StoppedError
from supervisor.linux.exit_status import Exited, Killed, Termination
from supervisor.oci import command_line, config_overlay
from supervisor.oci.failed_create import FailedCreateCleanup, explain
from supervisor.oci.invoke import CANCEL_LIMIT_S
from supervisor.state.log import rfc3339

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.linux import fds
    from supervisor.linux.event_loop import Loop
    from supervisor.linux.reaper import Reaper
    from supervisor.oci.console_socket import ConsoleSocket
    from supervisor.oci.engine_call import EngineCall
    from supervisor.oci.invoke import RuntimeInvoker
    from supervisor.oci.process_json import CheckpointRecord, ProcessConfig
    from supervisor.state.directory import StateDirectory
    from supervisor.state.log import Log

CONSOLE_WAIT_S = 10.0
"""Limit for the console to arrive after the runtime has exited with 0."""


class Phase(Enum):
    """Where a create operation is."""

    NOT_BEGUN = "not begun"
    RUNTIME_RUNNING = "the runtime runs"
    WAITING_FOR_CONSOLE = "the runtime has succeeded, its console is missing"
    CREATED = "the process is created"
    FAILED = "failed"


_OVER = frozenset({Phase.CREATED, Phase.FAILED})


class CreateOperation:
    """One create, exec or restore. Owns the console until the caller takes it.

    It has many attributes, because the runtime's exit, console and pid file come in any order.

    Attributes:
        pid: The process; 0 before it is known.
        console: The ptmx end; None before it has arrived and without a terminal.
        began_at: When the runtime was started, RFC 3339 in UTC.
        checkpoint: The options of the checkpoint to restore; None without one.
    """

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        invoker: RuntimeInvoker,
        command: command_line.RuntimeCommand,
        record: ProcessConfig,
        state_dir: StateDirectory,
        checkpoint: CheckpointRecord | None = None,
        *,
        from_three: tuple[int, ...] = (),
        engine_call: EngineCall | None = None,
    ) -> None:
        """Borrow everything. Do nothing before `begin`.

        `from_three`: the container's process gets these as descriptors 3, 4, ... (`create` only).
        `engine_call`: replaces the call that `command` would build.
        """
        self._from_three = from_three
        self._engine_call = engine_call
        self._loop = loop
        self._reaper = reaper
        self._invoker = invoker
        self._command = command
        self._record = record
        self._state_dir = state_dir
        self.checkpoint = checkpoint
        self._socket: ConsoleSocket | None = None
        self._watched_fd = -1
        self._runtime_pid = 0
        self._phase = Phase.NOT_BEGUN
        self._is_cancelled = False
        self._console_limit = loop.timer(self._on_no_console)
        self._on_end: Callable[[ShimError | None], None] = lambda _error: None
        self.began_at = rfc3339(0)
        self._was_killed = False
        self.pid = 0
        self.console: fds.Fd | None = None

    @property
    def verb(self) -> str:
        """The runtime's verb: "create", "exec" or "restore"."""
        if self._record.is_exec:
            return "exec"
        return "create" if self.checkpoint is None else "restore"

    def begin(
        self, stdio: tuple[int, int, int], on_end: Callable[[ShimError | None], None]
    ) -> None:
        """Start the runtime with `stdio` (lent) as 0, 1 and 2. `on_end` gets None or the error.

        Raises:
            ShimError: The runtime was not started. `on_end` is not called.
        """
        self._on_end = on_end
        self._state_dir.remove_stale_pid(self._pid_file)
        self._state_dir.check_file(command_line.LOG_NAME)
        if self._record.terminal:
            from supervisor.oci.console_socket import ConsoleSocket  # 3 ms, only with a terminal

            try:
                self._socket = ConsoleSocket()
            except OSError as error:
                raise MachineError(f"console socket: {error.strerror}") from error
            self._watch_console()
        self.began_at = rfc3339(time.time_ns())
        try:
            self._runtime_pid = self._run(stdio)
        except ShimError:
            self._close_socket()
            raise
        self._phase = Phase.RUNTIME_RUNNING
        self._reaper.remember_unknown(self)

    def _run(self, stdio: tuple[int, int, int]) -> int:
        call = self._engine_call
        if call is not None:
            return self._invoker.run(
                self._argv(),
                self._on_exit,
                cwd=".",  # the engine chose it for this process
                stdio=stdio,
                limit_s=None,
                environment=call.environment,
                prepare=call.prepare,
            )
        return self._invoker.run(
            self._argv(),
            self._on_exit,
            cwd=self._command.bundle,
            stdio=stdio,
            limit_s=None,
            prepare=self._put_config if self._command.config else None,
            from_three=self._from_three,
        )

    @property
    def _pid_file(self) -> str:
        return "pid" if self._engine_call is None else self._engine_call.pid_file

    def signal(self, signum: int) -> None:
        """Send a signal to the runtime if it still runs."""
        self._invoker.signal(self._runtime_pid, signum)

    def cancel(self) -> None:
        """Kill the runtime unless it exits within 5 s. `on_end` follows.

        A runc that is killed during `create` leaves directories and cgroups that no later runc
        command finds, and the id cannot be used again. A finished `create` can be deleted.
        """
        self._is_cancelled = True
        self._invoker.set_deadline(self._runtime_pid, CANCEL_LIMIT_S)
        if self._phase is Phase.WAITING_FOR_CONSOLE:
            self._fail(StoppedError("stopped while waiting for the console"))

    def known(self) -> None:
        """Stop remembering unknown children: the caller expects the process, or gives it up."""
        self._reaper.forget_unknown(self)

    def clean_up(self, log: Log, on_end: Callable[[], None], *, is_alone: bool) -> None:
        """Delete what a failed operation of this supervisor has left. `on_end` follows.

        An exec'd process may be alive although its exec has failed. Without a pid file the
        supervisor finds it as a child that no caller expects. With other containers in this
        supervisor (`is_alone` is False) such a child may be theirs, and is not killed.
        """
        if self._phase is Phase.NOT_BEGUN:  # the runtime was not executed
            on_end()
            return
        if self._record.is_exec:
            self._kill_unknown(on_end) if is_alone else on_end()
            return
        remains = FailedCreateCleanup(
            self._reaper,
            self._invoker,
            self._command,
            log,
            began_at=self.began_at,
            was_killed=self._was_killed,
        )
        remains.delete(on_end)

    def _kill_unknown(self, on_end: Callable[[], None]) -> None:
        """Kill the children that no caller expects. `on_end` follows when they were reaped.

        The container's init cannot exit before every zombie of its PID namespace was reaped,
        pid_namespaces(7). The wait is limited: a process may sleep in the kernel.
        """
        living: set[int] = set()
        limit = self._loop.timer(on_end)

        def reaped(pid: int, _termination: Termination) -> None:
            living.discard(pid)
            if not living and limit.is_running:
                limit.cancel()
                on_end()

        living.update(self._reaper.living_unknown())
        if not living:
            on_end()
            return
        limit.start(CANCEL_LIMIT_S)
        for pid in [*living]:
            os.kill(pid, signal.SIGKILL)
            self._reaper.expect(pid, partial(reaped, pid))

    def _argv(self) -> list[str]:
        socket_path = None if self._socket is None else self._socket.path
        no_pivot = self._record.no_pivot_root
        if self._engine_call is not None:
            return self._engine_call.argv(socket_path)
        if self._record.is_exec:
            return self._command.exec(console_socket=socket_path)
        if self.checkpoint is None:
            return self._command.create(
                console_socket=socket_path,
                no_pivot=no_pivot,
                preserved_fds=len(self._from_three),
                no_new_keyring=self._record.no_new_keyring,
            )
        return self._command.restore(
            self._record.checkpoint,
            self.checkpoint,
            unique=f"{time.time_ns()}-{os.getpid()}-{os.urandom(4).hex()}",
            console_socket=socket_path,
            no_pivot=no_pivot,
        )

    def _put_config(self, _environment: dict[str, str]) -> None:
        """Mount this supervisor's config.json over the bundle's."""
        config_overlay.put(self._command.config, os.path.join(self._command.bundle, "config.json"))

    def _watch_console(self) -> None:
        if self._socket is not None:
            self._watched_fd = self._socket.fileno()
            self._loop.watch(self._watched_fd, self._on_console)

    def _on_console(self) -> None:
        if self._socket is None:
            return
        try:
            received = self._socket.receive()
        except ConnectionError as error:
            self._close_socket()
            self._fail_once_reaped(ShimError(f"console: {error}"))
            return
        if received is None:
            self._loop.forget(self._watched_fd)
            self._watch_console()
            return
        self.console = received
        self._close_socket()
        self._join()

    def _fail_once_reaped(self, error: ShimError) -> None:
        # A runtime that fails hangs up, too, and its log has the reason: wait for its exit.
        if self._phase is Phase.WAITING_FOR_CONSOLE:
            self._fail(error)

    def _on_exit(self, termination: Termination) -> None:
        self._was_killed = isinstance(termination, Killed)
        if self._is_cancelled and termination != Exited(0):
            self._fail(StoppedError(f"stopped while the runtime's {self.verb} ran"))
        elif termination != Exited(0):
            self._fail(self._explain(termination))
        else:
            try:
                self.pid = self._state_dir.read_pid(self._pid_file)
            except ShimError as error:
                self._fail(error)
                return
            if self._reaper.is_expected(self.pid):
                worker, self.pid = self.pid, 0
                self._fail(MachineError(f"pid: {worker} is a process of this supervisor's own"))
                return
            if not self._reaper.has_child(self.pid):
                self._fail(ShimError(f"pid: {self.pid} is no child of this supervisor"))
                return
            self._phase = Phase.WAITING_FOR_CONSOLE
            self._console_limit.start(CONSOLE_WAIT_S)
            self._join()

    def _on_no_console(self) -> None:
        self._fail(
            ShimError(f"console: the runtime sent none within {CONSOLE_WAIT_S:.0f} s of its exit")
        )

    def _join(self) -> None:
        if self._phase is not Phase.WAITING_FOR_CONSOLE:
            return
        if self.console is not None or not self._record.terminal:
            self._end(None)
        elif self._socket is None:
            self._fail(ShimError("console: the runtime hung up without sending one"))

    def _fail(self, error: ShimError) -> None:
        if self.console is not None:
            self.console.close()
            self.console = None
        self._end(error)

    def _end(self, error: ShimError | None) -> None:
        if self._phase in _OVER:
            return
        self._phase = Phase.CREATED if error is None else Phase.FAILED
        self._console_limit.cancel()
        self._close_socket()
        self._on_end(error)

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._loop.forget(self._watched_fd)
            self._socket.close()
            self._socket = None

    def _explain(self, termination: Termination) -> RuntimeFailedError:
        message = explain(self._state_dir)
        detail = f": {message}" if message else ""
        return RuntimeFailedError(f"{self._command.name} {self.verb}: {termination}{detail}")
