"""The bundle, or the directory of an exec session, and the fifos that engines use in it.

The names go by a descriptor: the directory may be renamed or removed meanwhile.
"""

from __future__ import annotations

import os
from contextlib import suppress

from supervisor.linux import fds
from supervisor.linux.errors import ShimError, reason

_FIFO_MODE = 0o660


class BundleFiles:
    """The directory. Owns its descriptor until `close`."""

    def __init__(self, path: str) -> None:
        """Open the directory.

        Raises:
            ShimError: It cannot be opened.
        """
        try:
            self._fd = fds.Fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            raise ShimError(f"open {path}: {reason(error)}") from error
        self.path = path

    @property
    def by_descriptor(self) -> str:
        """A path of the directory, for sockets: short, and the same after a rename."""
        return f"/proc/self/fd/{self._fd.fileno()}"

    def make_fifo(self, name: str) -> fds.Fd:
        """Make a fifo in the place of what has its name; opened so that its end is never seen.

        Raises:
            ShimError: It cannot be made.
        """
        try:
            self._remove(name)
            os.mkfifo(name, _FIFO_MODE, dir_fd=self._fd.fileno())
            flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
            return fds.Fd(os.open(name, flags, dir_fd=self._fd.fileno()))
        except OSError as error:
            raise ShimError(f"{name} in {self.path}: {reason(error)}") from error

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd.fileno())

    def close(self) -> None:
        """Close the directory; the fifos stay, as conmon's do."""
        self._fd.close()
