"""The log format of the Kubernetes container runtime interface, which `kubectl logs` reads. Pure.

    2016-10-06T00:17:09.669794202Z stdout F a whole line
    2016-10-06T00:17:09.669794202Z stdout P a piece of a line, without its end

The bytes of a line stay unchanged: NUL, invalid UTF-8, a carriage return, an empty line. All
records of one batch have the time of its write. A line longer than 16 KiB is cut, as in containerd.
If the last byte of the output is no newline, the last record is P, as in containerd and conmon. The
reader removes the newline after a P, so `kubectl logs` prints the exact bytes.
"""

from __future__ import annotations

import time

from workers.common.records import dataclass
from workers.lines import framing


def timestamp(stamp_ns: int, *, is_local: bool = False) -> bytes:
    """Return nanoseconds since the epoch as RFC 3339 with nine digits.

    In UTC with a Z, or in local time with its offset, as conmon writes it. The offset is that of
    the time stamp, not that of the time of the call.
    """
    stamp_s, rest_ns = divmod(stamp_ns, 1_000_000_000)
    if not is_local:
        return b"%04d-%02d-%02dT%02d:%02d:%02d.%09dZ" % (*time.gmtime(stamp_s)[:6], rest_ns)
    local = time.localtime(stamp_s)
    minutes = local.tm_gmtoff // 60
    sign, (hours, minutes) = b"-" if minutes < 0 else b"+", divmod(abs(minutes), 60)
    return b"%04d-%02d-%02dT%02d:%02d:%02d.%09d%b%02d:%02d" % (
        *local[:6],
        rest_ns,
        sign,
        hours,
        minutes,
    )


@dataclass(frozen=True, slots=True)
class CriFormat:
    """The format of one stream, "stdout" or "stderr". `is_local`: time stamps in local time."""

    stream: str
    limit_bytes: int = 16 << 10
    is_local: bool = False

    def rewrite(self, content: bytes, stamp_ns: int) -> bytes:
        """Return the records of `content`. The same arguments give the same bytes."""
        head = timestamp(stamp_ns, is_local=self.is_local) + b" " + self.stream.encode()
        line_head = head + b" F "
        parts: list[bytes | memoryview] = []
        for start, end, is_piece in framing.runs(content, self.limit_bytes):
            if is_piece:
                parts += (head, b" P ", content[start:end], b"\n")
            else:
                # One pass over all lines. It leaves a surplus head after the last newline.
                lines = content[start:end].replace(b"\n", b"\n" + line_head)
                parts += (line_head, memoryview(lines)[: -len(line_head)])
        return b"".join(parts)

    def source_bytes(self, content: bytes, written: bytes) -> int:
        """Return how many bytes of `content` the whole records in `written` contain."""
        return framing.end_of_nth(content, self.limit_bytes, written.count(b"\n"))


@dataclass(frozen=True, slots=True)
class PlainFormat:
    """The unchanged bytes. A rotation may divide a line that is longer than the limit."""

    limit_bytes: int

    def rewrite(self, content: bytes, _stamp_ns: int) -> bytes:
        """Return `content`."""
        return content

    def source_bytes(self, _content: bytes, written: bytes) -> int:
        """Return the length of `written`."""
        return len(written)
