"""The only module that waits for children.

Why not `subprocess`: a subreaper inherits processes that it has not forked, and must reap them with
waitid(P_ALL). That call takes any child's status. `Popen.wait` would then find no child, and return
0 for /bin/false. So no other module waits.

Why not a pidfd in the loop for each child: it costs two system calls per child, and inherited
children still need SIGCHLD and P_ALL. SIGCHLD coalesces, so the reaper loops until no child has
ended. Waiting only for known pids would leave unknown children as zombies.

A status may arrive before its owner is known: a container may exit before its runtime, and the
supervisor reads the container's pid only after the runtime's exit. So the reaper remembers the
statuses of unknown children during a create operation, up to a limit, see `remember_unknown`.
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
"""The most remembered statuses. The reaper drops the oldest first."""


class Reaper:
    """Reaps every child of this process, and calls back with its termination."""

    def __init__(self) -> None:
        """Expect no child."""
        self._expected: dict[int, OnExit] = {}
        self._unknown: dict[int, exit_status.Termination] = {}
        self._operations: set[object] = set()
        self._last_looks: dict[int, Callable[[], None]] = {}

    def look_before(self, pid: int, look: Callable[[], None]) -> None:
        """Call `look` when the child `pid` is a zombie, before it is reaped and leaves /proc."""
        self._last_looks[pid] = look

    def expect(self, pid: int, on_exit: OnExit) -> None:
        """Call `on_exit` once, when the child `pid` has ended; at once if it is remembered."""
        if pid in self._unknown:
            on_exit(self._unknown.pop(pid))
            return
        self._expected[pid] = on_exit

    def has_child(self, pid: int) -> bool:
        """Return whether `pid` is a child of this process, a zombie, or a remembered child."""
        if pid in self._unknown:
            return True
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except (ChildProcessError, OverflowError):  # OverflowError: larger than a pid_t
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
        """Undo `remember_unknown`: the child of `operation` is known now.

        After the last operation the reaper discards the statuses of unknown children.
        """
        self._operations.discard(operation)
        if not self._operations:
            self._unknown.clear()

    def reap(self) -> bool:
        """Reap children that have ended, at most 256. Called on each SIGCHLD; never blocks.

        Returns:
            Whether more children may have ended. The loop then calls again in its next round: a
            container that makes orphans without end must not delay a SIGTERM.
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
        """Return whether this process has forked the child `pid`: a worker, or the runtime."""
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
