"""Finds out whether the container's init has executed the program, from the kernel's flags.

A runtime's `start` exits before its init executes the program. execve(2) may still fail (ENOEXEC,
E2BIG, a missing interpreter), or a seccomp profile may kill the init. Such an init ends with a
status or a signal, as a program could. PF_FORKNOEXEC tells the two apart, also in a zombie. The
kernel has no event for an execve, so the flag is read again until it is cleared.

Some runtimes run some programs inside their init, without an execve. `custom_handler` finds them by
their name and by annotations. Their init counts as the program.

/proc/PID/stat is opened once, early, so that a later EMFILE cannot hide the flag.
"""

from __future__ import annotations

import os

from supervisor.linux import fds
from supervisor.linux.exit_status import Killed
from supervisor.linux.procfs import PF_FORKNOEXEC
from supervisor.oci import custom_handler
from workers.common import process_stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.linux.event_loop import Loop
    from supervisor.linux.exit_status import Termination

_FIRST_LOOK_S = 0.001
_LONGEST_LOOK_S = 0.1
EXEC_LIMIT_S = 10.0
"""An init that lives this long after the runtime's `start` counts as the program."""
HANDLER_LIMIT_S = 0.1
"""The same for a runtime that may execute nothing."""

_MOST_BYTES = 4096


class ExecWatch:
    """Watches one init. Owns a descriptor of its /proc/PID/stat until `close`."""

    def __init__(self, loop: Loop, pid: int, *, runtime: str, config_path: str) -> None:
        """Open the file. An init that was reaped already has executed nothing.

        Raises:
            OSError: EMFILE, ENFILE or ENOMEM.
        """
        self._runtime = runtime
        self._config_path = config_path
        self._next_look = loop.timer(self._look_again)
        self._look_s = _FIRST_LOOK_S
        self._waited_s = 0.0
        self._limit_s = EXEC_LIMIT_S
        self._has_executed = False
        self._on_run: Callable[[], None] = lambda: None
        try:
            self._stat = fds.Fd(os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC))
        except (FileNotFoundError, ProcessLookupError):
            self._stat = fds.Fd(-1)

    def look(self) -> None:
        """Read the flag of the running init, or of the zombie before it is reaped."""
        if self._has_executed or not self._stat.is_open:
            return
        try:
            found = process_stat.parse(os.pread(self._stat.fileno(), _MOST_BYTES, 0))
        except ProcessLookupError:  # reaped: the flag that was read last counts
            self._stat.close()
            return
        self._has_executed = not int(found[process_stat.FLAGS]) & PF_FORKNOEXEC
        if self._has_executed:
            self._stat.close()

    def expect(self, on_run: Callable[[], None]) -> None:
        """Call `on_run` once the program runs, possibly at once. Called after `start` succeeded.

        `on_run` is not called after the init was reaped.
        """
        self._on_run = on_run
        self._limit_s = HANDLER_LIMIT_S if self._may_run_without_exec() else EXEC_LIMIT_S
        self._look_again()

    def has_run(self, end: Termination | None, *, is_started: bool) -> bool:
        """Return whether the program has run in the init. `end`: how that ended, None if it lives.

        An init that executes nothing has run its program if the runtime's `start` was executed
        (`is_started`) and no signal killed the init.
        """
        self.look()
        if self._has_executed:
            return True
        return is_started and not isinstance(end, Killed) and self._may_run_without_exec()

    def close(self) -> None:
        """Close the file and cancel the timer."""
        self._next_look.cancel()
        self._stat.close()

    def _look_again(self) -> None:
        self.look()
        if self._has_executed or self._waited_s >= self._limit_s:
            self._stat.close()  # the answer is known
            self._on_run()
        elif self._stat.is_open:
            self._next_look.start(self._look_s)
            self._waited_s += self._look_s
            self._look_s = min(2 * self._look_s, _LONGEST_LOOK_S)

    def _may_run_without_exec(self) -> bool:
        return custom_handler.may_run_without_exec(self._runtime, self._config_path)
