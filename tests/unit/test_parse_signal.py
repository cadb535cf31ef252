"""Names and numbers of signals, as people write them."""

from __future__ import annotations

import pytest

from supervisor.linux.signals import parse_signal


@pytest.mark.parametrize(
    ("text", "signum"),
    [
        ("TERM", 15),
        ("SIGTERM", 15),
        ("term", 15),
        ("sigterm", 15),
        ("15", 15),
        ("1", 1),
        ("64", 64),
        ("SIG15", 15),
        ("HUP", 1),
        ("KILL", 9),
        ("IO", 29),
        ("POLL", 29),
        ("CLD", 17),
        ("RTMIN", 34),
        ("SIGRTMIN", 34),
        ("RTMIN+0", 34),
        ("RTMIN+3", 37),
        ("rtmin+30", 64),
        ("RTMIN-2", 32),
        ("RTMAX", 64),
        ("SIGRTMAX-1", 63),
        ("RTMAX-30", 34),
    ],
)
def test_a_signal_is_known_by_name_and_by_number(text: str, signum: int) -> None:
    assert parse_signal(text) == signum


@pytest.mark.parametrize(
    "text",
    [
        "", "SIG", "0", "65", "-1", "+9", "1.5", "٣", "TERMS", "SIGSIGTERM", "EXIT", "_DFL",
        "SIG_DFL", "_IGN", "_BLOCK", "RTMIN+", "RTMIN3", "RTMIN+x", "RTMIN+31", "RTMAX+1",
        "RTMIN-34", "RTMAX-", "RTMIN+1_0", "RTMIN++1", " TERM", "15 ",
    ],
)  # fmt: skip
def test_what_names_no_signal_is_refused_with_the_word(text: str) -> None:
    with pytest.raises(ValueError, match=r".*") as caught:
        parse_signal(text)
    assert caught.value.args == (text,)
