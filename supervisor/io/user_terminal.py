"""The user's terminal, while it is joined to the container's (`forkshim run -t -i`)."""

from __future__ import annotations

import fcntl
import os
import termios
import tty

from supervisor.oci import console_socket
from workers.copy.stdin import RawTerminal


class UserTerminal:
    """The terminal on one of the descriptors 0 to 2, borrowed. Owns a duplicate while raw."""

    def __init__(self, fd: int, *, is_input: bool) -> None:
        """With `is_input` the container gets the keys unchanged, which needs raw mode."""
        self._fd = fd
        self._is_input = is_input
        self._raw: RawTerminal | None = None

    def size(self) -> tuple[int, int]:
        """Return (columns, rows)."""
        return console_socket.size(self._fd)

    def make_raw(self) -> RawTerminal | None:
        """Switch to raw mode, if the terminal is an input. `restore` undoes it.

        Returns:
            The descriptor and the saved attributes, borrowed; None if the terminal is no input.

        Raises:
            termios.error: EIO: the terminal was hung up.

        Source: cfmakeraw in termios(3). It switches off output processing, too: the container's
        own terminal has added the carriage returns already.
        """
        if self._is_input and self._raw is None:
            # The worker of stdin restores the terminal if the supervisor dies. It has /dev/null
            # as 0 to 2, so it needs a duplicate.
            fd = fcntl.fcntl(self._fd, fcntl.F_DUPFD_CLOEXEC, 3)
            self._raw = RawTerminal(fd, termios.tcgetattr(fd))
            tty.setraw(fd, termios.TCSANOW)
        return self._raw

    def restore(self) -> None:
        """Restore the terminal's attributes. A second call does nothing."""
        raw, self._raw = self._raw, None
        if raw is None:
            return
        try:
            # Not TCSADRAIN, which would block on a terminal that was stopped with ^S.
            termios.tcsetattr(raw.fd, termios.TCSANOW, raw.saved)
        except termios.error:
            pass  # EIO: the terminal was hung up, and has no attributes any more
        finally:
            os.close(raw.fd)


def find_terminal(*, is_input: bool) -> UserTerminal | None:
    """Return the first terminal among the descriptors 0 to 2; None if there is none.

    Only descriptor 0 is an input.
    """
    for fd in range(3):
        if os.isatty(fd):
            return UserTerminal(fd, is_input=is_input and fd == 0)
    return None
