"""Parses the messages of the `control` fifo. Pure.

A message is a line of three decimal numbers, `type width height`. Type 0 closes stdin, type 1
resizes the console. Two more messages are forkshim's own: `reopen` and `attach STREAM FIFO`. The
parser skips every other line.
"""

from __future__ import annotations

from workers.common.records import dataclass

_LONGEST_LINE = 256


@dataclass(frozen=True, slots=True)
class CloseStdin:
    """Close the supervisor's write end of the client's stdin fifo."""


@dataclass(frozen=True, slots=True)
class Resize:
    """Set the console's size, ioctl_tty(2) TIOCSWINSZ. Each value is from 0 to 65535."""

    columns: int
    rows: int


@dataclass(frozen=True, slots=True)
class Reopen:
    """Reopen every log file by its name: the old file was renamed."""


@dataclass(frozen=True, slots=True)
class Attach:
    """Copy a stream, "stdout" or "stderr", to a client's fifo in the state directory."""

    stream: str
    fifo: str


Message = CloseStdin | Resize | Reopen | Attach

_IN_A_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_LONGEST_NAME = 80


class ControlParser:
    """Buffers the beginning of a line until its end arrives, at most 256 bytes."""

    def __init__(self) -> None:
        """Start at the beginning of a line."""
        self._begun = b""
        self._is_too_long = False

    @property
    def rest(self) -> str:
        """The unfinished line, for `feed` of the next supervisor."""
        return "x" * (_LONGEST_LINE + 1) if self._is_too_long else self._begun.decode("latin-1")

    def feed(self, data: bytes) -> list[Message]:
        """Add the bytes of a read(2), and return the messages that are now complete."""
        *lines, begun = (self._begun + data).split(b"\n")
        messages = []
        for line in lines:
            message = None if self._is_too_long else _parse(line)
            self._is_too_long = False
            if message is not None:
                messages.append(message)
        if len(begun) > _LONGEST_LINE:
            self._is_too_long, begun = True, b""
        self._begun = begun
        return messages


def _parse(line: bytes) -> Message | None:
    if len(line) > _LONGEST_LINE:
        return None
    words = line.split()
    if words == [b"reopen"]:
        return Reopen()
    if len(words) == 3 and words[0] == b"attach":
        stream, fifo = words[1].decode("latin-1"), words[2].decode("latin-1")
        is_good = stream in ("stdout", "stderr") and _is_client_fifo(fifo)
        return Attach(stream, fifo) if is_good else None
    if len(words) != 3:
        return None
    if not all(word.removeprefix(b"-").isdigit() for word in words):
        return None
    kind, columns, rows = (int(word) for word in words)
    if kind == 0:
        return CloseStdin()
    if kind == 1:
        return Resize(columns & 0xFFFF, rows & 0xFFFF)  # the 2016 shim truncates to uint16, too
    return None


def _is_client_fifo(fifo: str) -> bool:
    """Return whether the name is `attach.NAME`. No fifo of the supervisor has such a name."""
    name = fifo.removeprefix("attach.")
    return name != fifo and 0 < len(name) <= _LONGEST_NAME and _IN_A_NAME.issuperset(name)
