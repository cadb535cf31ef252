"""Each table of a message beside google's library, which speaks the contract by itself."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
from google.protobuf.unknown_fields import UnknownFieldSet

from supervisor.wire import messages
from supervisor.wire.protobuf import STRING_MAP, Field, MessageType, decode, encode
from tests.harness.containerd_contract import accounts, google_classes
from tests.harness.wire_mutants import TABLES, some_values

if TYPE_CHECKING:
    from typing import Any

GOOGLE = google_classes()
ROUNDS = 20


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
        values = some_values(table, random)
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
