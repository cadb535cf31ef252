"""A person at a terminal who runs `forkshim run`: a pseudoterminal and a session of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
from typing import TYPE_CHECKING, Any

from tests.harness import waiting
from tests.harness.engine import FORKSHIM

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


class Person:
    """Starts `forkshim run ARGS` with a new terminal as stdin, stdout and stderr. Owns both."""

    def __init__(
        self, *args: str | Path, columns: int = 80, rows: int = 24, program: Path = FORKSHIM
    ) -> None:
        """Open the terminal and start the command."""
        self.ptmx_fd, self.pts_fd = pty.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(self.pts_fd)
        self.command = subprocess.Popen(
            [program, "run", *args],
            stdin=self.pts_fd,
            stdout=self.pts_fd,
            stderr=self.pts_fd,
            start_new_session=True,
            preexec_fn=self._take_terminal,
        )

    def _take_terminal(self) -> None:
        fcntl.ioctl(self.pts_fd, termios.TIOCSCTTY, 0)

    def __enter__(self) -> Person:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the terminal and end the command, if it has not ended."""
        if self.command.poll() is None:
            self.command.send_signal(signal.SIGTERM)
            try:
                self.command.wait(waiting.LIMIT_S)
            except subprocess.TimeoutExpired:
                self.command.kill()
                self.command.wait()
        os.close(self.ptmx_fd)
        os.close(self.pts_fd)

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.ptmx_fd, keys)

    def see(self, ending: bytes) -> bytes:
        """Read the screen until `ending` has appeared."""
        return waiting.read_until(self.ptmx_fd, ending)

    def resize(self, columns: int, rows: int) -> None:
        """Change the window; the foreground process group gets SIGWINCH."""
        fcntl.ioctl(self.ptmx_fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait(self) -> int:
        """Wait for the command; returns its exit status as subprocess does."""
        return self.command.wait(waiting.LIMIT_S)

    @property
    def has_its_terminal_back(self) -> bool:
        """Whether the terminal's attributes are those from before the command."""
        now: list[Any] = termios.tcgetattr(self.pts_fd)
        return now == self.before
