"""The settings of stdout and stderr."""

from __future__ import annotations

import pytest

from supervisor.sinks import Sink, SinkKind, parse_sink


@pytest.mark.parametrize(
    ("text", "sink", "shown"),
    [
        ("", Sink(SinkKind.NULL), "null"),
        ("null", Sink(SinkKind.NULL), "null"),
        ("/dev/null", Sink(SinkKind.NULL), "null"),
        ("passthrough", Sink(SinkKind.PASSTHROUGH), "passthrough"),
        ("file:/var/log/web", Sink(SinkKind.FILE, "/var/log/web"), "/var/log/web"),
        ("file:file:x", Sink(SinkKind.FILE, "file:x"), "file:x"),
        ("file:null", Sink(SinkKind.FILE, "null"), "null"),
        ("/run/fifo", Sink(SinkKind.PATH, "/run/fifo"), "/run/fifo"),
        ("stdout", Sink(SinkKind.PATH, "stdout"), "stdout"),
        ("./null", Sink(SinkKind.PATH, "./null"), "./null"),
        ("NULL", Sink(SinkKind.PATH, "NULL"), "NULL"),
    ],
)
def test_a_setting_is_a_word_or_a_file_or_a_path(text: str, sink: Sink, shown: str) -> None:
    assert parse_sink(text) == sink
    assert str(sink) == shown
