"""ttrpc frames, cut out of a byte stream in pieces of every size."""

from __future__ import annotations

import struct

import pytest

from supervisor.wire import frames, messages
from supervisor.wire.frames import Code, Frame, FrameParser
from supervisor.wire.protobuf import WireError, decode, encode

MOST = 4 << 20


def _fields(made: list[Frame]) -> list[tuple[int, int, int, bytes, int]]:
    return [(each.stream_id, each.kind, each.flags, each.data, each.too_long) for each in made]


def test_a_frame_is_ten_bytes_of_header_and_its_data() -> None:
    data = frames.encode_frame(5, frames.REQUEST, b"abc", flags=2)
    assert data == b"\0\0\0\x03\0\0\0\x05\x01\x02abc"
    assert _fields(FrameParser().feed(data)) == [(5, frames.REQUEST, 2, b"abc", 0)]


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 9, 10, 11, 12, 13, 14, 1000])
def test_pieces_of_any_size_give_the_same_frames(piece_bytes: int) -> None:
    wanted = [Frame(stream_id, 2, 0, bytes(stream_id)) for stream_id in (0, 1, 3, 40)]
    data = b"".join(frames.encode_frame(each.stream_id, 2, each.data) for each in wanted)
    parser = FrameParser()
    got = []
    for at in range(0, len(data), piece_bytes):
        got += parser.feed(data[at : at + piece_bytes])
    assert _fields(got) == _fields(wanted)
    assert not parser.unparsed


@pytest.mark.parametrize("piece_bytes", [1 << 16, 999_983, 5 << 20])
def test_a_frame_that_is_too_long_is_skipped_and_the_next_is_read(piece_bytes: int) -> None:
    small = frames.encode_frame(1, 1, b"a")
    data = small + struct.pack(">IIBB", MOST + 1, 7, 1, 0) + bytes(MOST + 1) + small
    parser = FrameParser()
    got = []
    for at in range(0, len(data), piece_bytes):
        got += parser.feed(data[at : at + piece_bytes])
        assert len(parser.unparsed) < 10
    assert _fields(got) == [(1, 1, 0, b"a", 0), (7, 1, 0, b"", MOST + 1), (1, 1, 0, b"a", 0)]
    assert parser.skip_bytes == 0


def test_a_frame_that_is_too_long_is_known_by_its_header() -> None:
    parser = FrameParser()
    got = parser.feed(b"\xff\xff\xff\xff\0\0\0\x09\x01\0")
    assert _fields(got) == [(9, 1, 0, b"", 2**32 - 1)]
    assert parser.skip_bytes == 2**32 - 1


def test_a_frame_of_four_mebibytes_is_not_too_long() -> None:
    data = frames.encode_frame(1, 1, bytes(MOST))
    [frame] = FrameParser().feed(data)
    assert len(frame.data) == MOST
    with pytest.raises(WireError, match="4194305 bytes, more than 4194304"):
        frames.encode_frame(1, 1, bytes(MOST + 1))


def test_a_parser_goes_on_from_the_bytes_of_another() -> None:
    data = frames.encode_frame(3, 1, b"abcdef")
    for cut in range(len(data)):
        first = FrameParser()
        assert first.feed(data[:cut]) == []
        second = FrameParser(bytes(first.unparsed), first.skip_bytes)
        assert _fields(second.feed(data[cut:])) == [(3, 1, 0, b"abcdef", 0)]


def test_requests_and_responses_are_messages_in_frames() -> None:
    data = frames.encode_request(9, "s.S", "M", b"x", timeout_ns=5, metadata={"k": "v"})
    [frame] = FrameParser().feed(data)
    assert _fields([frame])[0][:3] == (9, frames.REQUEST, 0)
    assert decode(messages.Request, frame.data) == {
        "service": "s.S",
        "method": "M",
        "payload": b"x",
        "timeout_nano": 5,
        "metadata": [{"key": "k", "value": "v"}],
    }
    [frame] = FrameParser().feed(frames.encode_response(9, b"y"))
    assert _fields([frame])[0][:3] == (9, frames.RESPONSE, 0)
    assert frames.decode_response(frame.data) == (0, "", b"y")
    [frame] = FrameParser().feed(frames.encode_refusal(9, Code.NOT_FOUND, "x: not found"))
    assert frames.decode_response(frame.data) == (5, "x: not found", b"")
    assert frames.decode_response(encode(messages.Response, {"status": {}})) == (0, "", b"")
