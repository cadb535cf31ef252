"""Records of the journal's native protocol, one datagram of fields each. Pure.

A field is `NAME=value` and a newline. A value with a newline or NUL is encoded as `NAME`, newline,
its length as a little-endian 64-bit number, its bytes, newline. The journal keeps every byte of a
value: an empty value, blanks at its end, invalid UTF-8. The container's fields have the names that
Podman and Docker use.
"""

from __future__ import annotations

import re

from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

SHORT_ID_LENGTH = 12
LOWEST_PRIORITY = 7
PRIORITIES = {"stdout": 6, "stderr": 3, "console": 6}
"""The default by stream: informational and error, as in Podman."""

_NAME = re.compile(r"[A-Z0-9][A-Z0-9_]{0,63}")
_LONGEST_NAME = 64
_NOT_IN_A_NAME = re.compile(r"[^A-Z0-9_]")
_TAKEN = re.compile(
    r"(MESSAGE|MESSAGE_ID|PRIORITY|CODE_FILE|CODE_LINE|CODE_FUNC|ERRNO|DOCUMENTATION|TID|UNIT"
    r"|USER_UNIT|INVOCATION_ID|USER_INVOCATION_ID|SESSION_ID|LEADER|N_DROPPED)"
    r"|(CONTAINER|COREDUMP|JOB|OBJECT|SYSLOG)(_.*)?"
)
"""Fields with a meaning for forkshim or systemd: systemd.journal-fields(7), catalog."""


def field(name: str, value: bytes) -> bytes:
    """Return one field.

    Raises:
        ValueError: The journal would drop a field of that name.
    """
    if not _NAME.fullmatch(name) or name[0].isdigit():
        raise ValueError(f"not a journal field: {name!r}")
    return name.encode() + _value(value) + b"\n"


def field_name(text: str, prefix: str) -> str:
    """Return a field name for `text`: in capitals, with `_` for characters that are not allowed.

    A name that begins with a digit, or that forkshim or systemd uses, gets `prefix`. At most 64
    characters.
    """
    name = _NOT_IN_A_NAME.sub("_", text.upper()).strip("_")
    if not name or name[0].isdigit() or _TAKEN.fullmatch(name):
        name = prefix + name
    return name[:_LONGEST_NAME]


def _value(value: bytes) -> bytes:
    if b"\n" in value or b"\0" in value:
        return b"\n" + len(value).to_bytes(8, "little") + value
    return b"=" + value


@dataclass(frozen=True, slots=True)
class Origin:
    """Fields that are the same in every record of one container.

    Attributes:
        container_id: The full id.
        name: The container's name, or "".
        tag: A tag, or "". SYSLOG_IDENTIFIER is the first of tag, name and short id that is set.
        epoch: Identifies this run of the container: ordinals restart with the next run.
        extra: More fields, such as labels: pairs of name and value.
    """

    container_id: str
    name: str = ""
    tag: str = ""
    epoch: str = ""
    extra: tuple[tuple[str, str], ...] = ()

    def fields(self, stream: str) -> bytes:
        """Return the encoded fields, with the stream's name.

        Raises:
            ValueError: As `field`.
        """
        short_id = self.container_id[:SHORT_ID_LENGTH]
        found: Iterable[tuple[str, str]] = (
            ("SYSLOG_IDENTIFIER", self.tag or self.name or short_id),
            ("CONTAINER_ID", short_id),
            ("CONTAINER_ID_FULL", self.container_id),
            ("CONTAINER_NAME", self.name),
            ("CONTAINER_TAG", self.tag),
            ("CONTAINER_STREAM", stream),
            ("CONTAINER_LOG_EPOCH", self.epoch),
            *self.extra,
        )
        return b"".join(
            field(name, value.encode(errors="surrogateescape")) for name, value in found if value
        )


class RecordMaker:
    """Makes the records of one stream. Everything except the text is encoded in advance."""

    def __init__(self, origin: Origin, stream: str, priority: int) -> None:
        """Encode the fields. `priority` (0 to 7) is for lines without a priority."""
        self.priority = priority
        same = origin.fields(stream)
        self._tails = [
            b"\nPRIORITY=%d\n%bCONTAINER_LOG_ORDINAL=" % (each, same)
            for each in range(LOWEST_PRIORITY + 1)
        ]

    def make(self, text: bytes, priority: int, ordinal: int, more: bytes = b"") -> bytes:
        """Return the record of `text`. `more` contains encoded fields."""
        if b"\n" in text or b"\0" in text:
            head = b"MESSAGE\n" + len(text).to_bytes(8, "little")
        else:
            head = b"MESSAGE="
        return b"%b%b%b%d\n%b" % (head, text, self._tails[priority], ordinal, more)


def split_priority(line: bytes) -> tuple[int, bytes] | None:
    """Return the priority in a line's prefix, `<0>` to `<7>`, and the rest. None without a prefix.

    Source: sd-daemon(3).
    """
    if line[:1] == b"<" and line[2:3] == b">" and line[1:2] in _DIGITS:
        return line[1] - ord("0"), line[3:]
    return None


_DIGITS = frozenset(b"%d" % digit for digit in range(LOWEST_PRIORITY + 1))
