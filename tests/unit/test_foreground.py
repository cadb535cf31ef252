"""What a supervisor does about its pid file."""

from __future__ import annotations

import errno
import os
from typing import Any

from supervisor.cli import foreground


class Full:
    """A claim on a full disk, and a log."""

    path = "/run/forkshim/web"

    def __init__(self) -> None:
        self.said: list[str] = []
        self.has_pid = True

    def write_pid(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def remove_pid(self) -> None:
        self.has_pid = False

    def warning(self, message: str) -> None:
        self.said.append(message)


def test_a_pid_file_that_cannot_be_written_is_told_and_names_no_other_process() -> None:
    full: Any = Full()
    foreground.write_pid(full, full)
    assert full.said == [
        "write /run/forkshim/web/supervisor.pid: no space left on device; there is no such file now"
    ]
    assert not full.has_pid
