"""The bundle, or the directory of an exec session, and the fifos that engines use in it.

The names go by a descriptor: the directory may be renamed or removed meanwhile.
"""

from __future__ import annotations

import os
from contextlib import suppress

from supervisor.linux import fds
from supervisor.linux.errors import ShimError, describe, reason
from supervisor.state.directory import StateDirectory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from supervisor.frontends.conmon.options import Options
    from supervisor.state.log import Log
    from supervisor.systemd.notify_proxy import NotifyProxy

STATE_NAME = ".forkshim"
"""The directory of the supervisor's own files in a bundle."""

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


def make_notify_proxy(files: BundleFiles) -> NotifyProxy:
    """Make the container's socket in the directory that the engine mounts in the container.

    Raises:
        ShimError: The engine has not made the directory.
    """
    from supervisor.systemd.notify_proxy import DIRECTORY, NotifyProxy  # few containers have one

    try:
        return NotifyProxy.make_in(f"{files.by_descriptor}/{DIRECTORY}")
    except OSError as error:
        raise ShimError(f"{DIRECTORY}/ in {files.path}: {describe(error)}") from error


def open_state(files: BundleFiles | None, cid: str) -> StateDirectory:
    """Make the directory of the supervisor's own files: in the bundle, or for this process alone.

    Raises:
        ShimError: It cannot be made.
    """
    if files is not None:
        path = os.path.join(files.path, STATE_NAME)
    else:
        parent = os.environ.get("XDG_RUNTIME_DIR") or "/run"
        path = os.path.join(parent, "forkshim", "conmon", f"{cid[:64]}-{os.getpid()}")
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        state_dir = StateDirectory.open(path)
    except OSError as error:
        raise ShimError(f"{error.filename or path}: {describe(error)}") from error
    for name in os.listdir(state_dir.fileno()):  # of an earlier run of the container
        state_dir.remove(name)
    return state_dir


def open_log(state_dir: StateDirectory, options: Options) -> Log:
    """Open the supervisor's log, and syslog beside it if the engine wants that.

    Raises:
        ShimError: The log cannot be opened.
    """
    log = state_dir.open_log()
    if options.syslog:
        log.use_syslog(options.cid, options.said_levels)
    return log


def remove_state(state_dir: StateDirectory) -> None:
    """Remove the directory and what is in it, as far as that is possible."""
    with suppress(OSError):
        for name in os.listdir(state_dir.fileno()):
            state_dir.remove(name)
        os.rmdir(state_dir.path)
