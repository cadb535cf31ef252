"""Writes a small file for other processes. The supervisor goes on if that fails."""

from __future__ import annotations

from supervisor.linux.errors import reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.linux.event_loop import Loop
    from supervisor.state.log import Log

RETRY_S = 5.0


class RetriedFile:
    """Writes one file, and repeats that until it succeeds: a disk may be full for some time."""

    def __init__(self, loop: Loop, log: Log, name: str, write: Callable[[], None]) -> None:
        """Borrow everything. `write` may raise OSError; `name` is for the log."""
        self._log = log
        self._name = name
        self._write = write
        self._timer = loop.timer(self.write)
        self._failures = 0
        self._why = ""

    @property
    def is_missing(self) -> bool:
        """Whether the last attempt has failed."""
        return self._failures > 0

    def write(self) -> None:
        """Write the file now. After an error, log it once and try again every 5 s."""
        self._timer.cancel()
        try:
            self._write()
        except OSError as error:
            self._failures += 1
            self._why = reason(error)
            if self._failures == 1:
                again = f"trying again every {RETRY_S:g} s"
                self._log.warning(f"write {self._name}: {self._why}; {again}")
            self._timer.start(RETRY_S)
            return
        if self._failures:
            # With the reason: the log may be on the same full disk.
            failed = f"{self._failures} failures ({self._why})"
            self._log.notice(f"write {self._name}: done, after {failed}")
            self._failures = 0

    def cancel(self) -> None:
        """Cancel further attempts."""
        self._timer.cancel()
