"""Counters in shared memory: what each stream has moved, what is on its way, and who moves it.

The parent makes the ledger before it forks and owns it; a worker adds to its own slot. So the
count survives the worker, and the parent can see progress without a message. A worker that is
killed between its splice(2) and its count leaves the count up to one chunk short: the bytes
themselves are never in doubt, see `workers.copy.splice`.
"""

from __future__ import annotations

from workers.common.shared_memory import Memory

_COPIED, _IN_FLIGHT, _TEED, _WORDS = 0, 1, 2, 3
_SKIPPED = 64
"""Words before are the streams', those from here on the listeners'."""

MAX_ATTACH_CLIENTS = 16

MOST_BYTES = 1 << 62
"""A count above that is a worker's invention: sums of two still fit into JSON's 64 bits."""


class StreamCounters:
    """Unsigned 64-bit numbers.

    For each stream bytes copied, bytes in flight, and whether the listeners have heard what is in
    the staging pipe; for each listener bytes missed.
    """

    def __init__(self, *, fd: int = -1) -> None:
        """Make zeroed memory that stays shared across fork(2); `fd`: see `Memory`."""
        self._memory = Memory("forkshim:counters", fd=fd)
        # One aligned store of eight bytes: a reader never sees half a number.
        self._numbers = self._memory.words

    @property
    def fd(self) -> int:
        """Lend the descriptor of the memory."""
        return self._memory.fd

    def copied_bytes(self, slot: int) -> int:
        """Return how many bytes the stream has moved since it began."""
        return min(self._numbers[_WORDS * slot + _COPIED], MOST_BYTES)

    def in_flight_bytes(self, slot: int) -> int:
        """Return how many bytes have left the source and not reached the sink yet."""
        return min(self._numbers[_WORDS * slot + _IN_FLIGHT], MOST_BYTES)

    def add_copied(self, slot: int, copied_bytes: int) -> None:
        """Count bytes. Only the one living worker of the slot calls it."""
        self._numbers[_WORDS * slot + _COPIED] += copied_bytes

    def set_in_flight(self, slot: int, in_flight_bytes: int) -> None:
        """Say what is between source and sink now; a successor begins by setting it right."""
        self._numbers[_WORDS * slot + _IN_FLIGHT] = in_flight_bytes

    def is_teed(self, slot: int) -> bool:
        """Say whether the listeners have heard what is between source and sink."""
        return bool(self._numbers[_WORDS * slot + _TEED])

    def set_teed(self, slot: int, *, is_teed: bool) -> None:
        """Note that they have, or that something else comes."""
        self._numbers[_WORDS * slot + _TEED] = is_teed

    def skipped_bytes(self, client: int) -> int:
        """Return how many bytes came too fast for a listener."""
        return min(self._numbers[_SKIPPED + client], MOST_BYTES)

    def add_skipped(self, client: int, skipped_bytes: int) -> None:
        """Count bytes. Only the one living worker of the listener's stream calls it."""
        self._numbers[_SKIPPED + client] += skipped_bytes

    def reset_skipped(self, client: int) -> None:
        """Begin with none for another listener."""
        self._numbers[_SKIPPED + client] = 0

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
