"""The settings of stdout and stderr."""

from __future__ import annotations

import pytest

from supervisor.linux.errors import UsageError
from supervisor.sinks.spec import (
    SinkKind,
    SinkSpec,
    check_typed,
    parse_sink,
    quoted,
    with_absolute_path,
)


@pytest.mark.parametrize(
    ("text", "sink", "shown"),
    [
        ("", SinkSpec(SinkKind.NULL), "null"),
        ("null", SinkSpec(SinkKind.NULL), "null"),
        ("/dev/null", SinkSpec(SinkKind.NULL), "null"),
        ("passthrough", SinkSpec(SinkKind.PASSTHROUGH), "passthrough"),
        ("file:/var/log/web", SinkSpec(SinkKind.FILE, "/var/log/web"), "/var/log/web"),
        ("file:file:x", SinkSpec(SinkKind.FILE, "file:x"), "file:x"),
        ("file:null", SinkSpec(SinkKind.FILE, "null"), "null"),
        ("file:a,keep=0:b", SinkSpec(SinkKind.FILE, "a,keep=0:b"), "a,keep=0:b"),
        ("file,max-size=64k:/p", SinkSpec(SinkKind.FILE, "/p", max_bytes=65536), "/p"),
        (
            "file,max-size=10M,keep=1000:/p:q,r",
            SinkSpec(SinkKind.FILE, "/p:q,r", max_bytes=10 << 20, keep=1000),
            "/p:q,r",
        ),
        (
            "file,keep=1,max-size=65536:p",
            SinkSpec(SinkKind.FILE, "p", max_bytes=65536, keep=1),
            "p",
        ),
        ("cri:/p", SinkSpec(SinkKind.CRI, "/p"), "/p"),
        ("cri,max-size=1024G:/p", SinkSpec(SinkKind.CRI, "/p", max_bytes=1 << 40), "/p"),
        ("journal", SinkSpec(SinkKind.JOURNAL), "journal"),
        (
            "journal,priority=5,tag=prod/web,max-line=16M",
            SinkSpec(SinkKind.JOURNAL, priority=5, tag="prod/web", max_line_bytes=16 << 20),
            "journal",
        ),
        ("journal,max-line=1K", SinkSpec(SinkKind.JOURNAL, max_line_bytes=1024), "journal"),
        ("journal-stream", SinkSpec(SinkKind.JOURNAL_STREAM), "journal-stream"),
        (
            "journal-stream,priority=0",
            SinkSpec(SinkKind.JOURNAL_STREAM, priority=0),
            "journal-stream",
        ),
        ("/run/fifo", SinkSpec(SinkKind.PATH, "/run/fifo"), "/run/fifo"),
        ("stdout", SinkSpec(SinkKind.PATH, "stdout"), "stdout"),
        ("./null", SinkSpec(SinkKind.PATH, "./null"), "./null"),
        ("./cri,keep=x:y", SinkSpec(SinkKind.PATH, "./cri,keep=x:y"), "./cri,keep=x:y"),
        ("NULL", SinkSpec(SinkKind.PATH, "NULL"), "NULL"),
        ("path:/run/fifo", SinkSpec(SinkKind.PATH, "/run/fifo"), "/run/fifo"),
        (
            "path,policy=drop-old,buffer=64M:/run/fifo",
            SinkSpec(SinkKind.PATH, "/run/fifo", policy="drop-old", buffer_bytes=64 << 20),
            "/run/fifo",
        ),
        (
            "passthrough,policy=drop-new",
            SinkSpec(SinkKind.PASSTHROUGH, policy="drop-new"),
            "passthrough",
        ),
        ("cri,policy=block:/p", SinkSpec(SinkKind.CRI, "/p"), "/p"),
        ("attach", SinkSpec(SinkKind.ATTACH), "attach"),
        ("k8s-file:/p,keep=1", SinkSpec(SinkKind.K8S_FILE, "/p,keep=1", keep=0), "/p,keep=1"),
        (
            "k8s-file,max-size=1,keep=3,total=16777216,sync=yes:p",
            SinkSpec(
                SinkKind.K8S_FILE, "p", max_bytes=1, keep=3, total_bytes=16 << 20, is_synced=True
            ),
            "p",
        ),
        (
            "journal,log-tag=a%20b%2C%3A,name=we%C3%BC,label=A_1=%3D,label=B=,partial=no,prefix=no",
            SinkSpec(
                SinkKind.JOURNAL,
                tag="a b,:",
                name="weü",
                labels=(("A_1", "="), ("B", "")),
                marks_partial=False,
                reads_priority=False,
            ),
            "journal",
        ),
        ("files:x", SinkSpec(SinkKind.PATH, "files:x"), "files:x"),
        ("a,max-size=x", SinkSpec(SinkKind.PATH, "a,max-size=x"), "a,max-size=x"),
    ],
)
def test_a_setting_is_a_kind_with_its_options_or_a_path(
    text: str, sink: SinkSpec, shown: str
) -> None:
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
    assert parse_sink(text).has_line_sink == is_so


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
        ("file,buffer=1M:/p", "option buffer: has no effect without drop-new or drop-old"),
        ("file,policy=block,buffer=1M:/p",
         "option buffer: has no effect without drop-new or drop-old"),
        ("journal,policy=drop-new,buffer=511k",
         "option buffer: '511k' is not a size from 512K to 64M, as in 4M"),
        ("journal,keep=1", "option keep: journal takes priority, tag, max-line, annotation, "
         "json, join, policy, buffer"),
        ("journal-stream,keep=1",
         "option keep: journal-stream takes priority, tag, policy, buffer"),
        ("file,keep=2:/p", "option keep: has no effect without max-size"),
        ("file,max-size=1M,max-size=2M:/p", "option max-size: given twice"),
        *(
            (f"file,max-size={size}:/p",
             f"option max-size: '{size}' is not a size from 64K to 1T, as in 10M")
            for size in ["", "0", "63k", "65535", "1.5M", "-1M", "1025G", "²M", "10mm", "10bM",
                         "10 M", "10ib", "10i", "M", "10P", "2T"]
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
            (
                f"journal,max-line={size}",
                f"option max-line: '{size}' is not a size from 1K to 16M, as in 64K",
            )
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


@pytest.mark.parametrize(
    ("size", "max_bytes"),
    [
        *((f"10{unit}", 10 << 20) for unit in ("m", "M", "mb", "MB", "Mb", "mib", "MiB", "MIB")),
        *((f"100{unit}", 100 << 10) for unit in ("k", "K", "kB", "KB", "KiB")),
        *((f"1{unit}", 1 << 30) for unit in ("g", "G", "GB", "GiB")),
        *((f"1{unit}", 1 << 40) for unit in ("t", "T", "TiB")),
        *((f"65536{unit}", 65536) for unit in ("", "b", "B")),
    ],
)
def test_sizes_have_the_units_of_systemd_and_docker(size: str, max_bytes: int) -> None:
    assert parse_sink(f"cri,max-size={size}:/p") == SinkSpec(
        SinkKind.CRI, "/p", max_bytes=max_bytes
    )


def test_every_option_that_is_a_size_takes_them() -> None:
    sink = parse_sink("journal,max-line=64kb,policy=drop-old,buffer=4mb")
    assert (sink.max_line_bytes, sink.buffer_bytes) == (64 << 10, 4 << 20)


_KINDS = "there are null, path, file, cri, journal, journal-stream, passthrough"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jornal", f"no kind is called jornal (did you mean journal?); {_KINDS}; "
         "a path has a slash in it, as in ./jornal"),
        ("fil:/var/log/web", f"no kind is called fil (did you mean file?); {_KINDS}; "
         "a path has a slash in it, as in ./fil:/var/log/web"),
        ("JOURNAL,tag=web", f"no kind is called JOURNAL (did you mean journal?); {_KINDS}; "
         "a path has a slash in it, as in ./JOURNAL,tag=web"),
        ("stdout", f"no kind is called stdout; {_KINDS}; a path has a slash in it, as in ./stdout"),
        ("/run/x.fifo,policy=drop-new", "policy=drop-new follows the path; "
         "options come before the colon: path,policy=drop-new:/run/x.fifo"),
        ("./x,keep=1", "keep=1 follows the path; "
         "options come before the colon: path,keep=1:./x"),
    ],
)  # fmt: skip
def test_what_a_person_has_mistyped_is_no_path(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_typed(text)
    assert str(caught.value) == f"sink {text}: {message}"


@pytest.mark.parametrize("text", ["jornal", "fil:/x", "./x,keep=1", "no/such,keep=1"])
def test_an_engines_setting_may_be_any_path(text: str) -> None:
    assert parse_sink(text) == SinkSpec(SinkKind.PATH, text)


@pytest.mark.parametrize(
    "text",
    ["", "null", "/dev/null", "journal,tag=a", "file:log", "path:log", "./jornal", "a/b", "/run/x",
     "/run/x,y", "/run/x,size=1", "./file:x", "cri:/x,keep/y", "/a,keep=1/b"],
)  # fmt: skip
def test_what_a_person_has_typed_well_means_the_same_everywhere(text: str) -> None:
    assert check_typed(text) == parse_sink(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("cri:/x,max-size=1", "cri,max-size=1:/x"),
        ("cri,keep=2:/x,max-size=1M", "cri,keep=2,max-size=1M:/x"),
        ("file:/x,max-size=1M,keep=3", "file,max-size=1M,keep=3:/x"),
        ("path:/x,policy=drop-old", "path,policy=drop-old:/x"),
        ("file:/x,y,tag=web", "file,tag=web:/x,y"),
    ],
)
def test_options_behind_the_path_get_a_hint(text: str, hint: str) -> None:
    with pytest.raises(UsageError, match="follows the path; ") as caught:
        parse_sink(text)
    assert str(caught.value).endswith(f"options come before the colon: {hint}")


@pytest.mark.parametrize("text", ["", "web", "a b,c:d=e%", "ü\n\udcff", "%41", "-./_"])
def test_any_text_can_be_quoted(text: str) -> None:
    for option, name in (("name", "name"), ("log-tag", "tag")):
        assert getattr(parse_sink(f"journal,{option}={quoted(text)}"), name) == text
    assert parse_sink(f"journal,label=X={quoted(text)}").labels == (("X", text),)


@pytest.mark.parametrize(
    "text",
    ["journal,name=%4", "journal,name=%zz", "journal,label=a=1", "journal,label=A",
     "journal,label==1", "journal,partial=yes", "k8s-file,max-size=0:/p",
     "k8s-file,total=1k:/p", "k8s-file:"],
)  # fmt: skip
def test_what_an_engine_would_not_write_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_sink(text)


@pytest.mark.parametrize("text", ["attach", "k8s-file:x"])
def test_the_kinds_of_a_front_end_are_not_for_people(text: str) -> None:
    with pytest.raises(UsageError, match="no kind is called"):
        check_typed(text)
