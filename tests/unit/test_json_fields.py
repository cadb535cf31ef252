"""A container's JSON as fields that cannot imitate those of another sender."""

from __future__ import annotations

import orjson
import pytest

from tests.harness.fake_journal import parse as parse_fields
from workers.journal import json_fields
from workers.journal.json_fields import LONGEST_BYTES, MOST_FIELDS, JsonLine, parse


@pytest.mark.parametrize(
    "line",
    [b"", b"text", b"[1]", b'"x"', b"{", b'{"a":1} trailing', b" {}", b'{"a":\xff}',
     b'{"msg":"\\ud800"}', b"[" * 2000, b'{"a":' * 2000],
)  # fmt: skip
def test_what_is_no_object_stays_as_it_is(line: bytes) -> None:
    assert parse(line) is None


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        *(("emerg", 0), ("alert", 1), ("panic", 1), ("crit", 2), ("fatal", 2), ("error", 3)),
        *(("Warn", 4), ("WARNING", 4), ("notice", 5), ("info", 6), ("debug", 7), ("trace", 7)),
        *((number, number) for number in range(8)),
        *((10, 7), (20, 7), (30, 6), (40, 4), (50, 3), (60, 2)),
    ],
)
def test_a_level_is_a_priority(level: object, priority: int) -> None:
    assert parse(orjson.dumps({"msg": "text", "level": level})) == JsonLine(b"text", priority, b"")


@pytest.mark.parametrize(
    ("members", "text", "fields"),
    [
        ({"msg": "a\nb", "message": "c"}, b"a\nb", {"JSON_MESSAGE": b"c"}),
        ({"message": "", "severity": "err"}, b"", {}),
        ({"msg": 7}, b"7", {}),
        ({"msg": "t", "lvl": True}, b"t", {"LVL": b"true"}),
        ({"msg": "t", "a-b.c": "x\ny", "n": 1.5}, b"t", {"A_B_C": b"x\ny", "N": b"1.5"}),
        ({"msg": "t", "_pid": 1, "__x": "y"}, b"t", {"PID": b"1", "X": b"y"}),
        ({"msg": "t", "object_pid": 1}, b"t", {"JSON_OBJECT_PID": b"1"}),
        ({"msg": "t", "container_id": "x"}, b"t", {"JSON_CONTAINER_ID": b"x"}),
        ({"msg": "t", "unit": "sshd.service"}, b"t", {"JSON_UNIT": b"sshd.service"}),
        ({"msg": "t", "0": "", "": "y"}, b"t", {"JSON_0": b"", "JSON_": b"y"}),
        ({"msg": "t", "é": "z"}, b"t", {"JSON_": b"z"}),
        ({"msg": "t", "x" * 99: 1}, b"t", {"X" * 64: b"1"}),
    ],
)
def test_members_are_fields_of_safe_names(
    members: dict[str, object], text: bytes, fields: dict[str, bytes]
) -> None:
    parsed = parse(orjson.dumps(members))
    assert parsed is not None
    assert (parsed.text, parse_fields(parsed.fields)) == (text, fields)


@pytest.mark.parametrize(
    "members",
    [
        {"msg": "t", "nested": {}},
        {"msg": "t", "list": [1]},
        {"msg": "t", "nothing": None},
        {"msg": "t", "level": "loud"},
        {"msg": "t", **{f"k{number}": number for number in range(MOST_FIELDS + 1)}},
    ],
)
def test_the_line_is_kept_if_a_member_does_not_fit(members: dict[str, object]) -> None:
    line = orjson.dumps(members)
    parsed = parse(line)
    assert parsed is not None
    assert parsed.text == b"t"
    fields = parse_fields(parsed.fields)
    assert fields.pop("CONTAINER_LINE") == line
    assert len(fields) <= MOST_FIELDS


def test_an_object_without_a_text_is_its_own() -> None:
    line = b'{"a":1,"b":[2],"level":"warn"}'
    assert parse(line) == JsonLine(line, 4, b"A=1\n")


def test_json_that_is_too_long_is_a_line_like_any_other() -> None:
    """The lists of 16 MiB would take half a gigabyte: the line is not parsed."""
    fits = orjson.dumps({"msg": "t", "fill": ""})
    fits = fits.replace(b'""', b'"' + b"x" * (LONGEST_BYTES - len(fits)) + b'"')
    assert len(fits) == LONGEST_BYTES
    assert parse(fits) is not None
    for line in (fits[:-2] + b'x"}', b'{"a":[' + b"[]," * 5_000_000 + b"1]}"):
        assert orjson.loads(line)
        assert parse(line) is None


def test_no_more_members_are_looked_at_than_there_may_be_fields(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at = []

    def note(name: str, value: bytes) -> bytes:
        looked_at.append(name)
        return b""

    monkeypatch.setattr(json_fields, "field", note)
    members = {"msg": "t", **{f"k{number}": number for number in range(5000)}}
    assert parse(orjson.dumps(members)) is not None
    assert len(looked_at) <= MOST_FIELDS + 1
