"""The person's own terminal, while it is joined to the container's (`forkshim run -t -i`)."""

from __future__ import annotations

import fcntl
import os
import termios
import tty

from supervisor.oci import console_socket
from workers.copy.stdin import RawTerminal


class UserTerminal:
    """The terminal on one of our descriptors 0 to 2, borrowed. Owns a duplicate while raw."""

    def __init__(self, fd: int, *, is_input: bool) -> None:
        """With `is_input` its keys go to the container, unchanged, which takes raw mode."""
        self._fd = fd
        self._is_input = is_input
        self._raw: RawTerminal | None = None

    def size(self) -> tuple[int, int]:
        """Return (columns, rows)."""
        return console_socket.size(self._fd)

    def make_raw(self) -> RawTerminal | None:
        """Switch to raw mode, if keys are taken; undo it with `restore`.

        Source: termios(3), cfmakeraw. Output processing goes too: the container's own terminal
        has put carriage returns in already.
        """
        if self._is_input and self._raw is None:
            # A duplicate: the stdin worker, who undoes it if we die, has /dev/null as 0 to 2.
            fd = fcntl.fcntl(self._fd, fcntl.F_DUPFD_CLOEXEC, 3)
            self._raw = RawTerminal(fd, termios.tcgetattr(fd))
            tty.setraw(fd, termios.TCSANOW)
        return self._raw

    def restore(self) -> None:
        """Give the terminal back as it was. A second call does nothing."""
        raw, self._raw = self._raw, None
        if raw is None:
            return
        try:
            # Not TCSADRAIN: a terminal that was stopped with ^S would keep us here.
            termios.tcsetattr(raw.fd, termios.TCSANOW, raw.saved)
        except termios.error:
            pass  # EIO: it was hung up, there is nothing to give back
        finally:
            os.close(raw.fd)


def find_terminal(*, is_input: bool) -> UserTerminal | None:
    """Return the terminal among descriptors 0 to 2, or None.

    Keys are taken only from a terminal that is descriptor 0.
    """
    for fd in range(3):
        if os.isatty(fd):
            return UserTerminal(fd, is_input=is_input and fd == 0)
    return None
