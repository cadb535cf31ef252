"""waitid(2)'s fields, read; and the names of signals."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import pytest

from supervisor.linux.exit_status import (
    Exited,
    Killed,
    Recorded,
    from_protocol_status,
    from_siginfo,
    protocol_status,
    shell_status,
    signal_name,
)


@dataclass(frozen=True)
class Info:
    si_code: int
    si_status: int


@pytest.mark.parametrize("exit_status", [0, 1, 127, 128, 137, 255])
def test_an_exit_is_read_as_its_status(exit_status: int) -> None:
    ended = from_siginfo(Info(os.CLD_EXITED, exit_status))
    assert ended == Exited(exit_status)
    assert shell_status(ended) == exit_status
    assert str(ended) == f"exit status {exit_status}"


@pytest.mark.parametrize("signum", range(1, 65))
def test_every_signal_is_read_as_itself_and_as_128_more(signum: int) -> None:
    ended = from_siginfo(Info(os.CLD_KILLED, signum))
    assert ended == Killed(signum, core_dumped=False)
    assert shell_status(ended) == 128 + signum
    assert str(ended) == f"killed by {signal_name(signum)}"


def test_a_core_dump_is_told_apart_but_has_the_same_number() -> None:
    ended = from_siginfo(Info(os.CLD_DUMPED, signal.SIGSEGV))
    assert ended == Killed(signal.SIGSEGV, core_dumped=True)
    assert ended != Killed(signal.SIGSEGV)
    assert shell_status(ended) == 139
    assert str(ended) == "killed by SIGSEGV, core dumped"


def test_an_exit_with_137_is_no_kill() -> None:
    exited, killed = Exited(137), Killed(9)
    assert shell_status(exited) == shell_status(killed)
    assert str(exited) != str(killed)


@pytest.mark.parametrize(
    ("signum", "name"),
    [
        (1, "SIGHUP"),
        (9, "SIGKILL"),
        (15, "SIGTERM"),
        (31, "SIGSYS"),
        (32, "signal 32"),
        (33, "signal 33"),
        (34, "SIGRTMIN"),
        (35, "SIGRTMIN+1"),
        (40, "SIGRTMIN+6"),
        (63, "SIGRTMIN+29"),
        (64, "SIGRTMAX"),
        (65, "signal 65"),
    ],
)
def test_signals_are_named_as_in_the_manual(signum: int, name: str) -> None:
    assert signal_name(signum) == name


@pytest.mark.parametrize(
    ("text", "ended"),
    [
        ("0", Exited(0)),
        ("128", Exited(128)),
        ("129", Recorded(129)),
        ("255", Recorded(255)),
        ("256", None),
        ("unknown", None),
        ("", None),
        ("-1", None),
        ("\N{SUPERSCRIPT TWO}", None),
    ],
)
def test_what_was_written_down_is_read_again(text: str, ended: Exited | Recorded | None) -> None:
    assert from_protocol_status(text) == ended
    if ended is not None:
        assert protocol_status(ended) == text
