"""A worker whose supervisor has died, and that nobody will adopt: it ends when its client leaves.

Its sink is a fifo that is open for both directions, so that clients may leave and come back: the
worker is a reader itself, and would wait for another one for ever. So it stops being one when the
kernel tells it of its parent's death (PR_SET_PDEATHSIG), amid whatever it does: a call that waits
for room is interrupted, and made again on the same descriptor, which is write-only then. While a
client has the fifo open nothing changes; without one there is EPIPE.
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
"""To this one workers are deaf otherwise. Strangers may send it, too."""


@dataclass(frozen=True, slots=True)
class OrphanedFifo:
    """What is to be let go of, and whose death it is.

    Attributes:
        fifo_fd: Borrowed; open for both directions.
        supervisor_pid: Our parent.
        ask: prctl(2), PR_SET_PDEATHSIG.
    """

    fifo_fd: int
    supervisor_pid: int
    ask: Callable[[int], None]

    def install(self) -> None:
        """See that it is done when the time comes, which may have been."""
        signal.signal(_PARENT_DEATH_SIGNAL, self._on_signal)
        self.ask(_PARENT_DEATH_SIGNAL)
        self._on_signal(_PARENT_DEATH_SIGNAL, None)

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        is_orphan = os.getppid() != self.supervisor_pid
        if is_orphan and fcntl.fcntl(self.fifo_fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
            # It does not wait for a reader: that is this process, for the last time.
            write_only = os.open(f"/proc/self/fd/{self.fifo_fd}", os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(write_only, self.fifo_fd, inheritable=False)
            os.close(write_only)
