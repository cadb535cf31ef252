"""Messages that are almost right: generated values, and bytes mutated or made up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.wire import cgroup_metrics, messages
from supervisor.wire.protobuf import BOOL, BYTES, STRING, STRING_MAP, Field, MessageType, encode

if TYPE_CHECKING:
    from random import Random
    from typing import Any

TABLES = {
    table.name: table
    for module in (messages, cgroup_metrics)
    for table in vars(module).values()
    if isinstance(table, MessageType)
}
_LIMITS = {
    "int32": (-(2**31), 2**31),
    "enum": (-(2**31), 2**31),
    "int64": (-(2**63), 2**63),
    "uint32": (0, 2**32),
    "uint64": (0, 2**64),
}
_TEXT = Field(1, "text", STRING)


def some_values(table: MessageType, random: Random) -> dict[str, Any]:
    """Return values for every field; sub-messages are missing now and then."""
    values: dict[str, Any] = {}
    for field in table.by_name.values():
        if field.repeated:
            values[field.name] = [_one(field, random) for _ in range(random.choice((0, 1, 2, 9)))]
        elif isinstance(field.kind, MessageType) and random.random() < 0.3:
            values[field.name] = None
        else:
            values[field.name] = _one(field, random)
    return values


def _one(field: Field, random: Random) -> Any:
    kind = field.kind
    if isinstance(kind, MessageType):
        return some_values(kind, random)
    if kind == BOOL:
        return random.random() < 0.5
    if kind == BYTES:
        return random.randbytes(random.choice((0, 1, 127, 128, 300)))
    if kind == STRING:
        return "".join(random.choices("aZ0/\0\u00e9\u20ac\U0001f600", k=random.choice((0, 1, 60))))
    if kind == STRING_MAP:
        return {_one(_TEXT, random): _one(_TEXT, random) for _ in range(random.choice((0, 1, 3)))}
    lowest, beyond = _LIMITS[kind]
    return random.choice((0, 1, 127, 128, lowest, beyond - 1, random.randrange(lowest, beyond)))


def mutant(data: bytes, random: Random) -> bytes:
    """Return the bytes with up to eight of them changed, removed, repeated or made up."""
    changed = bytearray(data)
    for _ in range(random.randint(0, 8)):
        at = random.randint(0, len(changed))
        length = random.choice((1, 1, 2, 5, 20))
        match random.randrange(5):
            case 0:
                del changed[at : at + length]
            case 1:
                changed[at:at] = random.randbytes(length)
            case 2:
                changed[at : at + length] = random.randbytes(length)
            case 3:
                changed[at:at] = changed[at : at + length] * random.randint(1, 9)
            case _:
                changed[at:at] = bytes(random.choices((0, 1, 0x7F, 0x80, 0xFF, 0x0A), k=length))
    return bytes(changed)


def almost_message(table: MessageType, random: Random) -> bytes:
    """Return bytes that may be a message of the table."""
    if random.random() < 0.2:
        return random.randbytes(random.choice((0, 1, 10, 100)))
    return mutant(encode(table, some_values(table, random)), random)
