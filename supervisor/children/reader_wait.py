"""Waits for the first reader of a fifo, in a child: a blocking open(2) has no time limit."""

from __future__ import annotations

import os
import signal
from functools import partial

from supervisor.linux import fds, spawn
from supervisor.linux.errors import ShimError, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.linux.event_loop import Loop
    from supervisor.linux.exit_status import Termination
    from supervisor.linux.reaper import Reaper

_PAUSE_S = 0.05


class ReaderWait:
    """Forks a child that waits for a reader. Owns the child, its pipe and `with_path`."""

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        path: str,
        with_path: fds.Fd,
        work: Callable[[int, int], None],
        on_reader: Callable[[], None],
        on_end: Callable[[ShimError | None], None],
    ) -> None:
        """Borrow loop and reaper.

        Args:
            loop: Watches the child's pipe.
            reaper: Reaps the child.
            path: Of the fifo; for errors.
            with_path: An O_PATH descriptor of the fifo; owned.
            work: What the child runs, with the descriptors of the fifo and of its pipe.
            on_reader: Opens the fifo while the child still has it open. May raise `ShimError`.
            on_end: Called after the child was killed, with None or the error.
        """
        self.path = path
        self._loop = loop
        self._reaper = reaper
        self._with_path = with_path
        self._work = work
        self._on_reader = on_reader
        self._on_end = on_end
        self._said_rfd = fds.Fd(-1)
        self._again = loop.timer(self.begin)
        self._pid = 0

    @property
    def is_reaped(self) -> bool:
        """Whether every child was reaped."""
        return self._pid == 0

    def begin(self) -> None:
        """Fork the child. If fork(2) or pipe(2) fails, call `on_end` with the error."""
        try:
            self._said_rfd, said_wfd = fds.pipe(4096)
            os.set_blocking(self._said_rfd.fileno(), False)
            try:
                self._pid = spawn.fork_worker(
                    partial(self._work, self._with_path.fileno(), said_wfd.fileno()),
                    dies_with_parent=True,
                )
            finally:
                said_wfd.close()
        except OSError as error:
            self.end()
            self._on_end(ShimError(f"wait for a reader of {self.path}: {reason(error)}"))
            return
        self._reaper.expect(self._pid, self._on_child_gone)
        self._loop.watch(self._said_rfd.fileno(), self._on_said)

    def _on_said(self) -> None:
        if not os.read(self._said_rfd.fileno(), 1):
            self._hang_up()  # the child has died, and the reaper calls `_on_child_gone`
            return
        error = None
        try:
            self._on_reader()
        except ShimError as caught:
            error = caught
        self.end()
        self._on_end(error)

    def _on_child_gone(self, _termination: Termination) -> None:
        """Fork another child, unless `end` has killed this child."""
        self._pid = 0
        self._hang_up()
        if self._with_path.is_open:
            self._again.start(_PAUSE_S)

    def end(self) -> None:
        """Kill the child, which the reaper reaps. A second call does nothing."""
        self._again.cancel()
        self._hang_up()
        self._with_path.close()
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)  # unreaped, so no other process has the pid

    def _hang_up(self) -> None:
        if self._said_rfd.is_open:
            self._loop.forget(self._said_rfd.fileno())
            self._said_rfd.close()
