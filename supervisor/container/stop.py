"""Ending the supervised process: the stop signal, then SIGKILL, by the runtime and past it; and
then its container.

The runtime does it first, because it knows what the container is made of; where it cannot (its
program is gone, it hangs, it says no), the process is signalled directly: it is our child.
An exec'd process is never the runtime's business: `runtime kill` would mean the container's init.

`kill --all` goes by cgroup, so it is only for a container that needs it: see
`supervisor.oci.kill_scope`.
"""

from __future__ import annotations

import signal

from supervisor.linux.errors import ShimError
from supervisor.linux.exit_status import shell_status, signal_name
from supervisor.oci import kill_scope
from supervisor.oci.command_line import words
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
    """Ends one process and its container, and keeps the two deadlines. Borrows everything."""

    SNAPSHOT = ("kill_scope",)
    TRANSIENT = (
        "_loop",
        "_calls",
        "_caller",
        "_log",
        "_is_exec",
        "_signal_init",
        "_grace_period",  # a stop that was asked for begins again, see `snapshot`
        "_overdue",
        "_asked",
    )

    def __init__(
        self,
        loop: Loop,
        calls: RuntimeInvoker,
        caller: RuntimeCommand,
        log: Log,
        *,
        is_exec: bool,
        signal_init: Callable[[int], None],
    ) -> None:
        """`signal_init` sends a signal to the process itself, if it has not been reaped.

        `kill_scope` is set once the process is there. Without it nothing is killed by cgroup.
        """
        self._loop = loop
        self._calls = calls
        self._caller = caller
        self._log = log
        self._is_exec = is_exec
        self._signal_init = signal_init
        self._grace_period: Timer | None = None
        self._overdue: Timer | None = None
        self._asked: tuple[int, float] | None = None
        self.kill_scope: kill_scope.KillScope | None = None

    def ask(self, signum: int, timeout_s: float, on_grace_over: Callable[[], None]) -> None:
        """Send the stop signal; `on_grace_over` follows after `timeout_s`, unless `over` comes."""
        self._asked = (signum, timeout_s)
        self._grace_period = self._loop.timer(on_grace_over)
        self._grace_period.start(timeout_s)
        if self._is_exec:
            self._signal_init(signum)
            return

        def on_end(termination: Termination) -> None:
            if shell_status(termination) != 0:
                self._log.info(f"{self._caller.name} kill: {termination}; signalling it ourselves")
                self._signal_init(signum)

        self._run_or_signal(self._caller.kill(signum), on_end, signum)

    def kill(self, on_overdue: Callable[[], None]) -> None:
        """Kill it and what it has forked; `on_overdue` follows if it is not dead after 5 s."""
        if self._asked is None:
            self._log.info("killing it")
        else:
            signum, timeout_s = self._asked
            self._log.warning(
                f"did not stop within {timeout_s:g} s of {signal_name(signum)}, killed", Kind.KILLED
            )
        self._start_overdue(on_overdue)
        if self._is_exec:
            self._signal_init(signal.SIGKILL)
            return

        def on_end(_termination: Termination) -> None:
            self._signal_init(signal.SIGKILL)  # whatever the runtime did; harmless if it is dead

        argv = self._caller.kill_all() if self._may_kill_all else self._caller.kill(signal.SIGKILL)
        self._run_or_signal(argv, on_end, signal.SIGKILL)

    def kill_again(self, on_overdue: Callable[[], None]) -> None:
        """Kill it once more, past the runtime."""
        self._log.warning(
            f"still not dead {KILL_OVERDUE_S:.0f} s after SIGKILL; sending it again", Kind.KILLED
        )
        self._signal_init(signal.SIGKILL)
        self._start_overdue(on_overdue)

    def over(self) -> None:
        """Forget the deadlines: it is dead."""
        for timer in (self._grace_period, self._overdue):
            if timer is not None:
                timer.cancel()

    def _start_overdue(self, on_overdue: Callable[[], None]) -> None:
        if self._overdue is None:
            self._overdue = self._loop.timer(on_overdue)
        self._overdue.start(KILL_OVERDUE_S)

    def empty(self, on_end: Callable[[], None]) -> None:
        """Kill every other process of its container; `on_end` follows, whatever came of it.

        Those of its own pid namespace have died with its init.
        """
        if self._is_exec or not self._may_kill_all:
            on_end()
        else:
            self._run_or_go_on("kill --all", self._caller.kill_all(), on_end)

    def delete(self, on_end: Callable[[], None]) -> None:
        """Delete its container; `on_end` follows, whatever came of it."""
        danger = self.kill_scope.unsafe_cgroup() if self.kill_scope else ""
        if danger:
            self._log.warning(kill_scope.not_deleted(self._caller.name, danger))
        if self._is_exec or danger:
            on_end()
        else:
            self._run_or_go_on("delete", self._caller.delete(), on_end)

    @property
    def _may_kill_all(self) -> bool:
        scope = self.kill_scope
        return scope is not None and scope.shares_pids and not scope.unsafe_cgroup()

    def _run_or_go_on(self, verb: str, argv: list[str], on_end: Callable[[], None]) -> None:
        def on_exit(termination: Termination, output: bytes) -> None:
            if shell_status(termination) != 0:
                said = words(output)
                self._log.warning(f"{shown}: {termination}{f': {said}' if said else ''}")
            on_end()

        shown = f"{self._caller.name} {verb}"
        try:
            self._calls.capture(argv, on_exit, cwd=self._caller.directory, with_stderr=True)
        except ShimError as error:
            self._log.warning(str(error))
            on_end()

    def _run_or_signal(
        self, argv: list[str], on_end: Callable[[Termination], None], signum: int
    ) -> None:
        try:
            self._calls.run(argv, on_end)
        except ShimError as error:
            self._log.warning(f"{error}; signalling the container ourselves")
            self._signal_init(signum)
