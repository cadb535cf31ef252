"""Stopping a process: the stop signal, the grace period, SIGKILL. Then deleting its container.

The runtime signals the container, because it knows what the container is made of. Where the runtime
fails or cannot be executed, the supervisor signals the process itself. It signals an exec'd process
always itself: `runtime kill` signals the container's init.

`kill --all` kills a cgroup. Only a container that shares a pid namespace needs it, see
`supervisor.oci.kill_scope`.
"""

from __future__ import annotations

import signal
import time

from supervisor.linux.errors import ShimError
from supervisor.linux.exit_status import shell_status, signal_name
from supervisor.oci import kill_scope
from supervisor.oci.command_line import joined_lines
from supervisor.state.journal_log import Kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.linux.event_loop import Loop, Timer
    from supervisor.linux.exit_status import Termination
    from supervisor.oci.command_line import RuntimeCommand
    from supervisor.oci.invoke import RuntimeInvoker
    from supervisor.state.log import Log

KILL_OVERDUE_S = 5.0


class Stopper:
    """Stops one process, and deletes its container. Borrows everything.

    Attributes:
        timeout_s: The grace period: seconds between the stop signal and SIGKILL.
        grace_ends_at_s: When a stop that has begun kills the process; monotonic. None before.
        kill_scope: What `kill --all` would reach; set when the process is known. Without it nothing
            is killed by cgroup.
    """

    SNAPSHOT = ("kill_scope", "timeout_s", "grace_ends_at_s")
    TRANSIENT = (
        "_loop",
        "_invoker",
        "_command",
        "_log",
        "_is_exec",
        "_signal_init",
        "_grace_period",  # the next supervisor begins a stop again, see `restore`
        "_overdue",
        "_stop_signal",
    )

    def __init__(
        self,
        loop: Loop,
        invoker: RuntimeInvoker,
        command: RuntimeCommand,
        log: Log,
        *,
        timeout_s: float,
        is_exec: bool,
        signal_init: Callable[[int], None],
    ) -> None:
        """Do nothing before `ask`. `signal_init` signals the process, unless it was reaped."""
        self._loop = loop
        self._invoker = invoker
        self._command = command
        self._log = log
        self._is_exec = is_exec
        self._signal_init = signal_init
        self._grace_period: Timer | None = None
        self._overdue: Timer | None = None
        self._stop_signal = 0
        self.timeout_s = timeout_s
        self.grace_ends_at_s: float | None = None
        self.kill_scope: kill_scope.KillScope | None = None

    def ask(self, signum: int, on_grace_over: Callable[[], None]) -> None:
        """Send the stop signal. Call `on_grace_over` when the grace period is over.

        The grace period of a killed supervisor's stop goes on here: it does not begin again.
        """
        self._stop_signal = signum
        self._grace_period = self._loop.timer(on_grace_over)
        now_s = time.monotonic()
        if self.grace_ends_at_s is None:
            self.grace_ends_at_s = now_s + self.timeout_s
        self._grace_period.start(max(0.0, self.grace_ends_at_s - now_s))
        if self._is_exec:
            self._signal_init(signum)
            return

        def on_end(termination: Termination) -> None:
            if shell_status(termination) != 0:
                self._log.info(
                    f"{self._command.name} kill: {termination}; the supervisor signals the process"
                )
                self._signal_init(signum)

        self._run_or_signal(self._command.kill(signum), on_end, signum)

    def kill(self, on_overdue: Callable[[], None]) -> None:
        """Kill the process and what it has forked. Call `on_overdue` if it lives 5 s later."""
        if not self._stop_signal:
            self._log.info("killing the process")
        else:
            self._log.warning(
                f"did not stop within {self.timeout_s:g} s of {signal_name(self._stop_signal)}, "
                "killed",
                Kind.KILLED,
            )
        self._start_overdue(on_overdue)
        if self._is_exec:
            self._signal_init(signal.SIGKILL)
            return

        def on_end(_termination: Termination) -> None:
            self._signal_init(signal.SIGKILL)  # a runtime that has failed may have killed nothing

        command = self._command
        argv = command.kill_all() if self._may_kill_all else command.kill(signal.SIGKILL)
        self._run_or_signal(argv, on_end, signal.SIGKILL)

    def kill_again(self, on_overdue: Callable[[], None]) -> None:
        """Send SIGKILL again, without the runtime."""
        self._log.warning(
            f"still not dead {KILL_OVERDUE_S:.0f} s after SIGKILL; sending it again", Kind.KILLED
        )
        self._signal_init(signal.SIGKILL)
        self._start_overdue(on_overdue)

    def over(self) -> None:
        """Cancel both timers: the process has ended."""
        for timer in (self._grace_period, self._overdue):
            if timer is not None:
                timer.cancel()

    def _start_overdue(self, on_overdue: Callable[[], None]) -> None:
        if self._overdue is None:
            self._overdue = self._loop.timer(on_overdue)
        self._overdue.start(KILL_OVERDUE_S)

    def empty(self, on_end: Callable[[], None]) -> None:
        """Kill every other process of the container, then call `on_end`, also after a failure.

        The kernel has killed those of the container's own pid namespace with its init.
        """
        if self._is_exec or not self._may_kill_all:
            on_end()
        else:
            self._run_or_go_on("kill --all", self._command.kill_all(), on_end)

    def delete(self, on_end: Callable[[], None]) -> None:
        """Delete the container, then call `on_end`, also after a failure."""
        danger = self.kill_scope.unsafe_cgroup() if self.kill_scope else ""
        if danger:
            self._log.warning(kill_scope.not_deleted(self._command.name, danger))
        if self._is_exec or danger:
            on_end()
        else:
            self._run_or_go_on("delete", self._command.delete(), on_end)

    @property
    def _may_kill_all(self) -> bool:
        scope = self.kill_scope
        return scope is not None and scope.shares_pids and not scope.unsafe_cgroup()

    def _run_or_go_on(self, verb: str, argv: list[str], on_end: Callable[[], None]) -> None:
        def on_exit(termination: Termination, output: bytes) -> None:
            if shell_status(termination) != 0:
                said = joined_lines(output)
                self._log.warning(f"{shown}: {termination}{f': {said}' if said else ''}")
            on_end()

        shown = f"{self._command.name} {verb}"
        try:
            self._invoker.capture(argv, on_exit, cwd=self._command.directory, with_stderr=True)
        except ShimError as error:
            self._log.warning(str(error))
            on_end()

    def _run_or_signal(
        self, argv: list[str], on_end: Callable[[Termination], None], signum: int
    ) -> None:
        try:
            self._invoker.run(argv, on_end)
        except ShimError as error:
            self._log.warning(f"{error}; the supervisor signals the process")
            self._signal_init(signum)
