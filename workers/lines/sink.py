"""The interface between the line loops and a sink that takes records."""

from __future__ import annotations


class RecordSink:
    """One worker's access to a sink. The defaults are for a sink whose writes never wait.

    A sink commits to shared memory what it has written. So a successor continues at `consumed`.
    """

    consumed: int
    """Position in the stream up to which the sink has every byte."""

    @property
    def limit_bytes(self) -> int:
        """The longest line that is one record; 0 if any byte may end a record."""
        raise NotImplementedError

    @property
    def stall_fd(self) -> int:
        """Descriptor that becomes writable when the sink has room; -1 if a write never waits."""
        return -1

    @property
    def is_unfinished(self) -> bool:
        """Whether some bytes after `consumed` may be in the sink."""
        return False

    @property
    def rest_bytes(self) -> int:
        """How many bytes before `consumed` are not in the sink yet."""
        return 0

    def open(self) -> None:
        """Prepare to write. Finish the write of a killed worker.

        Raises:
            OSError: The sink failed.
        """

    def settled_end(self, end: int) -> int:
        """Return the end of the last record before `end` that later lines cannot extend."""
        return end

    def write(self, end: int) -> None:
        """Write at least one of the records between `consumed` and `end`.

        Raises:
            BlockingIOError: The sink has no room, and does not wait.
            OSError: The sink failed. The line buffer still has the rest.
        """
        raise NotImplementedError

    def flush(self) -> None:
        """Write the bytes of `rest_bytes`. Raises as `write`."""

    def skip_to(self, position: int) -> None:
        """Continue at `position`: the bytes before it were dropped."""
        self.consumed = position

    def take_rest(self) -> bytes:
        """Remove the bytes of `rest_bytes`, and return them."""
        return b""

    def close(self) -> None:
        """Finish after the last record."""
