"""The completion record: a worker's last and only message, one JSON line over its own pipe.

Codec only; who reads and writes the pipe is elsewhere. End of file without a record is the
message "this worker died".
"""

from __future__ import annotations

import errno as errno_names
import select

import orjson

from workers.common.records import asdict, dataclass

_MOST_COUNT = 1 << 62
_MOST_ERRNO = 4095
"""Source: MAX_ERRNO of linux/err.h. No other number comes from a system call."""

MOST_BYTES = select.PIPE_BUF
"""Up to here a write(2) to a pipe is not torn, pipe(7)."""


class ReportError(ValueError):
    """The bytes are no completion record."""


@dataclass(frozen=True, slots=True)
class Report:
    """How a stream ended.

    `errno` is 0 at end of file, else what stopped the copy; `side` then says whether it was the
    "source" or the "sink", or "" where the system call did not tell. `left_bytes` and `left_lines`
    are what was there when the stream was given up, if this worker has counted that.
    """

    stream: str
    copied_bytes: int
    errno: int = 0
    side: str = ""
    left_bytes: int = 0
    left_lines: int = 0

    @property
    def errno_name(self) -> str:
        """EPIPE for 32; empty at end of file."""
        return errno_names.errorcode.get(self.errno, str(self.errno)) if self.errno else ""


def encode(report: Report) -> bytes:
    """Return the line, ending in a newline, at most PIPE_BUF bytes long.

    Raises:
        ReportError: It would be longer.
    """
    line = orjson.dumps(asdict(report)) + b"\n"
    if len(line) > MOST_BYTES:
        raise ReportError(f"a report of {len(line)} bytes")
    return line


def decode(line: bytes) -> Report | None:
    """Read what came before end of file; None for nothing at all.

    Raises:
        ReportError: Not exactly one line of this codec.
    """
    if not line:
        return None
    if len(line) > MOST_BYTES or not line.endswith(b"\n"):
        raise ReportError(f"a torn report of {len(line)} bytes")
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ReportError(str(error)) from error
    match fields:
        case {
            "stream": str(stream),
            "copied_bytes": int(copied_bytes),
            "errno": int(errno),
            "side": str(side),
        }:
            left = (fields.get("left_bytes", 0), fields.get("left_lines", 0))  # new, for a reload
            if (
                all(isinstance(count, int) and 0 <= count <= _MOST_COUNT for count in left)
                and 0 <= copied_bytes <= _MOST_COUNT
                and 0 <= errno <= _MOST_ERRNO
            ):
                return Report(stream, copied_bytes, errno, side, *left)
    raise ReportError(f"not a report: {line[:80]!r}")
