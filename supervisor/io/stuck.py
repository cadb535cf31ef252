"""Finds stuck workers: a worker that was stopped by SIGSTOP, for example.

A worker is suspect while it has bytes to copy, and room for them, and copies nothing. A worker that
was suspect at every look for a given time is stuck. Killing it loses no byte, and another follows.
"""

from __future__ import annotations

import time

from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.io.stream_copy import StreamCopy
    from supervisor.state.log import Log


@dataclass(frozen=True, slots=True)
class _Suspicion:
    pid: int
    copied_bytes: int
    since_s: float


class StuckDetector:
    """Looks at the slots of one container when it is called. Borrows them."""

    def __init__(self, slots: Sequence[StreamCopy], log: Log) -> None:
        """Borrow everything. `slots` may grow."""
        self._slots = slots
        self._log = log
        self._suspicions: dict[str, _Suspicion] = {}

    def is_stuck(self, slot: StreamCopy, for_s: float) -> bool:
        """Look at the slot. Return whether its worker has been stuck for `for_s` seconds."""
        name, now_s = slot.stream.name, time.monotonic()
        if not slot.could_move():
            self._suspicions.pop(name, None)
            return False
        earlier = self._suspicions.get(name)
        if earlier is None or (earlier.pid, earlier.copied_bytes) != (slot.pid, slot.copied_bytes):
            self._suspicions[name] = _Suspicion(slot.pid, slot.copied_bytes, now_s)
            return False
        return now_s - earlier.since_s >= for_s

    def kill(self, slot: StreamCopy) -> None:
        """Kill the slot's worker, and log that."""
        self._log.warning(
            f"{slot.stream.name}: worker {slot.pid} is stuck; killing and replacing it"
        )
        slot.kill()

    def kill_stuck(self, for_s: float) -> None:
        """Look at all outputs. Kill each worker that has been stuck for `for_s` seconds."""
        for slot in self._slots:
            if not slot.stream.is_input and self.is_stuck(slot, for_s):
                self.kill(slot)
