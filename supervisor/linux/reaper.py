"""The only module that waits for children.

Why not `subprocess`: a subreaper inherits processes that it has not forked, and must reap them.
That takes waitid(P_ALL), which takes any child's status. `Popen.wait` would then find no child, and
return 0 for /bin/false. So no other module waits.

Why not a pidfd in the loop for each child: that costs two system calls a child, and inherited
children still need SIGCHLD and P_ALL. SIGCHLD coalesces, so the reaper loops until no child is left
to be reaped. Waiting per known pid would leave unknown children as zombies.

A status may come before its owner is known: a container may end before its runtime, and only after
the runtime does the supervisor read the container's pid. So the reaper remembers the statuses of
unknown children while a create operation is under way, up to a limit; see `remember_unknown`.
"""

from __future__ import annotations

import os

from supervisor.linux import exit_status, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    OnExit = Callable[[exit_status.Termination], None]

_MOST_IN_A_ROUND = 256
_MOST_UNKNOWN = 4096
"""Statuses remembered while a container's pid is unknown; the oldest are dropped first."""


class Reaper:
    """Reaps every child; tells those who asked."""

    def __init__(self) -> None:
        """Expect no child so far."""
        self._expected: dict[int, OnExit] = {}
        self._unknown: dict[int, exit_status.Termination] = {}
        self._operations: set[object] = set()
        self._last_looks: dict[int, Callable[[], None]] = {}

    def look_before(self, pid: int, look: Callable[[], None]) -> None:
        """Call `look` when the child `pid` is a zombie, before it is reaped: /proc still has it."""
        self._last_looks[pid] = look

    def expect(self, pid: int, on_exit: OnExit) -> None:
        """Call `on_exit` once when the child `pid` has ended: at once, if it is remembered."""
        if pid in self._unknown:
            on_exit(self._unknown.pop(pid))
            return
        self._expected[pid] = on_exit

    def is_ours(self, pid: int) -> bool:
        """Say whether `pid` is a living child, an unreaped one or a remembered one."""
        if pid in self._unknown:
            return True
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except (ChildProcessError, OverflowError):  # the latter: more than a pid_t holds
            return False
        return True

    def living_unknown(self) -> list[int]:
        """Return the children that no caller expects: inherited, or left by a runtime.

        Source: proc(5), /proc/[pid]/task/[tid]/children; the file lists unreaped children, too.
        """
        return [pid for pid in procfs.children() if pid not in self._expected]

    def remember_unknown(self, operation: object) -> None:
        """Remember the statuses of unknown children: a child of `operation` may be among them."""
        self._operations.add(operation)

    def forget_unknown(self, operation: object) -> None:
        """Stop that for `operation`, whose child is known now. After the last, reap silently."""
        self._operations.discard(operation)
        if not self._operations:
            self._unknown.clear()

    def reap(self) -> bool:
        """Collect children that have ended. Call it on each SIGCHLD; never blocks.

        Returns:
            Whether there may be more: a container that makes orphans without end must not keep
            the loop from a TERM. Then call it again in the next round.
        """
        for _each in range(_MOST_IN_A_ROUND):
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return False
            if info is None:
                return False
            look = self._last_looks.pop(info.si_pid, None)
            if look is not None:
                look()
            os.waitid(os.P_PID, info.si_pid, os.WEXITED)
            self._tell(info.si_pid, exit_status.from_siginfo(info))
        return True

    def is_expected(self, pid: int) -> bool:
        """Say whether `pid` is a child of our own making: a worker, or the runtime."""
        return pid in self._expected

    def _tell(self, pid: int, termination: exit_status.Termination) -> None:
        on_exit = self._expected.pop(pid, None)
        if on_exit is not None:
            on_exit(termination)
        elif self._operations:
            self._unknown[pid] = termination
            if len(self._unknown) > _MOST_UNKNOWN:
                del self._unknown[next(iter(self._unknown))]


def wait_for(pid: int) -> exit_status.Termination:
    """Wait for one child, in a process that has no `Reaper` and no loop yet."""
    info = os.waitid(os.P_PID, pid, os.WEXITED)
    if info is None:
        raise AssertionError("waitid(2) without WNOHANG returned nothing")
    return exit_status.from_siginfo(info)
