"""One stream's records on their way to journald, each with its number.

A record is sent, then committed as sent. So a kill repeats at most one record, the very same one
with the same CONTAINER_LOG_ORDINAL, by which a reader can tell; none is left out. A line longer
than the limit becomes several records, which say so by CONTAINER_PARTIAL_MESSAGE=true; so
does a last line that has no newline.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

from workers.common.shared_memory import Record
from workers.journal import json_fields
from workers.journal.fields import RecordMaker, split_priority
from workers.journal.socket import JOURNAL_SOCKET, Sender, connect
from workers.lines import framing as records
from workers.lines import multiline
from workers.lines.buffer import BLOCK, LineBuffer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.journal.fields import Origin

LIMIT_BYTES = 1 << 20
_BATCH_BYTES = 32 << 10
"""Between two looks at the counters: journald may take its time over each record."""

_IS_PARTIAL = b"CONTAINER_PARTIAL_MESSAGE=true\n"


class Sent(NamedTuple):
    """What has been sent.

    Attributes:
        consumed: The position up to which the stream is in the journal.
        records: How many; the next one has this number, plus 1.
        line_priority: Within a line that is longer than a record, 1 + its priority; else 0.
    """

    consumed: int
    records: int
    line_priority: int


class Journal:
    """The parent's side of one stream: made before the fork, owned until `close`."""

    def __init__(
        self,
        origin: Origin,
        stream: str,
        priority: int,
        *,
        is_console: bool = False,
        is_json: bool = False,
        is_joined: bool = False,
        limit_bytes: int = LIMIT_BYTES,
        policy: str = BLOCK,
        buffer_bytes: int = 0,
        path: str = JOURNAL_SOCKET,
        inherited: Sequence[int] = (),
    ) -> None:
        """Make the memory and connect.

        Args:
            origin: Whose records they are.
            stream: "stdout" or "stderr", for CONTAINER_STREAM.
            priority: 0 to 7, of lines that do not begin with one.
            is_console: The carriage return that a terminal puts before a newline is left out.
            is_json: A line that is a JSON object becomes fields, see `workers.journal.json_fields`.
            is_joined: Lines are joined, see `workers.lines.multiline`.
            limit_bytes: The longest line that is one record.
            policy: For when journald does not read, see `LineBuffer`.
            buffer_bytes: What then waits, at least two lines.
            path: journald's native socket.
            inherited: The `fds` of an earlier one for the same stream, which are taken over.

        Raises:
            OSError: There is no journald now; as `reconnect`.
            ValueError: A field that the journal would not take.
        """
        self.is_console = is_console
        self.is_json = is_json
        self.is_joined = is_joined
        self.limit_bytes = limit_bytes
        self.maker = RecordMaker(origin, stream, priority)
        self._path = path
        socket_fd, buffer_fd = inherited or (-1, -1)
        self.socket = socket.socket(fileno=socket_fd) if inherited else connect(path)
        # What waits to be joined, and an unfinished line.
        longest = 2 * limit_bytes if is_joined or policy != BLOCK else limit_bytes
        self.buffer = LineBuffer(
            f"forkshim:{stream}", max(longest, buffer_bytes), policy=policy, fd=buffer_fd
        )
        words = Record.words_needed(len(Sent._fields))
        self._record = Record(self.buffer.more_words[:words], len(Sent._fields))

    @property
    def fds(self) -> tuple[int, ...]:
        """What a worker keeps."""
        return (self.socket.fileno(), *self.buffer.fds)

    def read(self) -> Sent:
        """Return what was committed last."""
        return Sent._make(self._record.read())

    def commit(self, consumed: int, sent: int, line_priority: int) -> None:
        """Make this what has been sent, see `Sent`."""
        self._record.commit((consumed, sent, line_priority))

    def reconnect(self) -> None:
        """Take another socket, after a worker has reported an error of the sink.

        Raises:
            OSError: ENOENT, ECONNREFUSED: there is no journald now; the old socket is kept.
        """
        fresh = connect(self._path)
        self.socket.close()
        self.socket = fresh

    def close(self) -> None:
        """Close the socket and give the memory back."""
        self.socket.close()
        self._record.release()
        self.buffer.close()


