"""Fields and records of the journal's native protocol."""

from __future__ import annotations

import pytest

from tests.harness.fake_journal import parse
from workers.journal.fields import Origin, RecordMaker, field, field_name, split_priority


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", b"MESSAGE=\n"),
        (b"text  ", b"MESSAGE=text  \n"),
        (b"a=b\xff\r", b"MESSAGE=a=b\xff\r\n"),
        (b"a\nb", b"MESSAGE\n\x03\0\0\0\0\0\0\0a\nb\n"),
        (b"\0", b"MESSAGE\n\x01\0\0\0\0\0\0\0\0\n"),
    ],
)
def test_a_field_is_text_or_has_its_length(value: bytes, expected: bytes) -> None:
    assert field("MESSAGE", value) == expected
    assert parse(expected) == {"MESSAGE": value}


@pytest.mark.parametrize("name", ["", "a", "A b", "_PID", "1A", "A=", "A\n", "A" * 65, "Ä"])
def test_a_name_that_journald_would_drop_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a journal field"):
        field(name, b"x")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("com.example/team", "COM_EXAMPLE_TEAM"), ("_SYSTEMD_UNIT", "SYSTEMD_UNIT"), ("9x", "X_9X"),
        ("", "X_"), ("---", "X_"), ("a\nMESSAGE=b", "A_MESSAGE_B"), ("Message", "X_MESSAGE"),
        ("messages", "MESSAGES"), ("object_pid", "X_OBJECT_PID"), ("objects", "OBJECTS"),
        ("user_id", "USER_ID"), ("user_unit", "X_USER_UNIT"), ("a" * 70, "A" * 64),
        ("container", "X_CONTAINER"), ("coredump_unit", "X_COREDUMP_UNIT"),
    ],
)  # fmt: skip
def test_a_containers_name_becomes_a_field_name_without_another_meaning(
    text: str, name: str
) -> None:
    assert field_name(text, "X_") == name
    assert field(name, b"").startswith(name.encode())


ID = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("origin", "identifier"),
    [
        (Origin(ID), b"0123456789ab"),
        (Origin(ID, name="web"), b"web"),
        (Origin(ID, name="web", tag="prod/web"), b"prod/web"),
    ],
)
def test_a_container_is_named_by_its_tag_or_name_or_id(origin: Origin, identifier: bytes) -> None:
    fields = parse(origin.fields("stdout"))
    assert fields.pop("SYSLOG_IDENTIFIER") == identifier
    assert fields.pop("CONTAINER_ID") == b"0123456789ab"
    assert fields.pop("CONTAINER_ID_FULL") == ID.encode()
    assert fields.pop("CONTAINER_STREAM") == b"stdout"
    assert fields.pop("CONTAINER_NAME", b"") == origin.name.encode()
    assert fields.pop("CONTAINER_TAG", b"") == origin.tag.encode()
    assert not fields


def test_labels_and_the_epoch_are_fields() -> None:
    origin = Origin(ID, epoch="5", extra=(("LABEL_A", "x\ny"), ("LABEL_B", "\udcff")))
    fields = parse(origin.fields("stderr"))
    assert fields["CONTAINER_LOG_EPOCH"] == b"5"
    assert fields["LABEL_A"] == b"x\ny"
    assert fields["LABEL_B"] == b"\xff"


@pytest.mark.parametrize("text", [b"", b" text ", b"two\nlines", b"\0\xff"])
def test_a_record_has_text_priority_and_number(text: bytes) -> None:
    maker = RecordMaker(Origin(ID), "stdout", 6)
    fields = parse(maker.make(text, 4, 17, b"CONTAINER_PARTIAL_MESSAGE=true\n"))
    assert fields["MESSAGE"] == text
    assert fields["PRIORITY"] == b"4"
    assert fields["CONTAINER_LOG_ORDINAL"] == b"17"
    assert fields["CONTAINER_PARTIAL_MESSAGE"] == b"true"
    assert fields["CONTAINER_STREAM"] == b"stdout"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"<0>x", (0, b"x")),
        (b"<7>", (7, b"")),
        (b"<3> x", (3, b" x")),
        (b"<8>x", None),
        (b"<>x", None),
        (b"<x>x", None),
        (b"<12>x", None),
        (b"<1", None),
        (b"<", None),
        (b"", None),
        (b" <1>x", None),
    ],
)
def test_a_line_may_name_its_priority(line: bytes, expected: tuple[int, bytes] | None) -> None:
    assert split_priority(line) == expected
