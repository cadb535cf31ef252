"""How a worker ends when its supervisor has died and no successor can adopt the container.

The worker has the fifo that is its sink open with O_RDWR, so that clients may leave and come back.
So the worker itself is a reader of the fifo, and would wait for room without end. It stops being a
reader when the kernel reports the supervisor's death (PR_SET_PDEATHSIG). The signal interrupts a
call that waits for room, and the retried call uses a write-only descriptor. Then the worker gets
EPIPE if no client has the fifo open, and goes on if a client has.
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
"""Other workers ignore it. Any process may send it, so the handler checks the parent."""


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
            # open(2) does not wait for a reader, because this process still is a reader.
            write_only = os.open(f"/proc/self/fd/{self.fifo_fd}", os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(write_only, self.fifo_fd, inheritable=False)
            os.close(write_only)
