"""The command line of a shim: flags as Go's `flag` package reads them, then the action. Pure.

`-x v`, `--x v` and `-x=v` are the same; a boolean flag takes its value only after `=`. Flags end at
the first word that is none, or after `--`.

Source: docs/runtime-v2.md of containerd; https://pkg.go.dev/flag, Command line flag syntax.
"""

from __future__ import annotations

from supervisor.linux.errors import UsageError
from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_TEXT = {
    "namespace": "namespace",
    "id": "container_id",
    "address": "address",
    "publish-binary": "publish_binary",
    "bundle": "bundle",
    "socket": "",
    "debug-socket": "",
}
_SWITCHES = {
    "debug": "is_debug",
    "v": "wants_version",
    "version": "wants_version",
    "info": "wants_info",
}
_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")


@dataclass(frozen=True, slots=True)
class Invocation:
    """One run of the shim's program.

    Attributes:
        action: `start`, `delete`, or "": serve, or what a switch says.
        namespace: containerd's.
        container_id: Of `start` and `delete`.
        address: containerd's socket.
        publish_binary: containerd's program.
        bundle: Of `delete`; else "", the current directory is the bundle.
        is_debug: The log has debug records.
        wants_version: Print the version and exit.
        wants_info: Print a RuntimeInfo and exit.
    """

    action: str = ""
    namespace: str = ""
    container_id: str = ""
    address: str = ""
    publish_binary: str = "containerd"
    bundle: str = ""
    is_debug: bool = False
    wants_version: bool = False
    wants_info: bool = False


def parse(words: Sequence[str]) -> Invocation:
    """Read the words after the program's name.

    Raises:
        UsageError: An unknown flag, one without its value, no namespace or no id for an action.
    """
    values: dict[str, str | bool] = {}
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        name, has_value, value = word.removeprefix("-").removeprefix("-").partition("=")
        if name in _SWITCHES:
            if has_value and value not in (*_TRUE, *_FALSE):
                raise UsageError(f"invalid boolean value {value!r} for -{name}")
            values[_SWITCHES[name]] = not has_value or value in _TRUE
        elif name in _TEXT:
            if not has_value:
                if not rest:
                    raise UsageError(f"flag needs an argument: -{name}")
                value = rest.pop(0)
            if _TEXT[name]:
                values[_TEXT[name]] = value
        else:
            raise UsageError(f"flag provided but not defined: -{name}")
    read = Invocation(**{"action": rest[0] if rest else "", **values})  # type: ignore[arg-type] # text and switches have their own names
    if read.action not in ("", "start", "delete"):
        raise UsageError(f"unknown action {read.action!r}: there are start and delete")
    if not (read.wants_version or read.wants_info):
        for flag, given in (("namespace", read.namespace), ("id", read.container_id)):
            # Both become parts of paths.
            if not given or "/" in given or given in (".", ".."):
                raise UsageError(f"-{flag} {given!r}: cannot be empty, a dot or have a slash")
    return read
