"""The console socket, over which the runtime sends the terminal that it has opened.

The runtime connects to the supervisor's Unix socket and sends one message with one descriptor, the
ptmx end of the pty(7) (runc's docs/terminals.md). The socket is in its own directory below the
temporary directory: sun_path has 107 bytes (unix(7)), and the path of a state directory may be
longer. The caller removes both after the descriptor has arrived or the wait has ended.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import termios

from supervisor.linux import fds
from supervisor.state import trust
from workers.common import fd_passing

_SUN_PATH_MAX = 107
_SOCKET_NAME = "pty.sock"
_TIOCGPTPEER = 0x5441  # asm-generic/ioctls.h; termios has it from Python 3.13 on


class ConsoleSocket:
    """A listening socket for a console. Owns socket, connection and directory until `close`."""

    def __init__(self) -> None:
        """Create the directory (0700) and listen.

        Raises:
            OSError: EMFILE, or the temporary directory is not writable.
            ShimError: Another user could replace the directory, see `trust`.
        """
        self._directory = _make_directory()
        self._listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        self._connection: socket.socket | None = None
        try:
            self._listener.bind(self.path)
            self._listener.listen(1)
        except OSError:
            self.close()
            raise

    @property
    def path(self) -> str:
        """The argument of --console-socket."""
        return os.path.join(self._directory, _SOCKET_NAME)

    def fileno(self) -> int:
        """Return the descriptor to watch, borrowed: the listening socket, then the connection."""
        return (self._connection or self._listener).fileno()

    def receive(self) -> fds.Fd | None:
        """Accept or receive. Called when `fileno` is readable, until it returns the console.

        Returns:
            The ptmx end, close-on-exec, which the caller owns; None before it has arrived. `fileno`
            may have changed.

        Raises:
            ConnectionError: The runtime hung up, or sent no terminal.
        """
        if self._connection is None:
            try:
                self._connection, _address = self._listener.accept()
            except BlockingIOError:
                return None
            self._connection.setblocking(False)
        try:
            # The data is the terminal's name, at most PATH_MAX bytes. The room for a second
            # descriptor detects a message with more than one.
            data, received = fd_passing.receive(self._connection, 4096, 2)
        except BlockingIOError:
            return None
        if not data and not received:
            raise ConnectionError("the runtime hung up without sending a console")
        consoles = [fds.Fd(fd) for fd in received]
        if len(consoles) == 1 and os.isatty(consoles[0].fileno()):
            return consoles[0]
        for console in consoles:
            console.close()
        raise ConnectionError(f"the runtime sent {len(received)} descriptors, wanted one terminal")

    def close(self) -> None:
        """Close the sockets and remove the directory."""
        self._listener.close()
        if self._connection is not None:
            self._connection.close()
        with contextlib.suppress(FileNotFoundError):  # bind(2) had failed
            os.unlink(self.path)
        os.rmdir(self._directory)


def peer(ptmx_fd: int) -> fds.Fd:
    """Open the pts end of a console, so that at least one process has it open.

    Without it read(2) of the ptmx end fails with EIO once the container has closed the terminal,
    although the container may open /dev/console again.

    Returns:
        The pts end; a closed `Fd` if `ptmx_fd` is not the ptmx end of a pty(7).

    Raises:
        OSError: EMFILE, ENFILE, ENOMEM.

    Source: ioctl_tty(2), TIOCGPTPEER, Linux 4.13: it needs no path and no mount of devpts.
    """
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return fds.Fd(fcntl.ioctl(ptmx_fd, _TIOCGPTPEER, flags))
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        return fds.Fd(-1)


def size(tty_fd: int) -> tuple[int, int]:
    """Return (columns, rows) of a terminal. Source: ioctl_tty(2) TIOCGWINSZ."""
    packed = fcntl.ioctl(tty_fd, termios.TIOCGWINSZ, bytes(8))
    rows, columns, _x, _y = struct.unpack("HHHH", packed)
    return columns, rows


def _make_directory() -> str:
    parent = os.path.abspath(os.environ.get("TMPDIR") or "/tmp")  # noqa: S108 -- environ(7); the directory is 0700
    name = f"forkshim-{os.urandom(8).hex()}"
    if len(os.fsencode(os.path.join(parent, name, _SOCKET_NAME))) > _SUN_PATH_MAX:
        parent = "/tmp"  # noqa: S108 -- as above
    # If others could replace the socket, the runtime would send them the terminal.
    directory = trust.open_directory(parent)
    try:
        os.mkdir(name, 0o700, dir_fd=directory.fileno())
    finally:
        directory.close()
    return os.path.join(parent, name)