class JournalWriter:
    """One worker's hand on the journal."""

    is_unfinished = False
    rest_bytes = 0

    def __init__(self, journal: Journal, supervisor_pid: int) -> None:
        """Go on after the last record that was committed."""
        self._journal = journal
        self._sender = Sender(
            journal.socket, supervisor_pid, is_blocking=journal.buffer.policy == BLOCK
        )
        self.consumed = max(journal.read().consumed, journal.buffer.read().front)
        self._looked_at = 0
        self._parse_json = json_fields.parse if journal.is_json else None

    def hold(self, end: int) -> int:
        """Return where the last record before `end` begins, if lines may be joined to it."""
        if not self._journal.is_joined or end == self.consumed:
            return end
        first = max(self.consumed, self._looked_at)
        lines = self._journal.buffer.copy(first, end)
        start = first + multiline.start_of_last(lines)
        if start == first > self.consumed and lines[:1] in (b"", b" ", b"\t"):
            start = self.consumed  # all of it belongs to what was held before
        self._looked_at = end
        return start if end - start <= self.limit_bytes else end

    @property
    def limit_bytes(self) -> int:
        """The longest line that is one record."""
        return self._journal.limit_bytes

    def write(self, end: int) -> None:
        """Send some records, at least one, of what is between `consumed` and `end`.

        Raises:
            OSError: journald is gone. What has not been sent is in the buffer.
        """
        self._sender.check_parent()
        content = self._batch(end)
        for start, stop, is_piece in records.runs(content, self.limit_bytes):
            if is_piece:
                self._send_piece(content[start:stop])
            else:
                self._send_lines(self._split(content[start : stop - 1]))

    @property
    def stall_fd(self) -> int:
        """The socket."""
        return self._journal.socket.fileno()

    def open(self) -> None:
        """Do nothing: the socket is connected."""

    def flush(self) -> None:
        """Do nothing: what is sent is with journald."""

    def take_back(self) -> bytes:
        """Return nothing, as `flush`."""
        return b""

    def pass_over(self, position: int) -> None:
        """Go on from `position`."""
        self.consumed = position

    def close(self) -> None:
        """Stay until journald has read everything, for a while."""
        self._sender.wait_until_read()

    def _read_sent(self) -> Sent:
        """Return what was sent last; a line's priority is not that of one after it."""
        sent = self._journal.read()
        if sent.consumed == self.consumed:
            return sent
        return Sent(self.consumed, sent.records, 0)

    def _split(self, lines: bytes) -> list[bytes]:
        if self._journal.is_joined:
            return multiline.join(lines, self.limit_bytes)
        return lines.split(b"\n")

    def _batch(self, end: int) -> bytes:
        """Return whole records, from `consumed` on."""
        buffer = self._journal.buffer
        if end - self.consumed <= _BATCH_BYTES or self._journal.is_joined:
            return buffer.copy(self.consumed, end)
        newline = buffer.last_newline(self.consumed, self.consumed + _BATCH_BYTES)
        if newline >= 0:
            return buffer.copy(self.consumed, newline + 1)
        content = buffer.copy(self.consumed, min(end, self.consumed + self.limit_bytes + 1))
        return content[: records.end_of_first(content, self.limit_bytes)]

    def _send_lines(self, lines: list[bytes]) -> None:
        """Send whole lines; the first may be the rest of one."""
        make, send, commit = self._journal.maker.make, self._sender.send, self._journal.commit
        default, parse_json = self._journal.maker.priority, self._parse_json
        is_console = self._journal.is_console
        consumed, ordinal, line_priority = self._read_sent()
        for line in lines:
            consumed += len(line) + 1
            ordinal += 1
            text, priority, fields, named = line, default, b"", None
            if line_priority:
                priority = line_priority - 1
                line_priority = 0
            elif line.startswith(b"<") and (named := split_priority(line)):
                priority, text = named
            if is_console:
                text = text.replace(b"\r\n", b"\n").removesuffix(b"\r")
            if parse_json is not None and (parsed := parse_json(text)) is not None:
                if not named and parsed.priority is not None:
                    priority = parsed.priority
                text, fields = parsed.text, parsed.fields
            send(make(text, priority, ordinal, fields))
            commit(consumed, ordinal, 0)
            self.consumed = consumed

    def _send_piece(self, piece: bytes) -> None:
        consumed, sent, line_priority = self._read_sent()
        priority, text = line_priority - 1, piece
        if not line_priority:
            priority, text = split_priority(piece) or (self._journal.maker.priority, piece)
        self._sender.send(self._journal.maker.make(text, priority, sent + 1, _IS_PARTIAL))
        self._journal.commit(consumed + len(piece), sent + 1, priority + 1)
        self.consumed = consumed + len(piece)
