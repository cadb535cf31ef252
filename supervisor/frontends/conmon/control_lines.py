"""What engines write to the fifos `ctl` and `winsz` of a bundle. Pure.

    ctl     1 HEIGHT WIDTH    set the terminal's size
            2 ANY ANY         open the log file again
    winsz   HEIGHT WIDTH      set the terminal's size

Numbers are read as sscanf(3) reads `%d`: `0010` is 10, more words are ignored, `0x10 20` is
refused. A size is 0 to 1000. A line has at most 199 bytes; a longer one is dropped as a whole.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

_LONGEST_LINE = 199
_LARGEST_SIZE = 1000
_NUMBER = r"\s*([+-]?[0-9]++)"
_RESIZE, _REOPEN = 1, 2


class Fifo(Enum):
    """Which of the two fifos, and how many numbers its lines have."""

    CTL = 3
    WINSZ = 2


class Resize(NamedTuple):
    """The new size of the terminal."""

    rows: int
    columns: int


class Reopen(NamedTuple):
    """The log file has another name now, or is full enough."""


class Refused(NamedTuple):
    """A line that means nothing; `why` is for the log."""

    why: str


class ControlLines:
    """Cuts what is read from one fifo into lines, and reads them."""

    def __init__(self, fifo: Fifo) -> None:
        """Nothing was read so far."""
        self._fifo = fifo
        self._line = re.compile(_NUMBER * fifo.value)
        self._rest = b""
        self._is_dropping = False

    def snapshot(self) -> dict[str, Any]:
        """Return what `restore` needs."""
        return {"rest": self._rest.hex(), "is_dropping": self._is_dropping}

    @classmethod
    def restore(cls, fifo: Fifo, packed: Mapping[str, Any]) -> ControlLines:
        """Go on in the middle of a line."""
        made = cls(fifo)
        made._rest, made._is_dropping = bytes.fromhex(packed["rest"]), packed["is_dropping"]
        return made

    def feed(self, data: bytes) -> Iterator[Resize | Reopen | Refused]:
        """Give what each line means whose end has come."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            was_dropping, self._is_dropping = self._is_dropping, False
            if was_dropping:
                continue
            if len(line) > _LONGEST_LINE:
                yield _TOO_LONG
            else:
                yield self._meaning(line.decode("ascii", "replace"))
        if len(self._rest) > _LONGEST_LINE:
            if not self._is_dropping:
                yield _TOO_LONG
            self._is_dropping, self._rest = True, b""

    def _meaning(self, line: str) -> Resize | Reopen | Refused:
        match = self._line.match(line)
        if match is None:
            return Refused(f"Invalid control message format: {line!r}")
        *kind, rows, columns = (int(number) for number in match.groups())
        if kind and kind[0] not in (_RESIZE, _REOPEN):
            return Refused(f"Invalid control message type: {kind[0]}")
        if not (0 <= rows <= _LARGEST_SIZE and 0 <= columns <= _LARGEST_SIZE):
            return Refused(f"Invalid window size: {rows}x{columns} (must be between 0 and 1000)")
        return Reopen() if kind and kind[0] == _REOPEN else Resize(rows, columns)


_TOO_LONG = Refused("Could not find newline in entire buffer: the line is dropped")
