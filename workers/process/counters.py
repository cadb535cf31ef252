"""Counters in shared memory: per stream bytes copied and in flight, per attach client skipped.

The supervisor makes and owns the memory before it forks. A worker writes its own slot. So a count
outlives its worker, and the supervisor sees progress without a message. If a worker is killed
between splice(2) and its count, the count is up to one chunk too small. No byte of the stream is
lost, see `workers.copy.splice`.
"""

from __future__ import annotations

from workers.common.shared_memory import Memory

_COPIED, _IN_FLIGHT, _TEED, _WORDS = 0, 1, 2, 3
_SKIPPED = 64
"""Index of the attach clients' words. The words before it belong to the streams."""

_BEGUN = 96
"""Index of one word per stream: whether it ever had a worker."""

_UNTEED = 128
"""Index of `MAX_BRANCHES` words per stream: the bytes that were not teed to each branch."""

MAX_ATTACH_CLIENTS = 16
MAX_BRANCHES = 4

MEMORY_NAME = "forkshim:counters"
"""It is in /proc/PID/maps of every worker, where `supervisor.handover.discover` looks for it."""

MOST_BYTES = 1 << 62
"""Readers clamp each count to it, because a worker may write any number. The sum of two counts
still fits into JSON's 64 bits."""


class StreamCounters:
    """Unsigned 64-bit numbers.

    Per stream: bytes copied, bytes in flight, whether the staging pipe's content was teed. Per
    attach client: bytes skipped.
    """

    def __init__(self, *, fd: int = -1) -> None:
        """Make zeroed memory that stays shared across fork(2). `fd`: see `Memory`."""
        self._memory = Memory(MEMORY_NAME, fd=fd)
        # One aligned store of eight bytes: a reader never sees half a number.
        self._numbers = self._memory.words

    @property
    def fd(self) -> int:
        """Descriptor of the memory, borrowed."""
        return self._memory.fd

    def copied_bytes(self, slot: int) -> int:
        """Return how many bytes of the stream were copied."""
        return min(self._numbers[_WORDS * slot + _COPIED], MOST_BYTES)

    def in_flight_bytes(self, slot: int) -> int:
        """Return how many bytes have left the source and are not in the sink yet."""
        return min(self._numbers[_WORDS * slot + _IN_FLIGHT], MOST_BYTES)

    def add_copied(self, slot: int, copied_bytes: int) -> None:
        """Count bytes. Only the living worker of the slot calls it."""
        self._numbers[_WORDS * slot + _COPIED] += copied_bytes

    def set_in_flight(self, slot: int, in_flight_bytes: int) -> None:
        """Set how many bytes are between source and sink. Each new worker first sets it."""
        self._numbers[_WORDS * slot + _IN_FLIGHT] = in_flight_bytes

    def is_teed(self, slot: int) -> bool:
        """Return whether the bytes between source and sink were teed to the attach clients."""
        return bool(self._numbers[_WORDS * slot + _TEED])

    def set_teed(self, slot: int, *, is_teed: bool) -> None:
        """Set `is_teed`."""
        self._numbers[_WORDS * slot + _TEED] = is_teed

    def has_begun(self, slot: int) -> bool:
        """Return whether the stream ever had a worker."""
        return bool(self._numbers[_BEGUN + slot])

    def set_begun(self, slot: int) -> None:
        """Note that the stream gets its first worker. Only the parent calls it, before the fork."""
        self._numbers[_BEGUN + slot] = 1

    def unteed_bytes(self, slot: int, branch: int) -> int:
        """Return how many bytes at the end of the staging pipe were not teed to a branch."""
        return self._numbers[_UNTEED + MAX_BRANCHES * slot + branch]

    def set_unteed_bytes(self, slot: int, branch: int, count: int) -> None:
        """Set `unteed_bytes`. Only the living worker of the slot calls it."""
        self._numbers[_UNTEED + MAX_BRANCHES * slot + branch] = count

    def clear_begun(self, slot: int) -> None:
        """Note that the stream waits for a first byte again. Only the parent calls it."""
        self._numbers[_BEGUN + slot] = 0

    def skipped_bytes(self, client: int) -> int:
        """Return for how many bytes an attach client had no room."""
        return min(self._numbers[_SKIPPED + client], MOST_BYTES)

    def add_skipped(self, client: int, skipped_bytes: int) -> None:
        """Count bytes. Only the living worker of the client's stream calls it."""
        self._numbers[_SKIPPED + client] += skipped_bytes

    def reset_skipped(self, client: int) -> None:
        """Set the count of a client's number to 0, for a new client."""
        self._numbers[_SKIPPED + client] = 0

    def close(self) -> None:
        """Close the memory."""
        self._memory.close()
