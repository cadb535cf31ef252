"""What a supervisor has written to its shim-log.json."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

from tests.harness import waiting

if TYPE_CHECKING:
    from pathlib import Path


def messages(path: Path, level: str | None = None) -> list[str]:
    """Return the messages, of one level or all; each line has to be valid JSON."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [record["msg"] for record in records if level in (None, record["level"])]


def reload(pid: int, path: Path) -> None:
    """Reload the supervisor, whose log this is, and wait until it has been done."""

    def count(words: str) -> int:
        return path.read_text().count(words)

    before, refused = count(" goes on, process "), count("not reloaded")
    os.kill(pid, signal.SIGHUP)
    waiting.wait_path(
        path,
        lambda _path: count(" goes on, process ") > before or count("not reloaded") > refused,
    )
    assert count(" goes on, process ") > before, messages(path)[-2:]
