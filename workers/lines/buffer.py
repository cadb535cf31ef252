"""Where the bytes of one stream wait until they are records: a line may take its time.

Positions count from the stream's first byte and never go back: bytes before `consumed` (which the
writer keeps, see `workers.sinks.log_file` and `workers.journal.native`) are in the sink, from there
to `taken` they are here. So a position means the same to a worker and to its successors.
"""

from __future__ import annotations

from typing import NamedTuple

from workers.common.shared_memory import PAGE_BYTES, Memory, Record

READ_BYTES = 256 << 10
"""What is taken at once. A quarter of the source pipe, so that reading, rewriting and writing stay
in the processor's cache: 1 MiB at once is slower."""


BLOCK, DROP_NEW, DROP_OLD = "block", "drop-new", "drop-old"
"""The container waits; or lines are dropped, see `workers.lines.drop`."""

_NEWLINE = ord("\n")


class BufferState(NamedTuple):
    """What is here.

    Attributes:
        base: The position of the first byte of the room. taken: The position after the last byte
        that is here. pending: While bytes are on their way here: what the staging pipe held before,
        else 0. is_cut: 1 if the byte before `base` is not the end of a line. front: The position
        before which nothing is wanted any more, see `workers.lines.drop`; so are
            all that follow.
        skipping: What is to be dropped of the bytes that come next.
        passed_bytes: Dropped although they have positions.
        dropped_bytes: All that were dropped, with and without positions.
        dropped_lines: The ends of lines among them.
    """

    base: int
    taken: int
    pending: int
    is_cut: int
    front: int
    skipping: int
    passed_bytes: int
    dropped_bytes: int
    dropped_lines: int


class LineBuffer:
    """The bytes and their record, in memory that the parent makes and owns.

    The room holds an intake and two of the longest lines, so that an unfinished line can always be
    moved to the front of the room without overlapping itself: it stays whole in its
    old place until the move is committed.
    """

    def __init__(
        self, name: str, longest_line_bytes: int, *, policy: str = BLOCK, fd: int = -1
    ) -> None:
        """Make it for lines of up to `longest_line_bytes` that have to be here in one piece.

        `policy`: what becomes of more than that when the sink takes nothing; `fd`: see `Memory`.
        """
        self.policy = policy
        self.longest_line_bytes = longest_line_bytes
        self.room_bytes = READ_BYTES + 2 * longest_line_bytes
        self.memory = Memory(name, self.room_bytes, fd=fd)
        # The rest of the page is for a writer that keeps its own record here.
        here = Record.words_needed(len(BufferState._fields))
        self._record = Record(self.memory.words[:here], len(BufferState._fields))
        self.more_words = self.memory.words[here:]

    @property
    def fds(self) -> tuple[int, ...]:
        """What a worker keeps."""
        return (self.memory.fd,)

    def read(self) -> BufferState:
        """Return what was committed last."""
        return BufferState._make(self._record.read())

    def commit(self, state: BufferState) -> None:
        """Make `state` the one that counts. Only the stream's one living worker calls it."""
        self._record.commit(state)

    def copy(self, start: int, end: int) -> bytes:
        """Return the bytes of two positions that are both here."""
        base, taken, *_rest = self.read()
        if not base <= start <= end <= taken:
            raise RuntimeError(f"bytes {start} to {end}, of {base} to {taken}")
        offset = PAGE_BYTES - base
        return self.memory.data[start + offset : end + offset]

    def last_newline(self, start: int, end: int) -> int:
        """Return the position of the last newline between two positions, or -1."""
        offset = PAGE_BYTES - self.read().base
        found = self.memory.data.rfind(b"\n", start + offset, end + offset)
        return -1 if found < 0 else found - offset

    def first_newline(self, start: int, end: int) -> int:
        """Return the position of the first newline between two positions, or -1."""
        offset = PAGE_BYTES - self.read().base
        found = self.memory.data.find(b"\n", start + offset, end + offset)
        return -1 if found < 0 else found - offset

    def begins_line(self, position: int) -> bool:
        """Say whether a line begins at a position that is here, or right behind."""
        state = self.read()
        if position == state.base:
            return not state.is_cut
        return self.memory.data[PAGE_BYTES + position - state.base - 1] == _NEWLINE

    def arrived(self, count: int) -> bytes:
        """Return `count` bytes from behind the last one, which nobody has taken yet."""
        base, taken, *_rest = self.read()
        start = PAGE_BYTES + taken - base
        return self.memory.data[start : start + count]

    def make_room(self, consumed: int) -> None:
        """See that an intake finds room behind the bytes from `consumed` on."""
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
        """Give the memory back."""
        self.more_words.release()
        self._record.release()
        self.memory.close()
