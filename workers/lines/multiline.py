"""Joins lines to records: a line that begins with a blank or a tab continues the line before. Pure.

Stack traces of many languages have this form.
"""

from __future__ import annotations

import re

_BETWEEN = re.compile(rb"\n(?![ \t])")


def join(lines: bytes, limit_bytes: int) -> list[bytes]:
    """Return the records of whole lines, the last of them without its newline.

    No line may be longer than the limit. A record that would be longer ends at an earlier newline.
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
    """Return where the last record of whole lines begins. The next line may continue it."""
    end = len(lines) - 1
    while (newline := lines.rfind(b"\n", 0, max(end, 0))) >= 0:
        if lines[newline + 1 : newline + 2] not in (b" ", b"\t"):
            return newline + 1
        end = newline
    return 0
