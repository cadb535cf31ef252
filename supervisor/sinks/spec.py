"""The syntax of a sink setting: `containerdStdout`, `containerdStderr`, `--log`. Pure.

    KIND[,OPTION=VALUE]...[:PATH]

- `file:PATH`: a regular file, created with mode 0640 if missing, appended to. With `max-size=10M`
  the worker rotates it between two lines and keeps `keep=5` old files
- `cri:PATH`: the same in the log format of Kubernetes, with the same options
- `journal`: native records; `priority=5` for lines without a priority, `tag=web`, `max-line=1M`,
  `annotation=com.example.*` (may be repeated), `json=yes`, `join=indented`
- `journal-stream`: lines, as systemd's own StandardOutput=journal; `priority=5`, `tag=web`
- `k8s-file:PATH`: `cri:` as conmon writes it, only for conmon's front end: local times, and any
  `max-size`. Without `keep` an empty file replaces a full one. `total=16777216` is the limit of all
  bytes that are written, `sync=yes` asks for an fsync(2) at the end
- `attach`: packets to the attach clients of conmon's front end; only that front end uses it
- `journal`, more options for the same front end: `name=`, `log-tag=` and `label=NAME=` take values
  that `quoted` has made. `partial=no` omits `CONTAINER_PARTIAL_MESSAGE`. `prefix=no` keeps `<N>` as
  text
- `null`: discards the stream; so do "" and /dev/null
- `passthrough`: descriptor 1 or 2 of the supervisor
- `path:PATH` or any other PATH: a fifo, a device or an existing file, neither created nor
  truncated. A path with the name of a kind is `./null`

Each kind but `null` takes `policy=block`, `drop-new` or `drop-old` for a sink that does not accept
data. The last two take `buffer=1M`, the size of the buffer before the sink.

A path may have any characters, but no option at its end: options precede the colon. A bare path
that a user types must have a slash (`check_typed`). An engine's setting may be any path.

Sizes are whole numbers of bytes, or of k, m, g or t, followed by nothing, `i`, `b` or `ib`, in
either case. All units are powers of 1024, as in systemd (SystemMaxFileSize=10M) and Docker
(max-size=10m).
"""

from __future__ import annotations

import os
from enum import Enum

from supervisor.linux.errors import UsageError
from workers.common.records import dataclass, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    _Value = int | str | tuple[Any, ...]

DEFAULT_KEEP = 5
DEFAULT_MAX_LINE_BYTES = 1 << 20
DEFAULT_BUFFER_BYTES = 1 << 20


class SinkKind(Enum):
    """The kind of a sink."""

    NULL = "null"
    PATH = "path"
    FILE = "file"
    CRI = "cri"
    K8S_FILE = "k8s-file"
    JOURNAL = "journal"
    JOURNAL_STREAM = "journal-stream"
    PASSTHROUGH = "passthrough"
    ATTACH = "attach"


