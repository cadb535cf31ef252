"""A line that is a JSON object, as the fields of a record. Pure.

`msg` becomes MESSAGE, `level` PRIORITY, and every other string, number or boolean a field of its
name in capitals. The text is the container's, and so are the names: one that systemd or we have
given a meaning to (OBJECT_PID= from root would put a record under another unit) gets `JSON_` before
it. Where something has no place, the line itself is kept, too.
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

import orjson

from workers.journal.fields import LOWEST_PRIORITY, field, field_name

MOST_FIELDS = 64

LONGEST_BYTES = 64 << 10
"""A longer line is text: parsed, 16 MiB of empty lists are 520 MB. What is left costs at most 7 ms
and 1 MB a line (many nested lists or members), 70 ns a byte."""

_TEXT = ("msg", "message")
_LEVEL = ("level", "severity", "lvl")
_LEVELS: dict[object, int] = {
    **dict.fromkeys(("emerg", "emergency"), 0),
    **dict.fromkeys(("alert", "panic"), 1),
    **dict.fromkeys(("crit", "critical", "fatal"), 2),
    **dict.fromkeys(("err", "error"), 3),
    **dict.fromkeys(("warn", "warning"), 4),
    "notice": 5,
    **dict.fromkeys(("info", "information", "informational"), 6),
    **dict.fromkeys(("debug", "trace"), 7),
    **{number: number for number in range(LOWEST_PRIORITY + 1)},
    # As bunyan and pino number them.
    10: 7,
    20: 7,
    30: 6,
    40: 4,
    50: 3,
    60: 2,
}


class JsonLine(NamedTuple):
    """What a line has said. Without a text of its own `text` is the line; `fields` are encoded."""

    text: bytes
    priority: int | None
    fields: bytes


def parse(line: bytes) -> JsonLine | None:
    """Read a line; None if it is no JSON object, or too long to be looked at."""
    if not line.startswith(b"{") or len(line) > LONGEST_BYTES:
        return None
    try:
        members = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    text = _take(members, _TEXT)
    level = _take(members, _LEVEL)
    priority = _LEVELS.get(level.lower() if isinstance(level, str) else level)
    fields, is_all = _fields(members)
    if text is None:
        return JsonLine(line, priority, fields)
    if not is_all or (level is not None and priority is None):
        fields += field("CONTAINER_LINE", line)
    return JsonLine(str(text).encode(), priority, fields)


def _take(members: dict[str, object], names: tuple[str, ...]) -> str | int | None:
    """Take the first of `names` that is a string or a number."""
    for name in names:
        value = members.get(name)
        if isinstance(value, (str, int)) and not isinstance(value, bool):
            del members[name]
            return value
    return None


def _fields(members: dict[str, object]) -> tuple[bytes, bool]:
    """Return the members as fields, and whether that was all of them."""
    kept: list[bytes] = []
    for name, value in islice(members.items(), MOST_FIELDS):
        match value:
            case str():
                kept.append(field(field_name(name, "JSON_"), value.encode()))
            case bool() | int() | float():
                kept.append(field(field_name(name, "JSON_"), orjson.dumps(value)))
    return b"".join(kept), len(members) == len(kept)
