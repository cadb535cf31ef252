"""The words of `forkshim run` without argparse: whole options, as scripts and units write them.

argparse imports re, gettext and shutil: 47 million instructions (5 ms of a start) and 1 MB for the
life of each supervisor, which has read its words by then. So what is plain is read here, and
everything else (combined, wrong, --help) is left to it: tests/unit/test_quick.py has both read the
same lines.
"""

from __future__ import annotations

import math

from supervisor.cli.run import RunRequest
from supervisor.linux.signals import parse_signal
from supervisor.oci.command_line import absolute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

WHO_NOTIFIES = ("supervisor", "container")


def seconds(text: str) -> float:
    """Read a number of seconds.

    Raises:
        ValueError: It is none, or below 0 or without end.
    """
    number = float(text)
    if not 0 <= number < math.inf:
        raise ValueError(text)
    return number


def _who(text: str) -> str:
    if text not in WHO_NOTIFIES:
        raise ValueError(text)
    return text


_FLAGS = {
    "--adopt": "adopt",
    "--detach": "detach",
    "--interactive": "interactive",
    "--no-pivot": "no_pivot",
    "--terminal": "terminal",
    "-i": "interactive",
    "-t": "terminal",
}
_VALUES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "--bundle": ("bundle", str),
    "--exit-dir": ("exit_dir", str),
    "--log": ("log", str),
    "--root": ("root", str),
    "--runtime": ("runtime", absolute),
    "--runtime-arg": ("runtime_args", str),
    "--sdnotify": ("sdnotify", _who),
    "--stop-signal": ("stop_signal", parse_signal),
    "--stop-timeout": ("stop_timeout_s", seconds),
}
_REPEATABLE = "runtime_args"


def read(arguments: Sequence[str]) -> RunRequest | None:
    """Return what `run ...` asks for; None if that is for argparse to say."""
    if not arguments or arguments[0] != "run" or not all(map(str.isprintable, arguments)):
        return None
    found: dict[str, Any] = {_REPEATABLE: ()}
    words = iter(arguments[1:])
    for word in words:
        if word in _FLAGS:
            found[_FLAGS[word]] = True
        elif word.startswith("-"):
            option, equals, text = word.partition("=")
            name, read_text = _VALUES.get(option, ("", str))
            if not equals:
                text = next(words, "-")
            if not name or (not equals and text.startswith("-")):
                return None
            try:
                value = read_text(text)
            except ValueError:
                return None
            found[name] = (*found[name], value) if name == _REPEATABLE else value
        elif "container_id" in found:
            return None
        else:
            found["container_id"] = word
    return RunRequest(**found) if found.get("container_id") else None
