"""What a shim has around its parts: a loop, a reaper, signals, a log and /dev/null."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from supervisor.linux import fds
from supervisor.linux.event_loop import Loop
from supervisor.linux.reaper import Reaper
from supervisor.linux.signals import SignalRouter
from supervisor.state.log import Log
from tests.harness import shim_log, waiting

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Rig:
    """Owns them all until `close`; `run_until` fails after `waiting.LIMIT_S`."""

    def __init__(self, directory: Path) -> None:
        """Write the log to `directory`."""
        self.log_path = directory / "yard-log.json"
        self.loop = Loop()
        self.reaper = Reaper()
        flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        self.log = Log(fds.Fd(os.open(self.log_path, flags, 0o600)))
        self.null = fds.Fd(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        self._router = SignalRouter(has_job_control=False)
        self.loop.watch(self._router.fileno(), lambda: self._router.dispatch(self._on_signal))

    def _on_signal(self, signum: int) -> None:
        if signum == signal.SIGCHLD:
            self.reaper.reap()

    def run_until(self, is_over: Callable[[], bool]) -> None:
        """Serve events until `is_over`."""
        late: list[bool] = []
        limit = self.loop.timer(lambda: late.append(True))
        limit.start(waiting.LIMIT_S)
        self.loop.run_until(lambda: is_over() or bool(late))
        limit.cancel()
        if late:
            raise TimeoutError("the loop did not get there")

    def messages(self, level: str | None = None) -> list[str]:
        """Return what has been logged."""
        return shim_log.messages(self.log_path, level)

    def close(self) -> None:
        """Close everything."""
        self.loop.close()
        self._router.close()
        self.log.close()
        self.null.close()