@dataclass(frozen=True, slots=True)
class SinkSpec:
    """The destination of a stream. It has many attributes: each option of each kind.

    Attributes:
        kind: Determines which of the other attributes are used.
        path: For PATH, FILE, CRI and K8S_FILE; else empty.
        max_bytes: Size at which a FILE, CRI or K8S_FILE is rotated; 0 for no rotation.
        keep: How many old files stay after a rotation.
        total_bytes: Bytes after which nothing more is written to a K8S_FILE; 0 for no limit.
        is_synced: A K8S_FILE is synced at the end of a stream.
        priority: For JOURNAL and JOURNAL_STREAM, 0 to 7; None for the stream's default.
        tag: For JOURNAL and JOURNAL_STREAM; "" for none.
        max_line_bytes: The longest line that is a single record of a JOURNAL.
        annotations: Patterns of the bundle's annotations that become fields of a JOURNAL.
        is_json: Lines of a JOURNAL that are JSON objects become fields.
        is_joined: A line of a JOURNAL that begins with a blank continues the line before.
        name: CONTAINER_NAME of a JOURNAL; "" for the container id.
        labels: More fields of a JOURNAL, pairs of name and value.
        marks_partial: Records of a JOURNAL that end within a line have a field for that.
        reads_priority: A line's prefix, `<0>` to `<7>`, is its priority in a JOURNAL.
        policy: "block", "drop-new" or "drop-old", see `workers.lines.drop`.
        buffer_bytes: Size of the buffer with the last two.
    """

    kind: SinkKind
    path: str = ""
    max_bytes: int = 0
    keep: int = DEFAULT_KEEP
    total_bytes: int = 0
    is_synced: bool = False
    priority: int | None = None
    tag: str = ""
    max_line_bytes: int = DEFAULT_MAX_LINE_BYTES
    annotations: tuple[str, ...] = ()
    is_json: bool = False
    is_joined: bool = False
    name: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    marks_partial: bool = True
    reads_priority: bool = True
    policy: str = "block"
    buffer_bytes: int = DEFAULT_BUFFER_BYTES

    @property
    def has_line_sink(self) -> bool:
        """Whether the stream needs a `Sink`, not only a descriptor; see `supervisor.sinks.open`."""
        return self.kind in _WITH_LINE_SINK or self.max_bytes > 0 or self.policy != "block"

    @property
    def is_descriptor(self) -> bool:
        """Whether the stream needs a descriptor, alone or behind its `Sink`."""
        return self.kind in (SinkKind.PATH, SinkKind.PASSTHROUGH) or not self.has_line_sink

    def __str__(self) -> str:
        """Return the name of the sink in a log line."""
        return self.path or self.kind.value


def parse_sink(text: str) -> SinkSpec:
    """Parse a setting. A word that is no kind is a path.

    Raises:
        UsageError: The kind does not take the option or the path.
    """
    if text in ("", os.devnull):
        return SinkSpec(SinkKind.NULL)
    head, colon, path = text.partition(":")
    word, *settings = head.split(",")
    kind = _KINDS.get(word)
    if kind is None:
        return SinkSpec(SinkKind.PATH, text)
    if kind is SinkKind.K8S_FILE and path:  # an engine's path, which may look like options
        return _with_options(text, SinkSpec(kind, path, keep=0), settings)
    _refuse_options_at_the_end(text, head, path)
    if kind in _WITH_PATH and not path:
        raise UsageError(f"sink {text}: {word} needs a path, as in {word}:/var/log/web")
    if kind not in _WITH_PATH and colon:
        raise UsageError(f"sink {text}: {word} takes no path")
    return _with_options(text, SinkSpec(kind, path), settings)


def quoted(value: str) -> str:
    """Return `value` for the options `name`, `label` and `log-tag`, which take any text."""
    return "".join(
        chr(byte) if chr(byte) in _PLAIN else f"%{byte:02X}"
        for byte in value.encode(errors="surrogateescape")
    )


def is_journal_setting(text: str) -> bool:
    """Return whether a setting names the journal. The rest of it may be invalid."""
    return _KINDS.get(_word(text)) in (SinkKind.JOURNAL, SinkKind.JOURNAL_STREAM)


