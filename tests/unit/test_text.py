"""What a terminal, a log or the service manager is shown."""

from __future__ import annotations

import os
import unicodedata

import pytest

from supervisor.linux.text import printable

DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@pytest.mark.parametrize("text", ["", "plain", "ünï ☃ 🐳 漢字 עברית", "C:\\x1b", "a  b", "'\""])
def test_what_can_be_shown_stays(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("one\nforkshim: other: two", "one\\nforkshim: other: two"),
        ("\r\t\0\x7f", "\\r\\t\\x00\\x7f"),
        ("\x9b31m", "\\x9b31m"),
        ("\u2028\u2029\u0085", "\\u2028\\u2029\\x85"),
        ("user\u202etxt.exe", "user\\u202etxt.exe"),
        (os.fsdecode(b"/tmp/\xff\xc3"), "/tmp/\\xff\\xc3"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_would_act_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_nothing_of_all_unicode_is_left_that_acts() -> None:
    shown = printable("".join(map(chr, range(0x110000))))
    assert shown.isprintable()
    assert not {unicodedata.category(each) for each in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp", "Cn"}
    assert not set(DIRECTIONS) & set(shown)
    shown.encode()
