"""The quick reader of `forkshim run` and argparse, on the same lines."""

from __future__ import annotations

import itertools

import pytest

from supervisor.cli import options
from supervisor.cli.main import parse

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
    "run --bundle= web",
    "run --log file,max-size=1M:/a=b web",
]
OTHER = [
    "",
    "adopt web",
    "attach web",
    "run",
    "run --help",
    "run -ti web",
    "run --bund /b web",
    "run --bundle",
    "run --bundle --detach web",
    "run --runtime-arg --debug web",
    "run --stop-timeout -1 web",
    "run --stop-timeout inf web",
    "run --stop-timeout nan web",
    "run --stop-timeout soon web",
    "run --stop-signal NOPE web",
    "run --sdnotify nobody web",
    "run --detach=yes web",
    "run web web2",
    "run -- web",
    "run --nonsense web",
    "run --root=/\udcff web",
]


@pytest.mark.parametrize("line", PLAIN)
def test_what_is_plain_is_read_as_argparse_reads_it(line: str) -> None:
    words = line.split()
    read = options.read(words)
    assert read is not None
    assert read == parse(words)


@pytest.mark.parametrize("line", OTHER)
def test_what_is_not_is_left_to_it(line: str) -> None:
    assert options.read(line.split()) is None


def test_whatever_it_reads_argparse_reads_as_well() -> None:
    words = [
        "--detach",
        "--log",
        "--log=x",
        "--bundle",
        "-t",
        "x",
        "--",
        "-5",
        "",
        "--stop-timeout",
    ]
    lines = [["run", *line] for line in itertools.product(words, repeat=3)]
    read = [(line, options.read(line)) for line in lines]
    assert any(request for _line, request in read)
    for line, request in read:
        assert request is None or request == parse(line), line
