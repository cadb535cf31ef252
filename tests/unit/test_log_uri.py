"""The outputs that clients of containerd ask for, as Go splits them."""

from __future__ import annotations

import pytest

from supervisor.frontends.containerd.log_uri import (
    FifoTarget,
    FileTarget,
    LoggerTarget,
    Target,
    parse_target,
)
from supervisor.linux.errors import UsageError


@pytest.mark.parametrize(
    ("uri", "target"),
    [
        ("", FifoTarget("")),
        ("/run/containerd/fifo/1/c-stdout", FifoTarget("/run/containerd/fifo/1/c-stdout")),
        ("/run/50%25?x=1#y", FifoTarget("/run/50%25?x=1#y")),
        ("/odd/a://b", FifoTarget("/odd/a://b")),
        ("fifo:///run/f", FifoTarget("/run/f")),
        ("file:///var/log/c.log", FileTarget("/var/log/c.log")),
        ("file:///var/log/a%20b.log?maxsize=5#x", FileTarget("/var/log/a b.log")),
        ("file:///a#b", FileTarget("/a")),
        ("binary:///usr/bin/logger", LoggerTarget("/usr/bin/logger", (), False)),
        (
            "binary:///usr/bin/logger?id=a%26b&b=c+d&id=2&flag",
            LoggerTarget("/usr/bin/logger", ("id", "a&b", "b", "c d", "flag", ""), False),
        ),
        ("binary-v2:///l?k=v=w", LoggerTarget("/l", ("k", "v=w"), True)),
        ("file:///caf%C3%A9%FF", FileTarget("/café\udcff")),
    ],
)
def test_a_uri_and_its_target(uri: str, target: Target) -> None:
    assert parse_target(uri) == target


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("ftp:///x", "ftp:///x: unknown scheme 'ftp'"),
        ("file://host/x", "file://host/x: no absolute path"),
        ("binary://", "binary://: no absolute path"),
        ("file:///a%00b", "file:///a%00b: no absolute path"),
        ("file:///a%2", "file:///a%2: invalid escape '%2'"),
        ("file:///a%+1", "file:///a%+1: invalid escape '%+1'"),
        ("binary:///l?a=%00", "binary:///l?a=%00: a null byte"),
    ],
)
def test_what_cannot_be_opened_is_said(uri: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_target(uri)
    assert str(caught.value) == words
