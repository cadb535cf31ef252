"""Protocol buffers by field tables, against bytes worked out by hand."""

from __future__ import annotations

import pytest

from supervisor.wire import messages, protobuf
from supervisor.wire.protobuf import Field, MessageType, WireError, decode, encode

Small = MessageType(
    "test.Small",
    Field(1, "number", protobuf.INT32),
    Field(2, "text", protobuf.STRING),
    Field(3, "numbers", protobuf.UINT64, repeated=True),
    Field(4, "labels", protobuf.STRING_MAP),
)
Small.by_name["child"] = Small.by_number[6] = Field(6, "child", Small)

EMPTY = {"number": 0, "text": "", "numbers": [], "labels": {}, "child": None}


@pytest.mark.parametrize(
    ("values", "data"),
    [
        ({}, b""),
        ({"number": 0, "text": "", "child": None}, b""),
        ({"number": 150}, b"\x08\x96\x01"),
        ({"number": -1}, b"\x08" + b"\xff" * 9 + b"\x01"),
        ({"text": "testing"}, b"\x12\x07testing"),
        ({"text": "\u00e9"}, b"\x12\x02\xc3\xa9"),
        ({"numbers": [3, 270, 86942]}, b"\x1a\x06\x03\x8e\x02\x9e\xa7\x05"),
        ({"numbers": [2**64 - 1]}, b"\x1a\x0a" + b"\xff" * 9 + b"\x01"),
        ({"labels": {"a": "b"}}, b"\x22\x06\x0a\x01a\x12\x01b"),
        ({"labels": {"a": ""}}, b"\x22\x03\x0a\x01a"),
        ({"child": EMPTY}, b"\x32\x00"),
        ({"child": EMPTY | {"number": 1}}, b"\x32\x02\x08\x01"),
    ],
)
def test_a_message_and_its_bytes(values: dict[str, object], data: bytes) -> None:
    assert encode(Small, values) == data
    assert decode(Small, data) == EMPTY | values


@pytest.mark.parametrize(
    ("data", "values"),
    [
        (b"\x18\x03\x18\x04\x1a\x01\x05", {"numbers": [3, 4, 5]}),  # unpacked and packed
        (b"\x08\x01\x08\x02", {"number": 2}),  # the last one wins
        (b"\x32\x02\x08\x01\x32\x03\x12\x01a", {"child": EMPTY | {"number": 1, "text": "a"}}),
        (b"\x22\x00", {"labels": {"": ""}}),
        (b"\x0a\x01a\x10\x05", {}),  # known fields of other wire types
        (b"\x78\x01\x7d\0\0\0\0\x79\0\0\0\0\0\0\0\0\x7a\x01a\x08\x07", {"number": 7}),  # unknown
        (b"\x7b\x78\x01\x7b\x7c\x7c\x08\x07", {"number": 7}),  # groups
    ],
)
def test_what_other_encoders_may_write(data: bytes, values: dict[str, object]) -> None:
    assert decode(Small, data) == EMPTY | values


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x08", "test.Small: byte 1: truncated varint"),
        (b"\x08" + b"\xff" * 10, "test.Small: byte 11: a varint of more than 10 bytes"),
        (b"\x12\x05abc", "test.Small: byte 2: truncated: 5 bytes announced, 3 left"),
        (b"\x12\x01\xff", "test.Small: byte 3: field text is not UTF-8 (invalid start byte)"),
        (b"\x00\x00", "test.Small: byte 1: field number 0"),
        (b"\x7c", "test.Small: byte 1: field 15 has wire type 4"),
        (b"\x7b\x74", "test.Small: byte 2: field 14 has wire type 4"),
        (b"\x7e", "test.Small: byte 1: field 15 has wire type 6"),
        (b"\x7b", "test.Small: byte 1: truncated varint"),
        (b"\x79\x00", "test.Small: byte 1: truncated: 8 bytes announced, 1 left"),
        (b"\x1a\x01\x80", "test.Small: byte 3: truncated varint"),
        (b"\x32\x02\x12\x01a", "test.Small: byte 4: truncated: 1 bytes announced, 0 left"),
        (b"\x7b" * 40, "test.Small: byte 33: more than 32 groups in each other"),
    ],
)
def test_bad_bytes_are_refused_with_the_place(data: bytes, words: str) -> None:
    with pytest.raises(WireError) as caught:
        decode(Small, data)
    assert str(caught.value) == words


def test_messages_in_each_other_are_limited() -> None:
    data = b""
    for _ in range(protobuf.MAX_DEPTH):
        data = b"\x32" + bytes([len(data)]) + data
    decode(Small, data)
    with pytest.raises(WireError, match="more than 32 messages in each other"):
        decode(Small, b"\x32" + bytes([len(data)]) + data)


def test_bytes_and_fields_are_limited() -> None:
    with pytest.raises(WireError, match="4194305 bytes, more than 4194304"):
        decode(Small, bytes((4 << 20) + 1))
    at_limit = protobuf.MAX_FIELDS
    assert decode(messages.Empty, b"\x78\x01" * at_limit) == {}
    for data in (b"\x78\x01", b"\x18\x01", b"\x22\x00"):
        with pytest.raises(WireError, match="more than 131072 fields"):
            decode(Small, data * (at_limit + 1))
    with pytest.raises(WireError, match="more than 131072 fields"):
        decode(Small, b"\x1a\x80\x80\x08" + b"\x01" * at_limit)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"nmber": 1}, "test.Small: no field nmber"),
        ({"number": 2**31}, "test.Small.number: 2147483648 is out of range of int32"),
        ({"numbers": [-1]}, "test.Small.numbers: -1 is out of range of uint64"),
        ({"text": b"bytes"}, "test.Small.text: b'bytes': "),
        ({"number": "1"}, "test.Small.number: '1': "),
        ({"text": "\udcff"}, "test.Small.text: '\\udcff': "),
        ({"numbers": "12"}, "test.Small.numbers: '12': "),
        ({"child": {"child": {"no": 1}}}, "test.Small.child: test.Small.child: test.Small: no f"),
    ],
)
def test_bad_values_are_refused_with_the_field(values: dict[str, object], words: str) -> None:
    with pytest.raises(WireError) as caught:
        encode(Small, values)
    assert str(caught.value).startswith(words)


def test_an_any_is_known_by_the_end_of_its_type_url() -> None:
    packed = protobuf.pack_any(messages.Options, {"root": "/r"})
    assert packed == {"type_url": "containerd.runc.v1.Options", "value": b":\x02/r"}
    for prefix in ("", "types.containerd.io/", "type.googleapis.com/"):
        prefixed = packed | {"type_url": prefix + packed["type_url"]}
        assert protobuf.is_any_of(prefixed, messages.Empty, messages.Options)
        assert not protobuf.is_any_of(prefixed, messages.Empty)
        assert protobuf.unpack_any(prefixed, messages.Options)["root"] == "/r"
    with pytest.raises(WireError, match=r"'containerd.runc.v1.Options' instead of google"):
        protobuf.unpack_any(packed, messages.Empty)


def test_a_time_before_the_epoch_has_positive_nanoseconds() -> None:
    assert messages.timestamp(1_500_000_000) == {"seconds": 1, "nanos": 500_000_000}
    assert messages.timestamp(-1) == {"seconds": -1, "nanos": 999_999_999}
    data = encode(messages.Timestamp, messages.GO_ZERO_TIME)
    assert decode(messages.Timestamp, data) == messages.GO_ZERO_TIME
