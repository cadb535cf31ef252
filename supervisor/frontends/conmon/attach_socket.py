"""The socket `attach` of a container: where it is, who may open it, and how long its name stays.

The socket is in the bundle. Engines reach it by the bundle's path (`--full-attach`) or by a
symbolic link to the bundle, named after the container in a directory of sockets. It is bound and
renamed by a descriptor of the bundle: sun_path holds 107 bytes, and a bundle's path may be longer.
`supervisor.io.attach.packet_clients` serves the clients.

Source: unix(7); conmon's `--full-attach`, `--socket-dir-path`, `--cuuid`.
"""

from __future__ import annotations

import _socket
import os
from contextlib import suppress

from supervisor.linux import fds
from supervisor.linux.errors import ShimError, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from supervisor.io.attach.packet_clients import PacketClients

NAME = "attach"
_BACKLOG = 10
_MODE = 0o700
_SUN_PATH_BYTES = 107
"""The longest path of a socket, unix(7), without its NUL."""


def link_path(socket_dir: str, cuuid: str) -> str:
    """Return the path of the symbolic link below `socket_dir`. Pure.

    A path of exactly 107 bytes loses its last one, as in conmon, whose clients know that.
    """
    path = os.path.join(socket_dir, cuuid)
    return path[:-1] if len(os.fsencode(path)) == _SUN_PATH_BYTES else path


class AttachSocket:
    """Owns the names, and the listening socket until `serve` passes it on."""

    def __init__(self, bundle: fds.Fd, listener: fds.Fd, link: str) -> None:
        """Own both; `link` is the path of the symbolic link, or ""."""
        self._bundle = bundle
        self._listener = listener
        self._link = link
        self._clients: PacketClients | None = None

    @classmethod
    def open(cls, bundle: str, *, socket_dir: str = "", cuuid: str = "") -> AttachSocket:
        """Bind the socket in `bundle` and listen; no client is accepted before `serve`.

        Args:
            bundle: Path of a directory. A socket of an earlier container there is replaced.
            socket_dir: Where the symbolic link is made; "" for none. Created with mode 0700.
            cuuid: Its name.

        Raises:
            ShimError: The socket or the link cannot be made.
        """
        try:
            directory = fds.Fd(os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            raise ShimError(f"attach socket: open {bundle}: {reason(error)}") from error
        link = link_path(socket_dir, cuuid) if socket_dir else ""
        try:
            listener = _listen(directory.fileno())
            try:
                if link:
                    _make_link(link, bundle)
            except OSError:
                listener.close()
                raise
        except OSError as error:
            directory.close()
            where = error.filename if isinstance(error.filename, str) else f"{bundle}/{NAME}"
            raise ShimError(f"attach socket: {where}: {reason(error)}") from error
        return cls(directory, listener, link)

    @classmethod
    def restore(
        cls, clients: PacketClients, bundle: str, *, socket_dir: str = "", cuuid: str = ""
    ) -> AttachSocket:
        """Own the names again that an earlier supervisor has made; `clients` has its socket.

        Raises:
            ShimError: EMFILE; the bundle is gone.
        """
        try:
            directory = fds.Fd(os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            raise ShimError(f"attach socket: open {bundle}: {reason(error)}") from error
        restored = cls(directory, fds.Fd(-1), link_path(socket_dir, cuuid) if socket_dir else "")
        restored._clients = clients
        return restored

    def serve(self, clients: PacketClients) -> None:
        """Give the listening socket to `clients`, which accept from now on."""
        self._clients = clients
        clients.listen(fds.Fd(self._listener.take()))

    def unlink(self) -> None:
        """Unlink the socket; a second call does nothing. The clients stay."""
        if self._bundle.is_open:
            with suppress(FileNotFoundError):  # CRI-O removes it before a restore
                os.unlink(NAME, dir_fd=self._bundle.fileno())
            self._bundle.close()

    def close(self) -> None:
        """Unlink the socket, then close it and the clients; a second call does nothing.

        In this order: a test of conmon's looks for the name when a client sees end of file.
        """
        self.unlink()
        self._listener.close()
        if self._clients is not None:
            self._clients.close()

    def remove_link(self) -> None:
        """Remove the symbolic link, the last of the names; a second call does nothing."""
        link, self._link = self._link, ""
        if link:
            with suppress(FileNotFoundError):
                os.unlink(link)


def _listen(bundle_fd: int) -> fds.Fd:
    path = f"/proc/self/fd/{bundle_fd}/{NAME}"
    with suppress(FileNotFoundError):
        os.unlink(NAME, dir_fd=bundle_fd)
    # _socket: the module `socket` takes 8 ms, and this is before the runtime is executed.
    flags = _socket.SOCK_SEQPACKET | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
    listener = _socket.socket(_socket.AF_UNIX, flags)
    try:
        listener.bind(path)
        os.chmod(path, _MODE)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return fds.Fd(listener.detach())


def _make_link(link: str, bundle: str) -> None:
    os.makedirs(os.path.dirname(link), mode=0o700, exist_ok=True)
    with suppress(FileNotFoundError):
        os.unlink(link)
    os.symlink(bundle, link)
