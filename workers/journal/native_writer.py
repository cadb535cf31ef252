"""One worker's access to the journal: it sends lines as records, each with a number.

The writer sends a record, then commits it as sent. So a kill loses no record and repeats at most
one. The repeated record has the same content and CONTAINER_LOG_ORDINAL, so a reader can recognize
it. A line longer than the limit becomes several records with CONTAINER_PARTIAL_MESSAGE=true. A last
line without a newline has this field, too.
"""

from __future__ import annotations

from workers.common.policy import BLOCK
from workers.journal import json_fields
from workers.journal.fields import split_priority
from workers.journal.native import Sent
from workers.journal.socket import Sender
from workers.lines import framing, multiline
from workers.lines.sink import RecordSink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.journal.native import Journal

_BATCH_BYTES = 32 << 10
"""The most bytes between two updates of the counters: journald may be slow."""

_IS_PARTIAL = b"CONTAINER_PARTIAL_MESSAGE=true\n"


class JournalWriter(RecordSink):
    """Sends the records of one stream."""

    def __init__(self, journal: Journal, supervisor_pid: int) -> None:
        """Continue after the last committed record."""
        self._journal = journal
        self._sender = Sender(
            journal.socket, supervisor_pid, is_blocking=journal.buffer.policy == BLOCK
        )
        self.consumed = max(journal.read().consumed, journal.buffer.read().dropped_to)
        self._scanned = 0
        self._parse_json = json_fields.parse if journal.is_json else None

    def settled_end(self, end: int) -> int:
        """Return where the last record before `end` begins, if lines are joined; else `end`."""
        if not self._journal.is_joined or end == self.consumed:
            return end
        first = max(self.consumed, self._scanned)
        lines = self._journal.buffer.copy(first, end)
        start = first + multiline.start_of_last(lines)
        if start == first > self.consumed and lines[:1] in (b"", b" ", b"\t"):
            start = self.consumed  # all new lines continue the unsettled record
        self._scanned = end
        return start if end - start <= self.limit_bytes else end

    @property
    def limit_bytes(self) -> int:
        """The longest line that is one record."""
        return self._journal.limit_bytes

    @property
    def stall_fd(self) -> int:
        """The socket."""
        return self._journal.socket.fileno()

    def write(self, end: int) -> None:
        """Send at least one of the records between `consumed` and `end`.

        Raises:
            BlockingIOError: journald's queue is full, and the policy is to drop.
            OSError: journald does not run. The line buffer still has the rest.
        """
        self._sender.check_parent()
        content = self._batch(end)
        for start, stop, is_piece in framing.runs(content, self.limit_bytes):
            if is_piece:
                self._send_piece(content[start:stop])
            else:
                self._send_lines(self._split(content[start : stop - 1]))

    def close(self) -> None:
        """Wait until journald has read everything, for a limited time."""
        self._sender.wait_until_read()

    def _read_sent(self) -> Sent:
        """Return the state of the last commit, without the priority of a line that was dropped."""
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
        return content[: framing.end_of_first(content, self.limit_bytes)]

    def _send_lines(self, lines: list[bytes]) -> None:
        """Send whole lines. The first may be the rest of a long line."""
        make, send, commit = self._journal.maker.make, self._sender.send, self._journal.commit
        default, parse_json = self._journal.maker.priority, self._parse_json
        is_console, reads_priority = self._journal.is_console, self._journal.reads_priority
        consumed, ordinal, line_priority = self._read_sent()
        for line in lines:
            consumed += len(line) + 1
            ordinal += 1
            text, priority, fields, named = line, default, b"", None
            if line_priority:
                priority = line_priority - 1
                line_priority = 0
            elif reads_priority and line.startswith(b"<") and (named := split_priority(line)):
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
            named = split_priority(piece) if self._journal.reads_priority else None
            priority, text = named or (self._journal.maker.priority, piece)
        mark = _IS_PARTIAL if self._journal.marks_partial else b""
        self._sender.send(self._journal.maker.make(text, priority, sent + 1, mark))
        self._journal.commit(consumed + len(piece), sent + 1, priority + 1)
        self.consumed = consumed + len(piece)
