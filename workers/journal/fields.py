"""Records of the journal's native protocol: a datagram of fields each. Pure.

A field is `NAME=value` and a newline; a value that holds a newline or NUL goes as `NAME`, newline,
its length as a little-endian 64-bit number, its bytes, newline. The value stays byte for byte
what it is: empty, with blanks at its end, invalid UTF-8. The container's fields are called as
Podman and Docker call them.
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
"""Where the text does not say: informational and error, as Podman has it."""

_NAME = re.compile(r"[A-Z0-9][A-Z0-9_]{0,63}")
_LONGEST_NAME = 64
_NOT_IN_A_NAME = re.compile(r"[^A-Z0-9_]")
_TAKEN = re.compile(
    r"(MESSAGE|MESSAGE_ID|PRIORITY|CODE_FILE|CODE_LINE|CODE_FUNC|ERRNO|DOCUMENTATION|TID|UNIT"
    r"|USER_UNIT|INVOCATION_ID|USER_INVOCATION_ID|SESSION_ID|LEADER|N_DROPPED)"
    r"|(CONTAINER|COREDUMP|JOB|OBJECT|SYSLOG)(_.*)?"
)
"""What has a meaning for us or for systemd: systemd.journal-fields(7), catalog."""


def field(name: str, value: bytes) -> bytes:
    """Return one field.

    Raises:
        ValueError: The journal would drop a field of that name, or whoever it is from.
    """
    if not _NAME.fullmatch(name) or name[0].isdigit():
        raise ValueError(f"not a journal field: {name!r}")
    return name.encode() + _value(value) + b"\n"


def field_name(text: str, prefix: str) -> str:
    """Return a name for `text`: in capitals, `_` for whatever the journal does not take.

    With `prefix` before it where the name begins with a digit, or means something already.
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
    """What is the same in every record of one container.

    Attributes:
        container_id: In full.
        name: The container's, or "".
        tag: Or "". SYSLOG_IDENTIFIER is the first of tag, name and short id that is there.
        epoch: Names this run of the container: ordinals begin again with the next.
        extra: More fields, such as labels: pairs of name and value.
    """

    container_id: str
    name: str = ""
    tag: str = ""
    epoch: str = ""
    extra: tuple[tuple[str, str], ...] = ()

    def fields(self, stream: str) -> bytes:
        """Return them, and the stream's name. Raises: ValueError, see `field`."""
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
    """Makes the records of one stream in as few steps as possible: all but the text is ready."""

    def __init__(self, origin: Origin, stream: str, priority: int) -> None:
        """Prepare what can be; `priority` (0 to 7) is for lines that do not name theirs."""
        self.priority = priority
        same = origin.fields(stream)
        self._tails = [
            b"\nPRIORITY=%d\n%bCONTAINER_LOG_ORDINAL=" % (each, same)
            for each in range(LOWEST_PRIORITY + 1)
        ]

    def make(self, text: bytes, priority: int, ordinal: int, more: bytes = b"") -> bytes:
        """Return the record of `text`; `more` is further fields."""
        if b"\n" in text or b"\0" in text:
            head = b"MESSAGE\n" + len(text).to_bytes(8, "little")
        else:
            head = b"MESSAGE="
        return b"%b%b%b%d\n%b" % (head, text, self._tails[priority], ordinal, more)


def split_priority(line: bytes) -> tuple[int, bytes] | None:
    """Return the priority that a line names by a prefix `<0>` to `<7>`, and the rest.

    Source: sd-daemon(3).
    """
    if line[:1] == b"<" and line[2:3] == b">" and line[1:2] in _DIGITS:
        return line[1] - ord("0"), line[3:]
    return None


_DIGITS = frozenset(b"%d" % digit for digit in range(LOWEST_PRIORITY + 1))
