"""The messages of the control fifo."""

from __future__ import annotations

import pytest

from supervisor.state.control_protocol import (
    Attach,
    CloseStdin,
    ControlParser,
    Message,
    Reopen,
    Resize,
)


@pytest.mark.parametrize(
    ("data", "messages"),
    [
        (b"", []),
        (b"0 0 0\n", [CloseStdin()]),
        (b"0 80 24\n", [CloseStdin()]),
        (b"1 80 24\n", [Resize(80, 24)]),
        (b"1 0 0\n", [Resize(0, 0)]),
        (b"1 65535 65535\n", [Resize(65535, 65535)]),
        (b"1 65536 70000\n", [Resize(0, 4464)]),
        (b"1 -1 -65536\n", [Resize(65535, 0)]),
        (b"  1\t80  24 \r\n", [Resize(80, 24)]),
        (b"001 080 0024\n", [Resize(80, 24)]),
        (b"1 80 24\n0 0 0\n1 1 2\n", [Resize(80, 24), CloseStdin(), Resize(1, 2)]),
        (b"reopen\n0 0 0\n", [Reopen(), CloseStdin()]),
        (b" reopen \r\n", [Reopen()]),
        (b"attach stdout attach.1\n", [Attach("stdout", "attach.1")]),
        (b" attach stderr attach.a-B_c.d \n", [Attach("stderr", "attach.a-B_c.d")]),
        # None of these is a message.
        (b"attach stdin attach.1\n", []),
        (b"attach stdout attach.\n", []),
        (b"attach stdout attach.a/../../x\n", []),
        (b"attach stdout ../attach.1\n", []),
        (b"attach stdout process.json\n", []),
        (b"attach stdout attach." + b"x" * 81 + b"\n", []),
        (b"attach stdout\n", []),
        (b"reopen 0 0\n", []),
        (b"REOPEN\n", []),
        (b"reopen", []),
        (b"\n\n \n", []),
        (b"2 1 1\n", []),
        (b"-1 80 24\n", []),
        (b"1 80\n", []),
        (b"1 80 24 7\n", []),
        (b"1 8_0 24\n", []),
        (b"1 +80 24\n", []),
        (b"1 --80 24\n", []),
        (b"1 - 24\n", []),
        (b"1 80.0 24\n", []),
        (b"1 0x50 24\n", []),
        (b"1 80 \xd9\xa3\n", []),
        (b"1 80 24", []),
    ],
)
def test_a_line_of_three_numbers_or_a_word_is_a_message_and_nothing_else(
    data: bytes, messages: list[Message]
) -> None:
    assert ControlParser().feed(data) == messages


def test_the_next_good_line_counts_after_junk() -> None:
    assert ControlParser().feed(b"junk\0\xff\n1 80 24\n") == [Resize(80, 24)]


def test_a_message_may_come_byte_by_byte() -> None:
    parser = ControlParser()
    got = [parser.feed(bytes([byte])) for byte in b"1 80 24\n0 0 0\n"]
    assert [message for messages in got for message in messages] == [Resize(80, 24), CloseStdin()]
    assert got[7] == [Resize(80, 24)]


@pytest.mark.parametrize("length", [256, 257])
def test_a_line_of_256_bytes_is_read_and_a_longer_one_passed_over(length: int) -> None:
    line = b"1 80 " + b"24".rjust(length - 5)
    expected = [Resize(80, 24)] if length == 256 else []
    assert ControlParser().feed(line + b"\n0 0 0\n") == [*expected, CloseStdin()]
    split = ControlParser()
    assert split.feed(line) == []
    assert split.feed(b"\n0 0 0\n") == [*expected, CloseStdin()]


def test_a_word_in_a_line_of_more_than_256_bytes_is_passed_over() -> None:
    for word in (b"reopen", b"attach stdout attach.1"):
        assert ControlParser().feed(word + b" " * 300 + b"\n") == []


def test_the_rest_of_a_line_that_was_too_long_is_no_message() -> None:
    parser = ControlParser()
    assert parser.feed(b"x" * 300) == []
    assert parser.feed(b"y" * 300) == []
    assert parser.feed(b"1 80 24\n") == []
    assert parser.feed(b"1 80 24\n") == [Resize(80, 24)]


def test_no_more_than_256_bytes_of_an_endless_line_are_kept() -> None:
    parser = ControlParser()
    for _round in range(1000):
        parser.feed(b"1" * 100)
        assert len(parser._begun) <= 256
