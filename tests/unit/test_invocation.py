"""The command lines that containerd gives to a shim, as Go reads them."""

from __future__ import annotations

import pytest

from supervisor.frontends.containerd.invocation import Invocation, parse
from supervisor.linux.errors import UsageError

START = Invocation("start", "moby", "c1", "/run/c.sock", "/usr/bin/containerd")


@pytest.mark.parametrize(
    ("line", "read"),
    [
        (
            "-namespace moby -address /run/c.sock -publish-binary /usr/bin/containerd -id c1 start",
            START,
        ),
        (
            "--namespace moby --address=/run/c.sock -publish-binary=/usr/bin/containerd --id=c1"
            " start",
            START,
        ),
        ("-namespace n -id c", Invocation("", "n", "c")),
        ("-namespace n -id c -socket /s -debug-socket /d", Invocation("", "n", "c")),
        ("-namespace n -id c -bundle /b delete", Invocation("delete", "n", "c", bundle="/b")),
        ("-debug -namespace n -id c start", Invocation("start", "n", "c", is_debug=True)),
        ("-debug=false -namespace n -id c start", Invocation("start", "n", "c")),
        ("-namespace n -id c start -debug", Invocation("start", "n", "c")),
        ("-namespace n -id c -- start", Invocation("start", "n", "c")),
        ("-v", Invocation(wants_version=True)),
        ("--version", Invocation(wants_version=True)),
        ("-info", Invocation(wants_info=True)),
        ("-namespace n -id -x start", Invocation("start", "n", "-x")),
    ],
)
def test_flags_and_action(line: str, read: Invocation) -> None:
    assert parse(line.split(" ")) == read


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-x start", "flag provided but not defined: -x"),
        ("-id", "flag needs an argument: -id"),
        ("-debug=2 start", "invalid boolean value '2' for -debug"),
        ("-namespace n -id c stop", "unknown action 'stop': there are start and delete"),
        ("start", "-namespace '': cannot be empty, a dot or have a slash"),
        ("-namespace n -id ../c start", "-id '../c': cannot be empty, a dot or have a slash"),
        ("-namespace .. -id c start", "-namespace '..': cannot be empty, a dot or have a slash"),
    ],
)
def test_what_is_wrong_is_said(line: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(line.split(" "))
    assert str(caught.value) == words
