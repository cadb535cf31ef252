"""Counters in shared memory: what each stream has moved, and what is on its way.

The parent makes the ledger before it forks and owns it; a worker adds to its own slot. So the
count survives the worker, and the parent can see progress without a message. A worker that is
killed between its splice(2) and its count leaves the count up to one chunk short: the bytes
themselves are never in doubt, see `workers.engines`.
"""

from __future__ import annotations

import mmap


class Ledger:
    """Two unsigned 64-bit counts per stream: copied, and in transit."""

    def __init__(self, slots: int) -> None:
        """Map zeroed memory that stays shared across fork(2)."""
        self._map = mmap.mmap(-1, slots * 16)
        # One aligned store of eight bytes: a reader never sees half a number.
        self._counts = memoryview(self._map).cast("Q")

    def copied_bytes(self, slot: int) -> int:
        """Return how many bytes the stream has moved since it began."""
        return self._counts[2 * slot]

    def transit_bytes(self, slot: int) -> int:
        """Return how many bytes have left the source and not reached the sink yet."""
        return self._counts[2 * slot + 1]

    def add(self, slot: int, copied_bytes: int) -> None:
        """Count bytes. Only the one living worker of the slot calls it."""
        self._counts[2 * slot] += copied_bytes

    def set_transit(self, slot: int, transit_bytes: int) -> None:
        """Say what is between source and sink now; a successor begins by setting it right."""
        self._counts[2 * slot + 1] = transit_bytes

    def close(self) -> None:
        """Give the memory back."""
        self._counts.release()
        self._map.close()
