"""The console socket: how the runtime hands over the pseudoterminal it made.

The runtime connects to a Unix socket of ours and sends one message with one descriptor, the
terminal's other end (runc's docs/terminals.md). The socket lives in a directory of its own below
the temporary directory, since sun_path holds 107 bytes (unix(7)) and a state directory's path may
be longer; both are removed as soon as the descriptor is here, or the wait is over.
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

_SUN_PATH_MAX = 107
_SOCKET_NAME = "pty.sock"
_TIOCGPTPEER = 0x5441  # asm-generic/ioctls.h; termios has it from Python 3.13 on


class ConsoleSocket:
    """A listening socket for one console. Owns socket, connection and directory until `close`."""

    def __init__(self) -> None:
        """Make the directory (0700) and listen.

        Raises:
            OSError: The temporary directory cannot be written.
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
        """What --console-socket is given."""
        return os.path.join(self._directory, _SOCKET_NAME)

    def fileno(self) -> int:
        """Lend the descriptor to watch: the listener, then the connection."""
        return (self._connection or self._listener).fileno()

    def receive(self) -> fds.Fd | None:
        """Take what has come; call it when `fileno` is readable, until it returns the console.

        Returns:
            The terminal's end for us, close-on-exec; the caller owns it. None for "not yet";
            `fileno` may have changed.

        Raises:
            ConnectionError: The runtime hung up, or sent something that is no terminal.
        """
        if self._connection is None:
            try:
                self._connection, _address = self._listener.accept()
            except BlockingIOError:
                return None
            self._connection.setblocking(False)
        try:
            # PATH_MAX bytes hold the terminal's name; a second descriptor would be one too many.
            data, received, _flags, _from = socket.recv_fds(self._connection, 4096, 2)
        except BlockingIOError:
            return None
        if not data and not received:
            raise ConnectionError("the runtime hung up without sending a console")
        consoles = [fds.Fd(fd) for fd in received]
        if len(consoles) == 1 and os.isatty(consoles[0].fileno()):
            os.set_inheritable(consoles[0].fileno(), False)
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
    """Open the container's end of a console, and so keep it one that somebody has open.

    When nobody has, its other end reads EIO, although the container may open /dev/console again.

    Returns:
        A closed one where the terminal is not a pseudoterminal's end that has a peer.

    Raises:
        OSError: EMFILE, ENFILE, ENOMEM.

    Source: ioctl_tty(2), TIOCGPTPEER, Linux 4.13: it needs no name, and no mount of devpts.
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
    # Where others could put a socket in its place, the runtime would give them the terminal.
    directory = trust.open_directory(parent)
    try:
        os.mkdir(name, 0o700, dir_fd=directory.fileno())
    finally:
        directory.close()
    return os.path.join(parent, name)
