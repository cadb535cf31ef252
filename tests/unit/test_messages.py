"""Each table of a message beside google's library, which speaks the contract by itself."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
from google.protobuf.unknown_fields import UnknownFieldSet

from supervisor.wire import cgroup_metrics, messages
from supervisor.wire.protobuf import (
    BOOL,
    BYTES,
    STRING,
    STRING_MAP,
    Field,
    MessageType,
    decode,
    encode,
)
from tests.harness.containerd_contract import accounts, google_classes

if TYPE_CHECKING:
    from typing import Any

TABLES = {
    table.name: table
    for module in (messages, cgroup_metrics)
    for table in vars(module).values()
    if isinstance(table, MessageType)
}
GOOGLE = google_classes()
ROUNDS = 20
_LIMITS = {
    "int32": (-(2**31), 2**31),
    "enum": (-(2**31), 2**31),
    "int64": (-(2**63), 2**63),
    "uint32": (0, 2**32),
    "uint64": (0, 2**64),
}


def test_every_message_of_the_contract_has_a_table_of_those_fields() -> None:
    assert {
        name: [
            (field.number, f"{_kind_name(field)}{'*' * field.repeated}", field.name)
            for field in table.by_number.values()
        ]
        for name, table in TABLES.items()
    } == accounts()


def test_every_number_and_name_of_a_table_is_its_own() -> None:
    for table in TABLES.values():
        assert [*table.by_number.values()] == [*table.by_name.values()]


def test_the_service_has_seventeen_methods_of_those_messages() -> None:
    assert len(messages.TASK_METHODS) == 17
    for method, (request, response) in messages.TASK_METHODS.items():
        assert request.name.startswith("containerd.task.v2.")
        assert method in request.name
        assert response is messages.Empty or method in response.name


@pytest.mark.parametrize("name", sorted(TABLES))
def test_google_reads_and_writes_the_same(name: str) -> None:
    table = TABLES[name]
    random = Random(name)
    for _ in range(ROUNDS):
        values = _some_values(table, random)
        theirs = _google_message(GOOGLE[name](), table, values)
        read = GOOGLE[name].FromString(encode(table, values))
        assert read == theirs
        assert not list(UnknownFieldSet(read))
        data = theirs.SerializeToString(deterministic=True)
        assert decode(table, data) == values
        if STRING_MAP not in (field.kind for field in table.by_name.values()):
            assert encode(table, values) == data


def _kind_name(field: Field) -> str:
    if isinstance(field.kind, MessageType):
        return field.kind.name
    return "map" if field.kind == STRING_MAP else field.kind


def _some_values(table: MessageType, random: Random) -> dict[str, Any]:
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
        return _some_values(kind, random)
    if kind == BOOL:
        return random.random() < 0.5
    if kind == BYTES:
        return random.randbytes(random.choice((0, 1, 127, 128, 300)))
    if kind == STRING:
        return "".join(random.choices("aZ0/\0\u00e9\u20ac\U0001f600", k=random.choice((0, 1, 60))))
    if kind == STRING_MAP:
        text = Field(1, "text", STRING)
        return {_one(text, random): _one(text, random) for _ in range(random.choice((0, 1, 3)))}
    lowest, beyond = _LIMITS[kind]
    return random.choice((0, 1, 127, 128, lowest, beyond - 1, random.randrange(lowest, beyond)))


def _google_message(message: Any, table: MessageType, values: dict[str, Any]) -> Any:
    for field in table.by_name.values():
        value = values[field.name]
        theirs = getattr(message, field.name)
        if field.kind == STRING_MAP:
            theirs.update(value)
        elif not isinstance(field.kind, MessageType):
            if field.repeated:
                theirs.extend(value)
            else:
                setattr(message, field.name, value)
        elif field.repeated:
            for each in value:
                _google_message(theirs.add(), field.kind, each)
        elif value is not None:
            theirs.SetInParent()
            _google_message(theirs, field.kind, value)
    return message
