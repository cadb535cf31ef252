"""What a stdout or stderr setting means: `containerdStdout`, `containerdStderr`, `--log`. Pure.

- `PATH`: a fifo, a device or an existing file, opened as it is: not created, not truncated
- `file:PATH`: a regular file, created with mode 0640 if missing, written at its end
- `null`: nowhere; so are "" and /dev/null
- `passthrough`: the descriptor 1 or 2 that the supervisor was started with
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass


class SinkKind(enum.Enum):
    """How a sink is opened."""

    NULL = "null"
    PATH = "path"
    FILE = "file"
    PASSTHROUGH = "passthrough"


@dataclass(frozen=True, slots=True)
class Sink:
    """Where a stream goes; `path` is empty for NULL and PASSTHROUGH."""

    kind: SinkKind
    path: str = ""

    def __str__(self) -> str:
        """Name it in a log line."""
        return self.path or self.kind.value


def parse_sink(text: str) -> Sink:
    """Read the setting; any word that is none of the others is a path."""
    if text in ("", "null", os.devnull):
        return Sink(SinkKind.NULL)
    if text == "passthrough":
        return Sink(SinkKind.PASSTHROUGH)
    if text.startswith("file:"):
        return Sink(SinkKind.FILE, text.removeprefix("file:"))
    return Sink(SinkKind.PATH, text)
