"""Finding workers that do not move: stopped by SIGSTOP, say.

A worker is suspected at a look if it has something to move, and room to move it to. It is stuck if
it is suspected at every look of a certain time, and has moved nothing in it. Killing it is harmless
to the bytes; another worker follows.
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
    """Looks at the slots of one container when it is asked to. Borrows them."""

    def __init__(self, slots: Sequence[StreamCopy], log: Log) -> None:
        """`slots` may grow."""
        self._slots = slots
        self._log = log
        self._suspicions: dict[str, _Suspicion] = {}

    def is_stuck(self, slot: StreamCopy, for_s: float) -> bool:
        """Look at the slot; say whether its worker has been stuck for so long."""
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
        """Kill the slot's worker, and log it."""
        self._log.warning(f"{slot.stream.name}: worker {slot.pid} does not move; killing it")
        slot.kill()

    def kill_stuck(self, for_s: float) -> None:
        """Look at all outputs; kill each worker that has been stuck for so long."""
        for slot in self._slots:
            if not slot.stream.is_input and self.is_stuck(slot, for_s):
                self.kill(slot)
