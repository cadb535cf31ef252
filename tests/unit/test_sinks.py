"""The settings of stdout and stderr."""

from __future__ import annotations

import pytest

from supervisor.errors import UsageError
from supervisor.sinks import Sink, SinkKind, parse_sink, with_absolute_path


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
        ("file:a,keep=0:b", Sink(SinkKind.FILE, "a,keep=0:b"), "a,keep=0:b"),
        ("file,max-size=64k:/p", Sink(SinkKind.FILE, "/p", max_bytes=65536), "/p"),
        (
            "file,max-size=10M,keep=1000:/p:q,r",
            Sink(SinkKind.FILE, "/p:q,r", max_bytes=10 << 20, keep=1000),
            "/p:q,r",
        ),
        ("file,keep=1,max-size=65536:p", Sink(SinkKind.FILE, "p", max_bytes=65536, keep=1), "p"),
        ("cri:/p", Sink(SinkKind.CRI, "/p"), "/p"),
        ("cri,max-size=1024G:/p", Sink(SinkKind.CRI, "/p", max_bytes=1 << 40), "/p"),
        ("journal", Sink(SinkKind.JOURNAL), "journal"),
        (
            "journal,priority=5,tag=prod/web,max-line=16M",
            Sink(SinkKind.JOURNAL, priority=5, tag="prod/web", max_line_bytes=16 << 20),
            "journal",
        ),
        ("journal,max-line=1K", Sink(SinkKind.JOURNAL, max_line_bytes=1024), "journal"),
        ("journal-stream", Sink(SinkKind.JOURNAL_STREAM), "journal-stream"),
        (
            "journal-stream,priority=0",
            Sink(SinkKind.JOURNAL_STREAM, priority=0),
            "journal-stream",
        ),
        ("/run/fifo", Sink(SinkKind.PATH, "/run/fifo"), "/run/fifo"),
        ("stdout", Sink(SinkKind.PATH, "stdout"), "stdout"),
        ("./null", Sink(SinkKind.PATH, "./null"), "./null"),
        ("./cri,keep=x:y", Sink(SinkKind.PATH, "./cri,keep=x:y"), "./cri,keep=x:y"),
        ("NULL", Sink(SinkKind.PATH, "NULL"), "NULL"),
        ("path:/run/fifo", Sink(SinkKind.PATH, "/run/fifo"), "/run/fifo"),
        (
            "path,policy=drop-old,buffer=64M:/run/fifo",
            Sink(SinkKind.PATH, "/run/fifo", policy="drop-old", buffer_bytes=64 << 20),
            "/run/fifo",
        ),
        (
            "passthrough,policy=drop-new",
            Sink(SinkKind.PASSTHROUGH, policy="drop-new"),
            "passthrough",
        ),
        ("cri,policy=block:/p", Sink(SinkKind.CRI, "/p"), "/p"),
        ("files:x", Sink(SinkKind.PATH, "files:x"), "files:x"),
        ("a,max-size=x", Sink(SinkKind.PATH, "a,max-size=x"), "a,max-size=x"),
    ],
)
def test_a_setting_is_a_kind_with_its_options_or_a_path(text: str, sink: Sink, shown: str) -> None:
    assert parse_sink(text) == sink
    assert str(sink) == shown


@pytest.mark.parametrize(
    ("text", "is_so"),
    [("", False), ("file:/p", False), ("/p", False), ("passthrough", False),
     ("file,max-size=1M:/p", True), ("cri:/p", True), ("journal", True),
     ("journal-stream", True), ("file,policy=drop-new:/p", True),
     ("passthrough,policy=drop-old", True), ("path,policy=block:/p", False)],
)  # fmt: skip
def test_a_sink_with_an_outlet_is_told_from_one_that_is_a_descriptor(
    text: str, is_so: bool
) -> None:
    assert parse_sink(text).has_outlet == is_so


@pytest.mark.parametrize(
    ("text", "absolute"),
    [
        ("", ""),
        ("null", "null"),
        ("journal,tag=a", "journal,tag=a"),
        ("fifo", "/here/fifo"),
        ("/fifo", "/fifo"),
        ("file:log", "file:/here/log"),
        ("file:/log", "file:/log"),
        ("cri,max-size=1M:a:b", "cri,max-size=1M:/here/a:b"),
        ("file:file:", "file:/here/file:"),
        ("path,policy=drop-new:fifo", "path,policy=drop-new:/here/fifo"),
    ],
)
def test_only_a_path_is_made_absolute(text: str, absolute: str) -> None:
    assert with_absolute_path(text, "/here") == absolute


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file", "file needs a path, as in file:/var/log/web"),
        ("cri:", "cri needs a path, as in cri:/var/log/web"),
        ("file,keep=3", "file needs a path, as in file:/var/log/web"),
        ("journal:/p", "journal takes no path"),
        ("null:", "null takes no path"),
        ("null,keep=1", "option keep: null takes no options"),
        ("path", "path needs a path, as in path:/var/log/web"),
        ("passthrough,", "option : passthrough takes policy, buffer"),
        ("file,:/p", "option : file takes max-size, keep, policy, buffer"),
        ("cri,max_size=1M:/p", "option max_size: cri takes max-size, keep, policy, buffer"),
        ("file,policy=drop:/p", "option policy: 'drop' is not block, drop-new or drop-old"),
        ("file,buffer=1M:/p", "option buffer: says nothing without drop-new or drop-old"),
        ("file,policy=block,buffer=1M:/p",
         "option buffer: says nothing without drop-new or drop-old"),
        ("journal,policy=drop-new,buffer=511k",
         "option buffer: '511k' is not a size from 512k to 64M"),
        ("journal,keep=1", "option keep: journal takes priority, tag, max-line, annotation, "
         "json, join, policy, buffer"),
        ("journal-stream,keep=1",
         "option keep: journal-stream takes priority, tag, policy, buffer"),
        ("file,keep=2:/p", "option keep: says nothing without max-size"),
        ("file,max-size=1M,max-size=2M:/p", "option max-size: given twice"),
        *(
            (f"file,max-size={size}:/p",
             f"option max-size: '{size}' is not a size from 64k to 1024G")
            for size in ["", "0", "63k", "65535", "1.5M", "-1M", "10MB", "10m", "1T", "1025G", "²M"]
        ),
        *(
            (f"cri,max-size=1M,keep={keep}:/p",
             f"option keep: '{keep}' is not a number from 1 to 1000")
            for keep in ["", "0", "1001", "x", "1k", "+1"]
        ),
        *(
            (f"journal,priority={number}",
             f"option priority: '{number}' is not a number from 0 (emerg) to 7 (debug)")
            for number in ["", "8", "-1", "err"]
        ),
        *(
            (f"journal,max-line={size}", f"option max-line: '{size}' is not a size from 1k to 16M")
            for size in ["1023", "17M"]
        ),
        ("journal,json=no", "option json: 'no' is not yes"),
        ("journal,json=yes,json=yes", "option json: given twice"),
        ("journal,join=", "option join: '' is not indented"),
        ("journal,annotation=", "option annotation: '' is not a pattern of names"),
        ("journal,tag=", "option tag: '' is not 1 to 128 characters of ASCII without blanks"),
        ("journal,tag=a b", "option tag: 'a b' is not 1 to 128 characters of ASCII without blanks"),
        ("journal,tag", "option tag: '' is not 1 to 128 characters of ASCII without blanks"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_sink(text)
    assert str(caught.value) == f"sink {text}: {message}"
