"""How a worker ends when its supervisor has died and no successor can adopt it.

Its sink is a fifo that the worker has open for reading and writing, so that clients may leave and
come back. So the worker is itself a reader of the fifo, and would wait for another reader for ever.
It stops being a reader when the kernel reports the supervisor's death (PR_SET_PDEATHSIG). The
signal interrupts a call that waits for room; the retried call finds the descriptor write-only.
While a client has the fifo open nothing changes; without a client the worker gets EPIPE.
"""

from __future__ import annotations

import fcntl
import os
import signal

from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_PARENT_DEATH_SIGNAL = signal.SIGHUP
"""A signal that other workers ignore. Any process may send it, so the handler checks the parent."""


@dataclass(frozen=True, slots=True)
class OrphanedFifo:
    """The fifo that a worker stops reading when its supervisor dies.

    Attributes:
        fifo_fd: Borrowed; open for reading and writing.
        supervisor_pid: The parent of the worker.
        set_pdeathsig: prctl(2), PR_SET_PDEATHSIG.
    """

    fifo_fd: int
    supervisor_pid: int
    set_pdeathsig: Callable[[int], None]

    def install(self) -> None:
        """Install the handler, and run it once: the supervisor may be dead already."""
        signal.signal(_PARENT_DEATH_SIGNAL, self._on_signal)
        self.set_pdeathsig(_PARENT_DEATH_SIGNAL)
        self._on_signal(_PARENT_DEATH_SIGNAL, None)

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        is_orphan = os.getppid() != self.supervisor_pid
        if is_orphan and fcntl.fcntl(self.fifo_fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
            # Does not wait for a reader: this process still is one.
            write_only = os.open(f"/proc/self/fd/{self.fifo_fd}", os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(write_only, self.fifo_fd, inheritable=False)
            os.close(write_only)
