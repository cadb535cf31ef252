"""Where records end, and how the Kubernetes log format writes them."""

from __future__ import annotations

import itertools

import pytest

from workers.lines import framing
from workers.lines.framing import Run
from workers.sinks.cri_format import CriFormat, PlainFormat, timestamp


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"\n", [Run(0, 1, is_piece=False)]),
        (b"a\n\nbcde\n", [Run(0, 8, is_piece=False)]),
        (b"abcde\n", [Run(0, 4, is_piece=True), Run(4, 6, is_piece=False)]),
        (b"abcdefgh\n", [Run(0, 4, is_piece=True), Run(4, 9, is_piece=False)]),
        (
            b"a\nabcde",
            [Run(0, 2, is_piece=False), Run(2, 6, is_piece=True), Run(6, 7, is_piece=True)],
        ),
        (b"abcd", [Run(0, 4, is_piece=True)]),
    ],
)
def test_content_is_cut_into_runs(content: bytes, expected: list[Run]) -> None:
    assert list(framing.runs(content, 4)) == expected


def _one_by_one(content: bytes, limit_bytes: int) -> list[bytes]:
    """Cut by the rule in the module docstring, one record at a time."""
    found = []
    while content:
        line, newline, _rest = content.partition(b"\n")
        length = limit_bytes if len(line) > limit_bytes else len(line) + len(newline)
        found.append(content[:length])
        content = content[length:]
    return found


ALL_SHORT = [bytes(text) for size in range(9) for text in itertools.product(b"x\n", repeat=size)]


@pytest.mark.parametrize("limit_bytes", [1, 2, 3])
def test_every_short_content_is_cut_alike_a_run_and_a_record_at_a_time(limit_bytes: int) -> None:
    for content in ALL_SHORT:
        cut = []
        for start, end, is_piece in framing.runs(content, limit_bytes):
            piece = content[start:end]
            assert is_piece == (b"\n" not in piece)
            cut += [piece] if is_piece else piece.splitlines(keepends=True)
        assert cut == _one_by_one(content, limit_bytes)


@pytest.mark.parametrize("limit_bytes", [1, 2, 3])
def test_what_waits_for_more_does_not_change_how_the_whole_is_cut(limit_bytes: int) -> None:
    for content in filter(None, ALL_SHORT):
        whole = _one_by_one(content, limit_bytes)
        assert framing.end_of_first(content, limit_bytes) == len(whole[0])
        for size in range(len(content) + 1):
            rest_start = content.rfind(b"\n", 0, size) + 1
            # The bytes before the newline were cut when they came; a rest begins at a record.
            end = framing.end_of_last(rest_start, size, limit_bytes)
            assert end in {0, *itertools.accumulate(map(len, whole))}
            assert size - end <= limit_bytes


def test_a_time_has_nine_digits_and_is_utc() -> None:
    assert timestamp(1_475_713_029_000_000_042) == b"2016-10-06T00:17:09.000000042Z"
    assert timestamp(0) == b"1970-01-01T00:00:00.000000000Z"


T = b"1970-01-01T00:00:00.000000001Z"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", b""),
        (b"a\n", T + b" stderr F a\n"),
        (b"\n\n", T + b" stderr F \n" + T + b" stderr F \n"),
        (b"a b\r\n\0\xff\n", T + b" stderr F a b\r\n" + T + b" stderr F \0\xff\n"),
        (b"12345\n", T + b" stderr F 12345\n"),
        (b"123456\n", T + b" stderr P 12345\n" + T + b" stderr F 6\n"),
        (
            b"x\n12345123\ny\n",
            T + b" stderr F x\n" + T + b" stderr P 12345\n" + T + b" stderr F 123\n" + T
            + b" stderr F y\n",
        ),
        (b"x\nend", T + b" stderr F x\n" + T + b" stderr P end\n"),
    ],
)  # fmt: skip
def test_lines_get_a_time_a_stream_and_a_tag(content: bytes, expected: bytes) -> None:
    assert CriFormat("stderr", 5).rewrite(content, 1) == expected


def test_a_line_is_cut_at_16_kib_as_containerd_does() -> None:
    content = b"x" * (16 << 10) + b"\n"
    assert CriFormat("stdout").rewrite(content, 1) == T + b" stdout F " + content
    assert b" P " in CriFormat("stdout").rewrite(b"x" + content, 1)


def test_plain_bytes_stay_as_they_are() -> None:
    assert PlainFormat(3).rewrite(b"long line\n\n", 1) == b"long line\n\n"
