"""A line reader that never waits for room: it drops lines for which the buffer has no room.

It drops whole lines, and counts each byte: output plus dropped bytes is input, wherever a worker is
killed. `DROP_NEW` keeps the first lines, `DROP_OLD` the last, each as many as the line buffer
holds. Of a line that is longer than the buffer, a part and the newline stay.

Bytes after `taken` have no state until a commit takes or drops them. To take only the first part,
the reader writes the rest back into the staging pipe, which is empty then, and larger. A worker
that is killed in between has taken exactly the first part.
"""

from __future__ import annotations

import os
from enum import IntEnum

from workers.common.policy import DROP_OLD
from workers.lines.reader import LineReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.copy.route import Progress, Route
    from workers.lines.buffer import BufferState, LineBuffer
    from workers.lines.sink import RecordSink


class Skip(IntEnum):
    """`BufferState.skipping`: which part of the next bytes is dropped."""

    NOTHING = 0
    LINE = 1
    """The rest of the line with its newline."""
    BEGINNING = 2
    """The rest of the line; its newline stays."""


class DropReader(LineReader):
    """Fills one line buffer without waiting for room. Borrows everything."""

    def __init__(
        self, route: Route, buffer: LineBuffer, progress: Progress, sink: RecordSink
    ) -> None:
        """Continue as `LineReader`. `sink` knows what it has consumed."""
        self._sink = sink
        self._most_bytes = buffer.longest_line_bytes
        super().__init__(route, buffer, progress)

    def drop_all(self) -> None:
        """Drop the content of the buffer, and the bytes on the way to the sink."""
        state = self._buffer.read()
        self._drop_up_to(state, state.taken)
        self._drop(self._buffer.read(), self._sink.take_rest(), Skip.NOTHING)

    def _accept(self, arrived: int) -> None:
        """Take or drop the arrived bytes. The decision depends only on shared memory and pipes."""
        state = self._buffer.read()
        content = self._buffer.arrived(arrived)
        if state.skipping:
            self._skip(state, content)
        elif self._room(state) >= arrived or self._drop_old(state, arrived):
            super()._accept(arrived)
        else:
            self._accept_what_fits(self._buffer.read(), content)

    def _room(self, state: BufferState) -> int:
        return self._most_bytes - (state.taken - self._sink.consumed)

    def _drop_old(self, state: BufferState, arrived: int) -> bool:
        """Drop old lines to make room for the arrived bytes. Return False if that is not enough."""
        if self._buffer.policy != DROP_OLD or self._sink.is_unfinished:
            return False
        consumed = self._sink.consumed
        wanted = consumed + arrived - self._room(state)
        newline = self._buffer.first_newline(wanted - 1, state.taken)
        if newline < 0:
            newline = self._buffer.last_newline(consumed, state.taken)
        # If the sink has the beginning of a line, its newline stays: else the next line would be
        # appended to it.
        dropped_to = newline + int(self._buffer.begins_line(consumed))
        if newline >= 0 and dropped_to > consumed:
            self._drop_up_to(state, dropped_to)
        return dropped_to >= wanted

    def _drop_up_to(self, state: BufferState, dropped_to: int) -> None:
        passed = self._buffer.copy(self._sink.consumed, dropped_to)
        self._buffer.commit(
            state._replace(
                dropped_to=dropped_to,
                passed_bytes=state.passed_bytes + len(passed),
                dropped_bytes=state.dropped_bytes + len(passed),
                dropped_lines=state.dropped_lines + passed.count(b"\n"),
            )
        )
        self._sink.skip_to(dropped_to)

    def _accept_what_fits(self, state: BufferState, content: bytes) -> None:
        fitting = content.rfind(b"\n", 0, max(self._room(state), 0)) + 1
        if fitting:
            self._put_back(content[fitting:])
            super()._accept(fitting)
            return
        newline = content.find(b"\n")
        last = self._buffer.last_newline(self._sink.consumed, state.taken)
        if self._buffer.begins_line(state.taken):
            self._drop(state, content, Skip.LINE)
        elif last >= 0 and not self._sink.is_unfinished:
            # The line that does not fit is the last in the buffer.
            self._drop(
                state._replace(taken=last + 1),
                self._buffer.copy(last + 1, state.taken) + content,
                Skip.LINE,
            )
        elif newline < 0:
            self._drop(state, content, Skip.BEGINNING)
        elif newline == 0:
            self._put_back(content[1:])
            super()._accept(1)  # there is always room for a newline
        else:
            self._put_back(content[newline:])
            self._drop(state, content[:newline], Skip.NOTHING)

    def _skip(self, state: BufferState, content: bytes) -> None:
        skipping = Skip(state.skipping)
        newline = content.find(b"\n")
        if newline < 0:
            self._drop(state, content, skipping)
            return
        cut = newline + 1 if skipping is Skip.LINE else newline
        room = self._room(state)
        is_too_much = len(content) - cut > room and content.find(b"\n", cut, cut + max(room, 0)) < 0
        if skipping is Skip.LINE and is_too_much and self._buffer.policy != DROP_OLD:
            self._drop(state, content, Skip.LINE)  # there is no room for a single line
            return
        self._put_back(content[cut:])
        self._drop(state, content[:cut], Skip.NOTHING)

    def _put_back(self, content: bytes) -> None:
        if content:
            os.write(self._staging[1], content)

    def _drop(self, state: BufferState, content: bytes, skipping: Skip) -> None:
        """Drop the arrived bytes. `skipping` follows unless they end a line."""
        self._buffer.commit(
            state._replace(
                pending=0,
                skipping=Skip.NOTHING if content.endswith(b"\n") else skipping,
                dropped_bytes=state.dropped_bytes + len(content),
                dropped_lines=state.dropped_lines + content.count(b"\n"),
            )
        )
