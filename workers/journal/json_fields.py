"""Converts a line that is a JSON object to the fields of a record. Pure.

`msg` becomes MESSAGE, `level` becomes PRIORITY, and every other string, number or boolean becomes a
field of its name in capitals. The container chooses values and names. A name that systemd or
forkshim uses gets the prefix `JSON_`: journald would attribute a record with OBJECT_PID= from root
to another unit. If a member cannot become a field, the record also contains the line.
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

import orjson

from workers.journal.fields import LOWEST_PRIORITY, field, field_name

MOST_FIELDS = 64

LONGEST_BYTES = 64 << 10
"""A longer line is not parsed: 16 MiB of empty lists would take 520 MB. A line within the limit
takes at most 7 ms and 1 MB (many nested lists or members), 70 ns per byte."""

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
    # The numbers of bunyan and pino.
    10: 7,
    20: 7,
    30: 6,
    40: 4,
    50: 3,
    60: 2,
}


class JsonLine(NamedTuple):
    """The content of a line.

    Attributes:
        text: The message; the line if it has none.
        priority: 0 to 7; None if the line has no known level.
        fields: The other members, encoded.
    """

    text: bytes
    priority: int | None
    fields: bytes


def parse(line: bytes) -> JsonLine | None:
    """Parse a line. Return None if it is no JSON object, or longer than LONGEST_BYTES."""
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
    """Remove and return the first of `names` that is a string or a number."""
    for name in names:
        value = members.get(name)
        if isinstance(value, (str, int)) and not isinstance(value, bool):
            del members[name]
            return value
    return None


def _fields(members: dict[str, object]) -> tuple[bytes, bool]:
    """Return the members as fields, and whether every member became a field."""
    kept: list[bytes] = []
    for name, value in islice(members.items(), MOST_FIELDS):
        match value:
            case str():
                kept.append(field(field_name(name, "JSON_"), value.encode()))
            case bool() | int() | float():
                kept.append(field(field_name(name, "JSON_"), orjson.dumps(value)))
    return b"".join(kept), len(members) == len(kept)
