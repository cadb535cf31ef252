"""The fd holder: a child of the supervisor that keeps the fd store open when the supervisor dies.

Another supervisor adopts the container from the store. The fd holder parses nothing. It has no
descriptor but /dev/null, the store's two sockets, and those that `starter` needs.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from functools import partial

from supervisor.children import restart_policy
from supervisor.linux import spawn
from workers.process import isolate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from supervisor.linux import fds
    from supervisor.linux.event_loop import Loop
    from supervisor.linux.exit_status import Termination
    from supervisor.linux.reaper import Reaper
    from supervisor.state.log import Log

    class Starter(Protocol):
        """Starts a successor when the supervisor has died: `supervisor.handover.successor`."""

        @property
        def fds(self) -> tuple[int, ...]:
            """The descriptors it needs, which are lent."""

        def serve(self, supervisor_pid: int) -> None:
            """Wait for the supervisor's death and start successors. Returns if none is needed."""


_LONG_LIFE_S = 10.0
"""An fd holder that lived this long did not die of the same cause as the one before it."""


class FdHolder:
    """Keeps one fd holder alive from `ensure` on. Owns the process until `stop` and its end."""

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        log: Log,
        *,
        title: str,
        null_fd: int,
        store_fds: tuple[int, ...],
        starter: Starter,
        predecessors: Sequence[fds.Fd] = (),
    ) -> None:
        """Borrow everything but `predecessors`.

        Args:
            loop: Has the timer of the next fork.
            reaper: Tells of the process's end.
            log: Gets a line for the deaths 1, 2, 4, 8, ...
            title: The supervisor's process title.
            null_fd: /dev/null.
            store_fds: What the process keeps open.
            starter: What the process does when the supervisor dies.
            predecessors: pidfds of earlier fd holders of this store, owned. They get SIGKILL once
                the first fork has succeeded.
        """
        self._next_fork = loop.timer(self.ensure)
        self._reaper = reaper
        self._log = log
        self._title = title
        self._null_fd = null_fd
        self._store_fds = store_fds
        self._predecessors = [*predecessors]
        self._starter = starter
        self._is_stopping = False
        self._failed_forks = self._deaths = self._deaths_in_a_row = 0
        self._forked_at_s = 0.0
        self.pid = 0

    def ensure(self) -> None:
        """Fork the process unless it exists. A timer repeats a failed fork(2)."""
        if self.pid or self._is_stopping or self._next_fork.is_running:
            return
        try:
            self.pid = spawn.fork_worker(partial(self._hold, os.getpid()))
        except OSError as error:  # EAGAIN, ENOMEM: limits of the cgroup
            self._failed_forks += 1
            if restart_policy.is_logged(self._failed_forks):
                self._log.warning(
                    f"fd holder: fork: {error.strerror}; trying again in "
                    f"{restart_policy.FORK_AGAIN_S:g} s; failures: {self._failed_forks}"
                )
            self._next_fork.start(restart_policy.FORK_AGAIN_S)
            return
        self._failed_forks = 0
        self._forked_at_s = time.monotonic()
        self._reaper.expect(self.pid, self._on_exit)
        self._end_predecessors()

    def stop(self) -> None:
        """Kill the process and its predecessors. `pid` is 0 once it was reaped."""
        self._is_stopping = True
        self._next_fork.cancel()
        self._end_predecessors()
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)  # unreaped, so no other process has the pid

    def _hold(self, supervisor_pid: int) -> None:
        kept = (*self._store_fds, *self._starter.fds)
        isolate.enter_worker(f"{self._title} [fds]", kept, self._null_fd)
        self._starter.serve(supervisor_pid)

    def _on_exit(self, termination: Termination) -> None:
        self.pid = 0
        if self._is_stopping:
            return
        self._deaths += 1
        is_short = time.monotonic() - self._forked_at_s < _LONG_LIFE_S
        self._deaths_in_a_row = self._deaths_in_a_row + 1 if is_short else 1
        if restart_policy.is_logged(self._deaths):
            self._log.warning(f"fd holder: {termination}, forked again; deaths: {self._deaths}")
        pause_s = restart_policy.pause_s(self._deaths_in_a_row)
        self._next_fork.start(min(pause_s, restart_policy.FORK_AGAIN_S))

    def _end_predecessors(self) -> None:
        while self._predecessors:
            pidfd = self._predecessors.pop()
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd.fileno(), signal.SIGKILL)
            pidfd.close()
