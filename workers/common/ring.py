"""The ring of packets between an output and its attach clients, in memory that outlives a worker.

A packet is `[length: 2 bytes][kind: 1 byte][1 to 8192 bytes]`. The part after the length is a
packet of conmon's attach protocol, for one send(2). Positions count from the first byte and never
go back. A packet never wraps: where less than the largest packet is left, the next packet begins at
the start of the memory.

The worker commits a client's cursor after each send(2). So a killed worker loses no packet, and its
successor repeats at most one packet to one client: the kernel does not tell whether it was sent.

Rejected: a pipe with one packet before each client's socket, which splice(2) empties. It would
repeat nothing, but splice(2) before Linux 6.5 sends one packet per page, without the kind.
"""

from __future__ import annotations

from typing import NamedTuple

from workers.common.shared_memory import PAGE_BYTES, Memory, Record

RING_BYTES = 1 << 20
DATA_BYTES = 8192
"""Podman reads packets into 8193 bytes, and the kernel cuts a longer packet."""

_HEAD_BYTES = 3
PACKET_BYTES = _HEAD_BYTES + DATA_BYTES
MAX_CLIENTS = 32
MEMORY_NAME = "forkshim:attach"


class RingState(NamedTuple):
    """The content of the ring.

    Attributes:
        head: Position after the last packet.
        total_bytes: Data bytes of all packets.
        pending: During a read from the staging pipe, its content before; else 0.
    """

    head: int
    total_bytes: int
    pending: int


class Cursor(NamedTuple):
    """How far one client is.

    Attributes:
        serial: Identifies the client: numbers are used again.
        position: Position of the next packet.
        seen_bytes: Data bytes before that position.
        skipped_bytes: Data bytes that were dropped because the client was too slow.
        is_behind: 1 from a drop until the client has everything; else 0.
        took_at_ns: When it last took a packet, monotonic.
    """

    serial: int
    position: int
    seen_bytes: int
    skipped_bytes: int
    is_behind: int
    took_at_ns: int


class Ring:
    """The supervisor makes and owns it before fork(2). One worker at a time writes."""

    def __init__(self, kind: int, *, fd: int = -1, ring_bytes: int = RING_BYTES) -> None:
        """Make an empty ring, or take over `fd` with its content.

        Args:
            kind: First byte of each packet: 2 for stdout and a console, 3 for stderr.
            fd: See `Memory`.
            ring_bytes: At least two of the largest packets.
        """
        self._kind = kind
        self._ring_bytes = ring_bytes
        self._memory = Memory(MEMORY_NAME, ring_bytes, fd=fd)
        words, here = self._memory.words, Record.words_needed(len(RingState._fields))
        self._record = Record(words[:here], len(RingState._fields))
        each = Record.words_needed(len(Cursor._fields))
        self._cursors = [
            Record(words[here + each * number : here + each * (number + 1)], len(Cursor._fields))
            for number in range(MAX_CLIENTS)
        ]
        here += each * MAX_CLIENTS
        self._sending = words[here : here + MAX_CLIENTS]
        self._repeats = words[here + MAX_CLIENTS : here + 2 * MAX_CLIENTS]

    @property
    def fd(self) -> int:
        """Descriptor that a worker keeps open."""
        return self._memory.fd

    def read(self) -> RingState:
        """Return the state of the last commit."""
        return RingState._make(self._record.read())

    def cursor(self, number: int) -> Cursor:
        """Return the cursor of a client."""
        return Cursor._make(self._cursors[number].read())

    def commit_cursor(self, number: int, cursor: Cursor) -> None:
        """Make `cursor` the current one of a client."""
        self._cursors[number].commit(cursor)

    def set_sending(self, number: int, position: int) -> None:
        """Note before a send(2) which packet the client gets; -1 for none."""
        self._sending[number] = position + 1

    def join(self, number: int, serial: int) -> Cursor | None:
        """Return the cursor of a client; None if a client with another serial had the number.

        The caller sends a packet again that a killed worker was sending. It counts as repeated.
        """
        cursor = self.cursor(number)
        if cursor.serial != serial:
            self._sending[number] = self._repeats[number] = 0
            return None
        if self._sending[number] == cursor.position + 1:
            self._sending[number] = 0
            self._repeats[number] += 1
        return cursor

    def repeats(self, number: int) -> int:
        """Return how many packets the client may have received twice."""
        return self._repeats[number]

    def oldest_kept(self, head: int) -> int:
        """Return the position of the oldest packet that survives one more packet after `head`."""
        return self._start(head) + PACKET_BYTES - self._ring_bytes

    def begin(self, pending: int) -> memoryview:
        """Commit that `pending` bytes are staged. Lend the room for the next packet's bytes.

        `workers.lines.reader` explains the protocol.
        """
        state = self.read()
        self._record.commit(state._replace(pending=pending))
        start = self._start(state.head) % self._ring_bytes + _HEAD_BYTES
        return self._memory.room(start, start + min(pending, DATA_BYTES))

    def accept(self, staged_bytes: int) -> None:
        """Make a packet of the bytes that have arrived since `begin`. Without any do nothing.

        Args:
            staged_bytes: How many bytes the staging pipe holds now.
        """
        state = self.read()
        arrived = min(max(state.pending - staged_bytes, 0), DATA_BYTES) if state.pending else 0
        if not arrived:
            if state.pending:
                self._record.commit(state._replace(pending=0))
            return
        start = self._start(state.head)
        offset = start % self._ring_bytes
        head = arrived.to_bytes(2, "little") + bytes((self._kind,))
        self._memory.room(offset, offset + _HEAD_BYTES)[:] = head
        self._record.commit(
            (start + _HEAD_BYTES + arrived, state.total_bytes + arrived, 0),
        )

    def packet(self, position: int) -> tuple[memoryview, int]:
        """Return the packet at `position`, which is before the head, and the position after it."""
        start = self._start(position)
        offset = PAGE_BYTES + start % self._ring_bytes
        length = int.from_bytes(self._memory.data[offset : offset + 2], "little")
        end = start + _HEAD_BYTES + length
        first = start % self._ring_bytes + 2
        return self._memory.room(first, first + 1 + length), end

    def _start(self, position: int) -> int:
        """Return where the packet at or after `position` begins."""
        left = self._ring_bytes - position % self._ring_bytes
        return position + left if left < PACKET_BYTES else position

    def close(self) -> None:
        """Close the memory. A second call does nothing."""
        if self._memory.fd >= 0:
            for record in (self._record, *self._cursors):
                record.release()
            self._sending.release()
            self._repeats.release()
            self._memory.close()
