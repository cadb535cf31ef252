"""Counters in shared memory: per stream bytes copied and in flight, per attach client skipped.

The supervisor makes and owns the memory before it forks; a worker writes its own slot. So a count
outlives its worker, and the supervisor sees progress without a message. A worker that is killed
between its splice(2) and its count leaves the count up to one chunk short. No byte of the stream is
lost: see `workers.copy.splice`.
"""

from __future__ import annotations

from workers.common.shared_memory import Memory

_COPIED, _IN_FLIGHT, _TEED, _WORDS = 0, 1, 2, 3
_SKIPPED = 64
"""Words below belong to the streams, words from here on to the attach clients."""

_BEGUN = 96
"""From here on, one word for each stream: whether it has ever had a worker."""

_UNTEED = 128
"""From here on, `MAX_BRANCHES` words for each stream: what each branch has still to get."""

MAX_ATTACH_CLIENTS = 16
MAX_BRANCHES = 4

MEMORY_NAME = "forkshim:counters"
"""In /proc/PID/maps of every worker: `supervisor.handover.discover` finds them by it."""

MOST_BYTES = 1 << 62
"""Limit of each count that is read: a worker may write any number. Sums of two still fit into
JSON's 64 bits."""


class StreamCounters:
    """Unsigned 64-bit numbers.

    Per stream: bytes copied, bytes in flight, and whether the attach clients have what the staging
    pipe holds. Per attach client: bytes skipped.
    """

    def __init__(self, *, fd: int = -1) -> None:
        """Make zeroed memory that stays shared across fork(2); `fd`: see `Memory`."""
        self._memory = Memory(MEMORY_NAME, fd=fd)
        # One aligned store of eight bytes: a reader never sees half a number.
        self._numbers = self._memory.words

    @property
    def fd(self) -> int:
        """Descriptor of the memory, borrowed."""
        return self._memory.fd

    def copied_bytes(self, slot: int) -> int:
        """Return how many bytes of the stream were copied since it began."""
        return min(self._numbers[_WORDS * slot + _COPIED], MOST_BYTES)

    def in_flight_bytes(self, slot: int) -> int:
        """Return how many bytes have left the source and not reached the sink yet."""
        return min(self._numbers[_WORDS * slot + _IN_FLIGHT], MOST_BYTES)

    def add_copied(self, slot: int, copied_bytes: int) -> None:
        """Count bytes. Only the one living worker of the slot calls it."""
        self._numbers[_WORDS * slot + _COPIED] += copied_bytes

    def set_in_flight(self, slot: int, in_flight_bytes: int) -> None:
        """Set how many bytes are between source and sink; each new worker sets it first."""
        self._numbers[_WORDS * slot + _IN_FLIGHT] = in_flight_bytes

    def is_teed(self, slot: int) -> bool:
        """Say whether the attach clients have what is between source and sink."""
        return bool(self._numbers[_WORDS * slot + _TEED])

    def set_teed(self, slot: int, *, is_teed: bool) -> None:
        """Set whether the attach clients have what is between source and sink."""
        self._numbers[_WORDS * slot + _TEED] = is_teed

    def has_begun(self, slot: int) -> bool:
        """Say whether the stream has ever had a worker."""
        return bool(self._numbers[_BEGUN + slot])

    def set_begun(self, slot: int) -> None:
        """Note that the stream gets its first worker. Only the parent calls it, before the fork."""
        self._numbers[_BEGUN + slot] = 1

    def unteed_bytes(self, slot: int, branch: int) -> int:
        """Return how many bytes at the end of the staging pipe a branch has still to get."""
        return self._numbers[_UNTEED + MAX_BRANCHES * slot + branch]

    def set_unteed_bytes(self, slot: int, branch: int, count: int) -> None:
        """Set that number. Only the one living worker of the slot calls it."""
        self._numbers[_UNTEED + MAX_BRANCHES * slot + branch] = count

    def clear_begun(self, slot: int) -> None:
        """Note that the stream waits for a first byte again. Only the parent calls it."""
        self._numbers[_BEGUN + slot] = 0

    def skipped_bytes(self, client: int) -> int:
        """Return how many bytes an attach client was too slow for."""
        return min(self._numbers[_SKIPPED + client], MOST_BYTES)

    def add_skipped(self, client: int, skipped_bytes: int) -> None:
        """Count bytes. Only the one living worker of the client's stream calls it."""
        self._numbers[_SKIPPED + client] += skipped_bytes

    def reset_skipped(self, client: int) -> None:
        """Set the count of a client's number to 0, for a new client."""
        self._numbers[_SKIPPED + client] = 0

    def close(self) -> None:
        """Close the memory."""
        self._memory.close()
