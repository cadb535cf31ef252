"""Where a client wants an output: a fifo, a file, or a program that logs. Pure.

The scheme of `stdout` decides; without one it is a fifo. A URI is split as Go's net/url does it:
the path and the query are percent-decoded, `+` in the query is a space.

Source: docs/runtime-v2.md of containerd, "Logging"; pkg/process/io.go, NewBinaryCmd.
"""

from __future__ import annotations

from supervisor.linux.errors import UsageError
from workers.common.records import dataclass

_HEX = frozenset("0123456789abcdefABCDEF")


@dataclass(frozen=True, slots=True)
class FifoTarget:
    """A fifo of the client; "" discards the output."""

    path: str


@dataclass(frozen=True, slots=True)
class FileTarget:
    """A file that stdout and stderr are both appended to."""

    path: str


@dataclass(frozen=True, slots=True)
class LoggerTarget:
    """A program that reads stdout at descriptor 3 and stderr at 4.

    Attributes:
        program: Its path.
        arguments: What follows its name: each key of the query and its first value.
        must_say_ready: It has to write a byte to descriptor 5; end of file is a failure.
    """

    program: str
    arguments: tuple[str, ...]
    must_say_ready: bool


Target = FifoTarget | FileTarget | LoggerTarget


def parse_target(uri: str) -> Target:
    """Read the `stdout` or `stderr` of a request.

    Raises:
        UsageError: An unknown scheme, no absolute path, or a malformed escape.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or not scheme.replace("-", "").replace("+", "").replace(".", "").isalnum():
        return FifoTarget(uri)
    if scheme == "fifo":
        return FifoTarget(rest)
    if scheme not in ("file", "binary", "binary-v2"):
        raise UsageError(f"{uri}: unknown scheme {scheme!r}")
    where, _, query = rest.partition("#")[0].partition("?")
    path = _decoded(uri, where)
    if not path.startswith("/") or "\0" in path:
        raise UsageError(f"{uri}: no absolute path")
    if scheme == "file":
        return FileTarget(path)
    return LoggerTarget(path, _arguments(uri, query), scheme == "binary-v2")


def _arguments(uri: str, query: str) -> tuple[str, ...]:
    found: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        key, _, value = pair.replace("+", " ").partition("=")
        found.setdefault(_decoded(uri, key), _decoded(uri, value))
    if any("\0" in text for pair in found.items() for text in pair):
        raise UsageError(f"{uri}: a null byte")
    return tuple(text for pair in found.items() for text in pair)


def _decoded(uri: str, text: str) -> str:
    first, *escaped = text.split("%")
    raw = first.encode(errors="surrogateescape")
    for part in escaped:
        if len(part) < 2 or not _HEX.issuperset(part[:2]):
            raise UsageError(f"{uri}: invalid escape {'%' + part[:2]!r}")
        raw += bytes.fromhex(part[:2]) + part[2:].encode(errors="surrogateescape")
    return raw.decode(errors="surrogateescape")
