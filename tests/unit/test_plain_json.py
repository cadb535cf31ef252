"""The JSON of a start is read as the runtimes read it, and equals what orjson makes of it."""

from __future__ import annotations

import sys

import orjson
import pytest

from supervisor.linux import plain_json

MOST = sys.float_info.max


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    "content",
    [
        b"{}", b" \t\r\n{}\n", b"[]", b"null", b"true", b'"x"', b"-0", b"1.0", b"1e5", b"0.1",
        b"18446744073709551615", b"-9223372036854775808", b'{"a": 1, "a": 2}',
        b'{"a": [1, null, {"b": false}], "": 1.5}', '"ä\u2028\U0001f600"'.encode(),
        rb'"\u00e4\ud83d\ude00\u0000\n"', b'"\x7f"', nested(254),
    ],
)  # fmt: skip
def test_what_orjson_reads_is_read_as_orjson_reads_it(content: bytes) -> None:
    read = plain_json.loads(content)
    assert read == orjson.loads(content)
    assert orjson.loads(plain_json.dumps(read)) == read


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"{} {", {}),
        (b"[]\0", []),
        (b'"a\xffb"', "a\ufffdb"),
        (rb'"\ud800"', "\ufffd"),
        (rb'{"\udfff": ["\ud800x"]}', {"\ufffd": ["\ufffdx"]}),
        (b"18446744073709551616", 2**64),
        (b"1" * 100, int("1" * 100)),
        (b"[1e400, -1e400]", [MOST, -MOST]),
        (b"5 " + b"[" * 1000, 5),
        (b'"' + b"[" * 1000 + b'"', "[" * 1000),
        (b"[" + b"{}," * 1000 + b"1]", [*[{}] * 1000, 1]),
    ],
)
def test_what_the_runtimes_read_is_read_although_orjson_refuses_it(
    content: bytes, value: object
) -> None:
    assert plain_json.loads(content) == value
    assert plain_json.loads(plain_json.dumps(value)) == value


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value"),
        (b"\xef\xbb\xbf{}", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[1,]", "Expecting value"),
        (b"{'a': 1}", "Expecting property name"),
        (b'"a\nb"', "Invalid control character"),
        (b"NaN", "NaN is no JSON number"),
        (b'{"a": -Infinity}', "-Infinity is no JSON number"),
        (nested(255), "nested too deeply"),
        (b'{"x": ' + nested(254) + b"}", "nested too deeply"),
        (nested(5000), "nested too deeply"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_json_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plain_json.loads(content)


def test_what_is_written_is_one_line_of_ascii() -> None:
    document = {"a": ["ä\n\udcff", 1, None]}
    assert plain_json.dumps(document) == rb'{"a":["\u00e4\n\udcff",1,null]}'


def test_infinity_is_not_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        plain_json.dumps([float("inf")])
