"""What conmon's front end says and hears: JSON lines, control lines, the runtime's command line."""

from __future__ import annotations

import pytest

from supervisor.frontends.conmon.command_line import runtime_argv
from supervisor.frontends.conmon.control_lines import (
    ControlLines,
    Fifo,
    Refused,
    Reopen,
    Resize,
)
from supervisor.frontends.conmon.engine_pipes import message
from supervisor.frontends.conmon.guardian.exit_command import shell_argv
from supervisor.frontends.conmon.options import parse


@pytest.mark.parametrize(
    ("key", "number", "words", "text"),
    [
        ("data", 22303, None, b'{"data": 22303}\n'),
        ("exit_code", 0, None, b'{"exit_code": 0}\n'),
        ("pid", -1, b"", b'{"pid": -1, "message": ""}\n'),
        ("data", -1, b'no "such"\n', b'{"data": -1, "message": "no \\"such\\"\\n"}\n'),
        ("data", -1, b"/a\\b\r\t\b\f", b'{"data": -1, "message": "\\/a\\\\b\\r\\t\\b\\f"}\n'),
        ("data", -1, b"\x00\x1f\x7f\xc3\xa9\xff",
         b'{"data": -1, "message": "\\u0000\\u001f\x7f\xc3\xa9\xff"}\n'),
    ],
)  # fmt: skip
def test_a_message_is_one_line_of_json(
    key: str, number: int, words: bytes | None, text: bytes
) -> None:
    assert message(key, number, words) == text


def meanings(fifo: Fifo, *chunks: bytes) -> list[Resize | Reopen | Refused]:
    lines = ControlLines(fifo)
    return [meaning for chunk in chunks for meaning in lines.feed(chunk)]


@pytest.mark.parametrize(
    ("fifo", "line", "meaning"),
    [
        (Fifo.CTL, b"1 24 80", Resize(24, 80)),
        (Fifo.CTL, b"1 24 80 7 words", Resize(24, 80)),
        (Fifo.CTL, b"  1\t0010 0", Resize(10, 0)),
        (Fifo.CTL, b"1 1000 1000", Resize(1000, 1000)),
        (Fifo.CTL, b"2 0 0", Reopen()),
        (Fifo.WINSZ, b"24 80", Resize(24, 80)),
        (Fifo.WINSZ, b"2 0 0", Resize(2, 0)),
    ],
)
def test_a_line_sets_a_size_or_reopens_the_log(
    fifo: Fifo, line: bytes, meaning: Resize | Reopen
) -> None:
    assert meanings(fifo, line + b"\n") == [meaning]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "Invalid control message format"),
        (b"foo", "Invalid control message format"),
        (b"1 24", "Invalid control message format"),
        (b"123", "Invalid control message format"),
        (b"1 10.5 80", "Invalid control message format"),
        (b"1 0x10 80", "Invalid control message format"),
        (b"999 2 2", "Invalid control message type: 999"),
        (b"0 2 2", "Invalid control message type: 0"),
        (b"1 -1 80", "Invalid window size: -1x80"),
        (b"1 1001 80", "Invalid window size: 1001x80"),
        (b"1 2 99999999999999999999", "Invalid window size: 2x9999999999"),
        (b"2 0 1001", "Invalid window size: 0x1001"),
    ],
)
def test_a_line_that_means_nothing_is_refused(line: bytes, why: str) -> None:
    (meaning,) = meanings(Fifo.CTL, line + b"\n")
    assert isinstance(meaning, Refused)
    assert meaning.why.startswith(why)


def test_lines_come_in_any_pieces() -> None:
    chunks = (b"1 2", b"4 80\n1 25 ", b"81\n2 0 0\n1 26 82\n", b"1 27 83")
    assert meanings(Fifo.CTL, *chunks) == [
        Resize(24, 80), Resize(25, 81), Reopen(), Resize(26, 82),
    ]  # fmt: skip


@pytest.mark.parametrize("chunks", [[b"1 2 3 " + b"x" * 194 + b"\n"], [b"x" * 100] * 9 + [b"\n"]])
def test_a_line_that_is_too_long_is_dropped_as_a_whole(chunks: list[bytes]) -> None:
    refused, *rest = meanings(Fifo.CTL, *chunks, b"1 24 80\n")
    assert isinstance(refused, Refused)
    assert rest == [Resize(24, 80)]


CREATE = "--bundle /b --pid-file /p"
ROOT = "--root=/r"


@pytest.mark.parametrize(
    ("words", "console", "expected"),
    [
        ("", None, f"/runc {ROOT} create {CREATE} ID"),
        ("-s --no-pivot --no-new-keyring", None,
         f"/runc --systemd-cgroup {ROOT} create {CREATE} --no-pivot --no-new-keyring ID"),
        ("--runtime-opt --preserve-fds --runtime-opt 1", "/c",
         f"/runc {ROOT} create {CREATE} --preserve-fds 1 --console-socket /c ID"),
        ("-s --restore /i", None,
         f"/runc --systemd-cgroup {ROOT} restore {CREATE} --detach --image-path /i --work-path /b "
         "ID"),
        ("-s -e --exec-process-spec /s --no-pivot", None,
         f"/runc {ROOT} exec --pid-file /p --process /s --detach ID"),
        ("-t -e --exec-process-spec /s", "/c",
         f"/runc {ROOT} exec --pid-file /p --process /s --detach --console-socket /c ID"),
    ],
)  # fmt: skip
def test_the_runtime_is_called_as_conmon_calls_it(
    words: str, console: str | None, expected: str
) -> None:
    given = parse([*words.split(), "-r", "/runc", "-c", "ID", "--runtime-arg", ROOT])
    argv = runtime_argv(given, bundle="/b", pid_file="/p", console=console)
    assert argv == expected.split()


def test_the_exit_command_is_words_of_a_shell_and_no_text_of_a_script() -> None:
    shell, option, script, *words = shell_argv(["/c", "$(x)", ""], delay_s=3, status=7)
    assert (shell, option) == ("/bin/sh", "-c")
    assert words == ["conmon", "3", "7", "/c", "$(x)", ""]
    assert "$(x)" not in script
