"""Lines that are one record: any content, any number."""

from __future__ import annotations

import random

import pytest

from workers.lines.multiline import join, start_of_last


@pytest.mark.parametrize(
    ("lines", "joined"),
    [
        (b"", [b""]),
        (b"one", [b"one"]),
        (b"one\ntwo", [b"one", b"two"]),
        (b"one\n two\n\tthree\nfour", [b"one\n two\n\tthree", b"four"]),
        (b" first\n second", [b" first\n second"]),
        (b"one\n\n two", [b"one", b"\n two"]),
        (b"\n\n", [b"", b"", b""]),
        (b"one\n\xa0two", [b"one", b"\xa0two"]),
        (b"one\n  ", [b"one\n  "]),
    ],
)
def test_a_line_that_begins_with_a_blank_continues_the_line_before(
    lines: bytes, joined: list[bytes]
) -> None:
    assert join(lines, 100) == joined


@pytest.mark.parametrize(
    ("limit_bytes", "joined"),
    [
        (15, [b"one\n two\n three"]),
        (14, [b"one\n two", b" three"]),
        (8, [b"one\n two", b" three"]),
        (7, [b"one", b" two", b" three"]),
        (6, [b"one", b" two", b" three"]),
    ],
)
def test_a_record_that_would_be_too_long_ends_with_a_line(
    limit_bytes: int, joined: list[bytes]
) -> None:
    assert join(b"one\n two\n three", limit_bytes) == joined


@pytest.mark.parametrize(
    ("lines", "start"),
    [
        (b"", 0), (b"\n", 0), (b"one\n", 0), (b"one\ntwo\n", 4), (b"one\n two\n", 0),
        (b"one\ntwo\n three\n\tfour\n", 4), (b" one\n", 0), (b"one\n\n", 4), (b"\n\n two\n", 1),
        (b"\n\n", 1),
    ],
)  # fmt: skip
def test_the_last_record_begins_where_another_line_could_continue_it(
    lines: bytes, start: int
) -> None:
    assert start_of_last(lines) == start


@pytest.mark.parametrize("limit_bytes", [3, 5, 9, 100])
def test_nothing_is_lost_and_the_last_record_is_the_last_one(limit_bytes: int) -> None:
    chosen = random.Random(limit_bytes)
    for _each in range(500):
        words = [bytes(chosen.choices(b"a \t", k=chosen.randrange(4))) for _line in range(9)]
        lines = b"\n".join(words)
        joined = join(lines, limit_bytes)
        assert b"\n".join(joined) == lines
        assert max(map(len, joined)) <= limit_bytes
        if limit_bytes == 100:
            assert start_of_last(lines + b"\n") == len(lines) - len(joined[-1])
