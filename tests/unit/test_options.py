"""The small reader of command lines and argparse, fed by the same tables, on the same lines."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from supervisor.cli import options
from supervisor.cli.commands import COMMANDS
from supervisor.cli.main import parse

if TYPE_CHECKING:
    from supervisor.cli.options import Command, Option

PLAIN = [
    "run web",
    "run --bundle /b web",
    "run --bundle=/b web",
    "run web --bundle /b --detach --log null",
    "run --runtime ./crun --runtime-arg=--debug --runtime-arg x web",
    "run -t -i --no-pivot --adopt web",
    "run --terminal --interactive web",
    "run --stop-timeout 0.5 --stop-signal RTMIN+3 web",
    "run --stop-signal=9 --sdnotify container --exit-dir=/e --root /r web",
    "run --log file,max-size=1M:/a=b web",
    "adopt web",
    "adopt --detach --root /r web",
    "attach --root=/r web",
]
OTHER = [
    "",
    "--version",
    "--help",
    "start web",
    "run",
    "run --help",
    "run -ti web",
    "run -t=yes web",
    "run --bund /b web",
    "run --bundle",
    "run --bundle= web",
    "run --bundle --detach web",
    "run --runtime-arg --debug web",
    "run --stop-timeout -1 web",
    "run --detach=yes web",
    "run web web2",
    "run -- web",
    "run --nonsense web",
    "run --root=/\udcff web",
    "attach --detach web",
]
ROWS = [(command, option) for command in COMMANDS for option in command.options]


@dataclass(frozen=True)
class Texts:
    """What a row takes, with the values, and what it does not, with what is said of it."""

    good: dict[str, object]
    bad: dict[str, str]


ANY = Texts({"x": "x", "a=b": "a=b", "a b": "a b", "ä": "ä"}, {})
TEXTS = {
    "bundle": ANY,
    "runtime": Texts({"crun": "crun", "/a/./b": "/a/b"}, {}),
    "runtime_args": Texts({"x": ("x",), "a=b": ("a=b",)}, {}),
    "root": ANY,
    "log": ANY,
    "exit_dir": ANY,
    "stop_timeout_s": Texts(
        {"0": 0.0, "2.5": 2.5, "1e300": 1e300},
        {
            text: f"not a number of seconds: '{text}'"
            for text in ("soon", "inf", "nan", "1e999", "")
        },
    ),
    "stop_signal": Texts(
        {"TERM": 15, "SIGQUIT": 3, "3": 3, "RTMIN+3": 37},
        {text: f"not a signal: '{text}'" for text in ("NOPE", "0", "65", "RTMIN+99")},
    ),
    "sdnotify": Texts(
        {"supervisor": "supervisor", "container": "container"}, {"nobody": "invalid choice"}
    ),
}
"""For each field with a value. A row whose field is missing here fails the test below."""


def _name(row: tuple[Command, Option]) -> str:
    command, option = row
    return f"{command.name} {'/'.join(option.names) or option.metavar}"


def _lines(command: Command, option: Option, text: str) -> list[list[str]]:
    """Return every way to say it."""
    lines = []
    for name in option.names:
        if option.is_flag:
            lines.append([command.name, name, "web"])
        else:
            lines.append([command.name, name, text, "web"])
            if name.startswith("--"):
                lines.append([command.name, f"{name}={text}", "web"])
    return lines or [[command.name, text]]


@pytest.mark.parametrize("row", ROWS, ids=_name)
def test_both_readers_agree_on_every_row(
    row: tuple[Command, Option], capsys: pytest.CaptureFixture[str]
) -> None:
    command, option = row
    default = getattr(command.request(container_id="web"), option.field)
    if option.is_flag:
        texts = Texts({"": True}, {})
        assert default is False
    elif not option.names:
        texts = Texts({"web": "web", "a.b": "a.b"}, {})
    else:
        texts = TEXTS[option.field]
    for text, value in texts.good.items():
        for line in _lines(command, option, text):
            read = options.read(COMMANDS, line)
            assert getattr(read, option.field) == value, line
            assert read == parse(line), line
    for text, said in texts.bad.items():
        for line in _lines(command, option, text):
            assert options.read(COMMANDS, line) is None, line
            with pytest.raises(SystemExit) as caught:
                parse(line)
            assert caught.value.code == 2
            assert f"argument {'/'.join(option.names)}: {said}" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_line_without_options_has_every_default(command: Command) -> None:
    wanted = command.request(container_id="web")
    assert options.read(COMMANDS, [command.name, "web"]) == wanted
    assert parse([command.name, "web"]) == wanted


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_each_field_of_a_request_has_its_row(command: Command) -> None:
    made = command.request(container_id="web")
    assert sorted(option.field for option in command.options) == sorted(made.__match_args__)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_has_every_row(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")  # else a line may be broken at any hyphen
    with pytest.raises(SystemExit):
        parse([command.name, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for option in command.options:
        assert option.help in said
        assert all(name in said for name in option.names or (option.metavar,))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_repeatable_option_is_collected_in_order(command: Command) -> None:
    for option in command.options:
        if option.is_repeatable:
            line = [command.name, option.names[0], "a", f"{option.names[0]}=b", "web"]
            assert getattr(options.read(COMMANDS, line), option.field) == ("a", "b")
            assert getattr(parse(line), option.field) == ("a", "b")


@pytest.mark.parametrize("line", PLAIN)
def test_a_plain_line_is_read_as_argparse_reads_it(line: str) -> None:
    words = line.split()
    read = options.read(COMMANDS, words)
    assert read is not None
    assert read == parse(words)


@pytest.mark.parametrize("line", OTHER)
def test_every_other_line_is_left_to_argparse(line: str) -> None:
    assert options.read(COMMANDS, line.split()) is None


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_argparse_reads_each_line_that_is_read_in_the_same_way(command: Command) -> None:
    words = [
        "--detach",
        "--log",
        "--log=x",
        "--bundle",
        "--root",
        "-t",
        "x",
        "--",
        "-5",
        "",
        "--stop-timeout",
    ]
    lines = [[command.name, *line] for line in itertools.product(words, repeat=3)]
    read = [(line, options.read(COMMANDS, line)) for line in lines]
    assert any(request for _line, request in read)
    for line, request in read:
        assert request is None or request == parse(line), line
