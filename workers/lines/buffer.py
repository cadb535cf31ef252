"""The line buffer of one stream: it holds bytes until a line is complete.

Positions count from the first byte of the stream and never go back. The sink has every byte before
`consumed`, which the sink commits (`workers.sinks.log_file`, `workers.journal.native`). The line
buffer has the bytes from there to `taken`. So a position has the same meaning for a worker and for
its successors.
"""

from __future__ import annotations

from typing import NamedTuple

from workers.common.policy import BLOCK
from workers.common.shared_memory import PAGE_BYTES, Memory, Record

READ_BYTES = 256 << 10
"""The most bytes of one read. A quarter of the source pipe, so that reading, formatting and writing
stay in the processor's cache: 1 MiB at once is slower."""

_NEWLINE = ord("\n")


class BufferState(NamedTuple):
    """The state of the line buffer.

    Attributes:
        base: Position of the first byte of the room.
        taken: Position after the last byte in the room.
        pending: During a read from the staging pipe, its content before; else 0.
        is_cut: 1 if the byte before `base` does not end a line.
        dropped_to: Position before which every byte is dropped or in the sink. This field and the
            next fields belong to `workers.lines.drop_reader`.
        skipping: Which part of the next bytes is dropped, a `Skip`.
        passed_bytes: Dropped bytes that have positions.
        dropped_bytes: All dropped bytes, with and without positions.
        dropped_lines: Line ends among them.
    """

    base: int
    taken: int
    pending: int
    is_cut: int
    dropped_to: int
    skipping: int
    passed_bytes: int
    dropped_bytes: int
    dropped_lines: int


class LineBuffer:
    """The bytes and their state, in memory that the supervisor makes and owns.

    The room holds READ_BYTES and two of the longest lines. So an unfinished line can move to the
    start of the room without overlapping itself. It stays in its old place until the move is
    committed.
    """

    def __init__(
        self, name: str, longest_line_bytes: int, *, policy: str = BLOCK, fd: int = -1
    ) -> None:
        """Make the buffer.

        Args:
            name: See `Memory`.
            longest_line_bytes: The longest line that the buffer must hold in one piece.
            policy: What happens when the buffer is full, see `workers.common.policy`.
            fd: See `Memory`.
        """
        self.policy = policy
        self.longest_line_bytes = longest_line_bytes
        self.room_bytes = READ_BYTES + 2 * longest_line_bytes
        self.memory = Memory(name, self.room_bytes, fd=fd)
        # The rest of the page is for the record of a sink.
        here = Record.words_needed(len(BufferState._fields))
        self._record = Record(self.memory.words[:here], len(BufferState._fields))
        self.more_words = self.memory.words[here:]

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors that a worker keeps open."""
        return (self.memory.fd,)

    def read(self) -> BufferState:
        """Return the state of the last commit."""
        return BufferState._make(self._record.read())

    def commit(self, state: BufferState) -> None:
        """Make `state` the current state. Only the living worker of the stream calls it."""
        self._record.commit(state)

    def copy(self, start: int, end: int) -> bytes:
        """Return the bytes between two positions in the room.

        Raises:
            RuntimeError: A position is outside the room.
        """
        base, taken, *_rest = self.read()
        if not base <= start <= end <= taken:
            raise RuntimeError(f"bytes {start} to {end}, of {base} to {taken}")
        offset = PAGE_BYTES - base
        return self.memory.data[start + offset : end + offset]

    def last_newline(self, start: int, end: int) -> int:
        """Return the position of the last newline between two positions; -1 without one."""
        offset = PAGE_BYTES - self.read().base
        found = self.memory.data.rfind(b"\n", start + offset, end + offset)
        return -1 if found < 0 else found - offset

    def first_newline(self, start: int, end: int) -> int:
        """Return the position of the first newline between two positions; -1 without one."""
        offset = PAGE_BYTES - self.read().base
        found = self.memory.data.find(b"\n", start + offset, end + offset)
        return -1 if found < 0 else found - offset

    def begins_line(self, position: int) -> bool:
        """Return whether a line begins at a position in the room or right after its last byte."""
        state = self.read()
        if position == state.base:
            return not state.is_cut
        return self.memory.data[PAGE_BYTES + position - state.base - 1] == _NEWLINE

    def arrived(self, count: int) -> bytes:
        """Return the `count` bytes after `taken`."""
        base, taken, *_rest = self.read()
        start = PAGE_BYTES + taken - base
        return self.memory.data[start : start + count]

    def make_room(self, consumed: int) -> None:
        """Make room for READ_BYTES more bytes. Keeps the bytes from `consumed` on."""
        state = self.read()
        base, taken = state.base, state.taken
        if taken == consumed:
            if base != taken:
                self.commit(self._moved(state, taken))
        elif taken - base + READ_BYTES > self.room_bytes:
            rest = taken - consumed
            if rest > min(self.longest_line_bytes, consumed - base):
                raise RuntimeError(f"an unfinished line of {rest} bytes")
            self.memory.room(0, rest)[:] = self.memory.room(consumed - base, taken - base)
            self.commit(self._moved(state, consumed))

    def _moved(self, state: BufferState, base: int) -> BufferState:
        return state._replace(base=base, is_cut=int(not self.begins_line(base)))

    def close(self) -> None:
        """Close the memory."""
        self.more_words.release()
        self._record.release()
        self.memory.close()
