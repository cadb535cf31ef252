"""Lines that are one record: a line that begins with a blank or a tab continues the line before.

Stack traces of many languages have this form. Pure.
"""

from __future__ import annotations

import re

_BETWEEN = re.compile(rb"\n(?![ \t])")


def join(lines: bytes, limit_bytes: int) -> list[bytes]:
    """Return the records of whole lines, the last of them without its newline.

    No line is longer than the limit, and no record becomes longer: it ends at a newline before.
    """
    joined: list[bytes] = []
    for record in _BETWEEN.split(lines):
        start = 0
        while len(record) - start > limit_bytes:
            end = record.rindex(b"\n", start, start + limit_bytes + 1)
            joined.append(record[start:end])
            start = end + 1
        joined.append(record[start:])
    return joined


def start_of_last(lines: bytes) -> int:
    """Return where the last record of whole lines begins. A line that follows may continue it."""
    end = len(lines) - 1
    while (newline := lines.rfind(b"\n", 0, max(end, 0))) >= 0:
        if lines[newline + 1 : newline + 2] not in (b" ", b"\t"):
            return newline + 1
        end = newline
    return 0
