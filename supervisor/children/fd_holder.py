"""A process that does nothing but keep what a successor of ours would need.

Workers do that as long as there are any. A container that has closed its outputs, or whose outputs
all go nowhere, has none; it can be followed all the same.
"""

from __future__ import annotations

import os
import signal

from supervisor.children import restart_policy
from supervisor.linux import spawn
from workers.process import isolate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from supervisor.linux.event_loop import Loop
    from supervisor.linux.exit_status import Termination
    from supervisor.linux.reaper import Reaper
    from supervisor.state.log import Log


class FdHolder:
    """At most one such process, a child of ours. Owned until `leave` and its end."""

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        log: Log,
        *,
        title: str,
        null_fd: int,
        held: tuple[int, ...],
    ) -> None:
        """Borrow everything; `held` is what is kept."""
        self._again = loop.timer(self._come_again)
        self._reaper = reaper
        self._log = log
        self._title = title
        self._null_fd = null_fd
        self._held = held
        self._is_to_leave = False
        self._is_refused = False
        self.pid = 0

    def go_on(self, pid: int) -> None:
        """Take over the one that this process had before it became another program; 0: none."""
        self.pid = pid
        if pid:
            self._reaper.expect(pid, self._on_exit)

    def come(self) -> bool:
        """Have one; False if that has to be tried again later, which is seen to."""
        if not self.pid and not self._is_to_leave:
            try:
                self.pid = spawn.fork_worker(self._keep)
            except OSError as error:  # EAGAIN, ENOMEM: the limits of our cgroup
                if not self._is_refused:
                    self._log.warning(f"keeper: fork: {error.strerror}; trying again")
                self._is_refused = True
                self._come_later()
                return False
            self._is_refused = False
            self._reaper.expect(self.pid, self._on_exit)
        return True

    def leave(self) -> None:
        """Have none any more; it is gone when there is no `pid`."""
        self._is_to_leave = True
        self._again.cancel()
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)  # unreaped, so the pid is its own

    def _keep(self) -> None:
        isolate.enter_worker(f"{self._title} [keeper]", self._held, self._null_fd)
        while True:
            signal.pause()

    def _on_exit(self, _termination: Termination) -> None:
        self.pid = 0
        if not self._is_to_leave:  # not at once: it may be somebody who kills each of them
            self._come_later()

    def _come_again(self) -> None:
        self.come()

    def _come_later(self) -> None:
        self._again.start(restart_policy.FORK_AGAIN_S)