def check_typed(text: str) -> SinkSpec:
    """Parse a setting that a user has typed. A bare path must have a slash.

    Raises:
        UsageError: As `parse_sink`; the kind is unknown; or options follow a bare path.
    """
    sink = parse_sink(text)
    if not text or _word(text) in _TYPED_KINDS:
        return sink
    word = _word(text)
    if "/" not in word:
        import difflib  # only for a mistyped kind

        close = difflib.get_close_matches(word.lower(), _TYPED_KINDS, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(
            f"sink {text}: no kind is called {word}{meant}; there are {', '.join(_TYPED_KINDS)}; "
            f"a path has a slash in it, as in ./{text}"
        )
    _refuse_options_at_the_end(text, "path", text)
    return sink


def _word(text: str) -> str:
    return text.partition(":")[0].partition(",")[0]


def _refuse_options_at_the_end(text: str, head: str, path: str) -> None:
    options: list[str] = []
    place, comma, last = path.rpartition(",")
    while comma and _is_option(last):
        options.insert(0, last)
        path = place
        place, comma, last = path.rpartition(",")
    if options:
        raise UsageError(
            f"sink {text}: {','.join(options)} follows the path; "
            f"options come before the colon: {','.join([head, *options])}:{path}"
        )


def _is_option(word: str) -> bool:
    name, equals, value = word.partition("=")
    return name in _OPTION_NAMES and bool(equals) and not set("/:").intersection(value)


def with_absolute_path(text: str, directory: str) -> str:
    """Return the setting with an absolute path, if it has a path.

    Raises:
        UsageError: As `parse_sink`.
    """
    path = parse_sink(text).path
    return text.removesuffix(path) + os.path.join(directory, path) if path else text


def _with_options(text: str, sink: SinkSpec, settings: list[str]) -> SinkSpec:
    allowed = _OPTIONS.get(sink.kind, {})
    values: dict[str, _Value] = {}
    for setting in settings:
        name, _equals, value = setting.partition("=")
        if name not in allowed:
            typed = [each for each in allowed if each not in _OF_FRONT_ENDS]
            known = ", ".join(typed) or "no options"
            raise UsageError(f"sink {text}: option {name}: {sink.kind.value} takes {known}")
        option = allowed[name]
        before = values.get(option.attribute, ())
        if not isinstance(before, tuple):
            raise UsageError(f"sink {text}: option {name}: given twice")
        parsed = option.read(value)
        if parsed is None:
            raise UsageError(f"sink {text}: option {name}: {value!r} is not {option.values}")
        values[option.attribute] = before + parsed if isinstance(parsed, tuple) else parsed
    if "keep" in values and sink.kind is not SinkKind.K8S_FILE and "max_bytes" not in values:
        raise UsageError(f"sink {text}: option keep: has no effect without max-size")
    if "buffer_bytes" in values and values.get("policy", "block") == "block":
        raise UsageError(f"sink {text}: option buffer: has no effect without drop-new or drop-old")
    return replace(sink, **values)  # type: ignore[arg-type] # as `_OPTIONS` pairs them


@dataclass(frozen=True, slots=True)
class _Option:
    """The attribute of an option, its parser (None if invalid), and its valid values."""

    attribute: str
    read: Callable[[str], _Value | None]
    values: str


_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_LETTERS = "bBgGiIkKmMtT"
_LONGEST_WORD = 128
_LONGEST_QUOTED = 64 << 10


def _size(least: int, most: int) -> Callable[[str], int | None]:
    def read(text: str) -> int | None:
        digits = text.rstrip(_LETTERS)
        number, unit = _decimal(digits), text[len(digits) :].lower()
        letter = unit.removesuffix("b").removesuffix("i")
        if number is None or letter not in _UNITS or unit in ("i", "ib"):
            return None
        size = number * _UNITS[letter]
        return size if least <= size <= most else None

    return read


def _number(least: int, most: int) -> Callable[[str], int | None]:
    def read(text: str) -> int | None:
        number = _decimal(text)
        return number if number is not None and least <= number <= most else None

    return read


def _tag(text: str) -> str | None:
    return text if _is_word(text) else None


def _pattern(text: str) -> tuple[str, ...] | None:
    return (text,) if _is_word(text) else None


def _is_word(text: str) -> bool:
    return 0 < len(text) <= _LONGEST_WORD and all("!" <= character <= "~" for character in text)


def _decimal(text: str) -> int | None:
    """Return the number, or None: int() also accepts signs, blanks and other alphabets."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 19 else None


_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-./")
_LABEL_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


def _quoted(text: str) -> str | None:
    """Return the text that `quoted` has encoded; None if `text` is no such encoding."""
    head, *parts = text.split("%")
    content = head.encode(errors="surrogateescape")
    for part in parts:
        try:
            content += bytes.fromhex(part[:2]) + part[2:].encode(errors="surrogateescape")
        except ValueError:
            return None
    return content.decode(errors="surrogateescape") if len(text) <= _LONGEST_QUOTED else None


def _label(text: str) -> tuple[tuple[str, str], ...] | None:
    name, equals, value = text.partition("=")
    unquoted = _quoted(value)
    if not name or not equals or unquoted is None or set(name) - _LABEL_NAME:
        return None
    return ((name, unquoted),)


def _no(text: str) -> bool | None:
    return False if text == "no" else None


def _only(word: str) -> Callable[[str], bool | None]:
    def read(text: str) -> bool | None:
        return True if text == word else None

    return read


def _policy(text: str) -> str | None:
    return text if text in ("block", "drop-new", "drop-old") else None


_POLICY = {
    "policy": _Option("policy", _policy, "block, drop-new or drop-old"),
    "buffer": _Option(
        "buffer_bytes", _size(512 << 10, 64 << 20), "a size from 512K to 64M, as in 4M"
    ),
}
_ROTATION = {
    "max-size": _Option("max_bytes", _size(64 << 10, 1 << 40), "a size from 64K to 1T, as in 10M"),
    "keep": _Option("keep", _number(1, 1000), "a number from 1 to 1000"),
}
_PRIORITY = _Option("priority", _number(0, 7), "a number from 0 (emerg) to 7 (debug)")
_TAG = _Option("tag", _tag, "1 to 128 characters of ASCII without blanks")
_OPTIONS: dict[SinkKind, dict[str, _Option]] = {
    SinkKind.FILE: {**_ROTATION, **_POLICY},
    SinkKind.CRI: {**_ROTATION, **_POLICY},
    SinkKind.K8S_FILE: {
        "max-size": _Option("max_bytes", _number(1, 1 << 62), "a number of bytes"),
        "keep": _Option("keep", _number(0, 1 << 31), "a number"),
        "total": _Option("total_bytes", _number(1, 1 << 62), "a number of bytes"),
        "sync": _Option("is_synced", _only("yes"), "yes"),
        **_POLICY,
    },
    SinkKind.JOURNAL: {
        "priority": _PRIORITY,
        "tag": _TAG,
        "max-line": _Option(
            "max_line_bytes", _size(1 << 10, 16 << 20), "a size from 1K to 16M, as in 64K"
        ),
        "annotation": _Option("annotations", _pattern, "a pattern of names"),
        "json": _Option("is_json", _only("yes"), "yes"),
        "join": _Option("is_joined", _only("indented"), "indented"),
        "name": _Option("name", _quoted, "a quoted name"),
        "log-tag": _Option("tag", _quoted, "a quoted tag"),
        "label": _Option("labels", _label, "NAME=VALUE with a quoted value"),
        "partial": _Option("marks_partial", _no, "no"),
        "prefix": _Option("reads_priority", _no, "no"),
        **_POLICY,
    },
    SinkKind.JOURNAL_STREAM: {"priority": _PRIORITY, "tag": _TAG, **_POLICY},
    SinkKind.PASSTHROUGH: _POLICY,
    SinkKind.PATH: _POLICY,
}
_OF_FRONT_ENDS = frozenset({"name", "log-tag", "label", "partial", "prefix"})
"""Options whose values users do not type. Error messages do not list them."""

_OPTION_NAMES = frozenset(name for options in _OPTIONS.values() for name in options)
_KINDS = {kind.value: kind for kind in SinkKind}
_WITH_PATH = frozenset({SinkKind.FILE, SinkKind.CRI, SinkKind.K8S_FILE, SinkKind.PATH})
_TYPED_KINDS = [
    name for name, kind in _KINDS.items() if kind not in (SinkKind.ATTACH, SinkKind.K8S_FILE)
]
_WITH_LINE_SINK = frozenset(
    {
        SinkKind.CRI,
        SinkKind.K8S_FILE,
        SinkKind.JOURNAL,
        SinkKind.JOURNAL_STREAM,
        SinkKind.ATTACH,
    }
)
