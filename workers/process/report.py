"""The completion record: the only message of a worker, one JSON line over its own pipe.

Codec only. `workers.process.context` writes the pipe and `supervisor.io.worker_process` reads it.
End of file without a record means that the worker died.
"""

from __future__ import annotations

import errno as errno_names
import json
import select

from workers.common.records import asdict, dataclass

_MOST_COUNT = 1 << 62
_MOST_ERRNO = 4095
"""Source: MAX_ERRNO in linux/err.h. No other number comes from a system call."""

MOST_BYTES = select.PIPE_BUF
"""A write(2) to a pipe of at most this size is atomic, pipe(7)."""


class ReportError(ValueError):
    """The bytes are not a completion record."""


@dataclass(frozen=True, slots=True)
class Report:
    """How a stream ended.

    Attributes:
        stream: "stdin", "stdout", "stderr" or "console".
        copied_bytes: Copied by this worker.
        errno: 0 at end of file, else the error that stopped the copy.
        side: "source" or "sink", where the error occurred; "" if it is unknown.
        left_bytes: Counted by this worker in a stream that was given up.
        left_lines: Line ends among them.
    """

    stream: str
    copied_bytes: int
    errno: int = 0
    side: str = ""
    left_bytes: int = 0
    left_lines: int = 0

    @property
    def errno_name(self) -> str:
        """The name of `errno`, "EPIPE" for 32; "" at end of file."""
        return errno_names.errorcode.get(self.errno, str(self.errno)) if self.errno else ""


def encode(report: Report) -> bytes:
    """Return the line, ending in a newline, at most PIPE_BUF bytes long.

    Raises:
        ReportError: The line would be longer.
    """
    line = json.dumps(asdict(report)).encode() + b"\n"
    if len(line) > MOST_BYTES:
        raise ReportError(f"a report of {len(line)} bytes")
    return line


def decode(line: bytes) -> Report | None:
    """Parse the bytes before end of file; None if there are none.

    Raises:
        ReportError: The bytes are not exactly one line of `encode`.
    """
    if not line:
        return None
    if len(line) > MOST_BYTES or not line.endswith(b"\n"):
        raise ReportError(f"a torn report of {len(line)} bytes")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ReportError(str(error)) from error
    match fields:
        case {
            "stream": str(stream),
            "copied_bytes": int(copied_bytes),
            "errno": int(errno),
            "side": str(side),
        }:
            # A worker that an older version forked before a reload does not send these two.
            left = (fields.get("left_bytes", 0), fields.get("left_lines", 0))
            if (
                all(isinstance(count, int) and 0 <= count <= _MOST_COUNT for count in left)
                and 0 <= copied_bytes <= _MOST_COUNT
                and 0 <= errno <= _MOST_ERRNO
            ):
                return Report(stream, copied_bytes, errno, side, *left)
    raise ReportError(f"not a report: {line[:80]!r}")
