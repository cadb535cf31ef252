"""One stream of native journal records: the supervisor's side.

`workers.journal.native_writer` sends the records, each with its number.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

from workers.common.policy import BLOCK
from workers.common.shared_memory import Record
from workers.journal.fields import RecordMaker
from workers.journal.socket import JOURNAL_SOCKET, connect
from workers.lines.buffer import LineBuffer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.journal.fields import Origin

LIMIT_BYTES = 1 << 20


class Sent(NamedTuple):
    """The state of the last commit.

    Attributes:
        consumed: Position up to which the journal has the stream.
        records: Number of records; the next record has this number plus 1.
        line_priority: Within a line that is longer than a record, 1 + its priority; else 0.
    """

    consumed: int
    records: int
    line_priority: int


class Journal:
    """The supervisor's side of one stream. Made before fork(2); the owner calls `close`."""

    def __init__(
        self,
        origin: Origin,
        stream: str,
        priority: int,
        *,
        is_console: bool = False,
        is_json: bool = False,
        is_joined: bool = False,
        marks_partial: bool = True,
        reads_priority: bool = True,
        limit_bytes: int = LIMIT_BYTES,
        policy: str = BLOCK,
        buffer_bytes: int = 0,
        path: str = JOURNAL_SOCKET,
        inherited: Sequence[int] = (),
    ) -> None:
        """Make the memory and connect.

        Args:
            origin: The container.
            stream: "stdout" or "stderr", for CONTAINER_STREAM.
            priority: 0 to 7, for lines that do not begin with a priority.
            is_console: Remove the carriage return that a terminal puts before a newline.
            is_json: Convert a line that is a JSON object to fields, see
                `workers.journal.json_fields`.
            is_joined: Join lines, see `workers.lines.multiline`.
            marks_partial: A record that ends within a line has CONTAINER_PARTIAL_MESSAGE=true.
            reads_priority: Take a priority from the prefix of a line, `<0>` to `<7>`.
            limit_bytes: The longest line that is one record.
            policy: What happens while journald does not read, see `LineBuffer`.
            buffer_bytes: Size of the line buffer with a drop policy; at least two lines fit.
            path: journald's native socket.
            inherited: The `fds` of an earlier object for the same stream, taken over.

        Raises:
            OSError: As `reconnect`; EMFILE, ENOMEM.
            ValueError: The journal would drop a field.
        """
        self.is_console = is_console
        self.is_json = is_json
        self.is_joined = is_joined
        self.marks_partial = marks_partial
        self.reads_priority = reads_priority
        self.limit_bytes = limit_bytes
        self.maker = RecordMaker(origin, stream, priority)
        self._path = path
        socket_fd, buffer_fd = inherited or (-1, -1)
        self.socket = socket.socket(fileno=socket_fd) if inherited else connect(path)
        # Room for an unsettled record, and an unfinished line.
        longest = 2 * limit_bytes if is_joined or policy != BLOCK else limit_bytes
        self.buffer = LineBuffer(
            f"forkshim:{stream}", max(longest, buffer_bytes), policy=policy, fd=buffer_fd
        )
        words = Record.words_needed(len(Sent._fields))
        self._record = Record(self.buffer.more_words[:words], len(Sent._fields))

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors that a worker keeps open."""
        return (self.socket.fileno(), *self.buffer.fds)

    def read(self) -> Sent:
        """Return the state of the last commit."""
        return Sent._make(self._record.read())

    def commit(self, consumed: int, sent: int, line_priority: int) -> None:
        """Make this the current state, see `Sent`."""
        self._record.commit((consumed, sent, line_priority))

    def reconnect(self) -> None:
        """Replace the socket, after a worker has reported an error of the sink.

        Raises:
            OSError: ENOENT, ECONNREFUSED: journald does not run. The old socket is kept.
        """
        fresh = connect(self._path)
        self.socket.close()
        self.socket = fresh

    def close(self) -> None:
        """Close the socket and the memory."""
        self.socket.close()
        self._record.release()
        self.buffer.close()
