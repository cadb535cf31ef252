"""--sdnotify=container: the container's own sd_notify socket, and its mount point.

The container never gets the manager's socket. The notify worker reads the container's socket, see
`workers.notify.reader`. `supervisor.children.notify_worker` forks and replaces that worker. The
socket and the worker's shared memory outlive each worker; `NotifyProxy` owns them.

Source: sd_notify(3), unix(7).
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from workers.common import cgroup_names
from workers.notify.memory import NotifyMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from supervisor.state.fd_store import FdReader, FdWriter

DIRECTORY = "notify"
_NAME = "notify.sock"


class NotifyProxy:
    """Owns the container's socket and the memory until `close`, which leaves the socket's file.

    Attributes:
        socket: The datagram socket that the container sends to.
        memory: The worker's shared memory.
        cgroups: The container's cgroups by controller, to check senders.
    """

    def __init__(self, made: socket.socket, memory: NotifyMemory) -> None:
        """Own both. Use `make` or `restore`."""
        self.socket = made
        self.memory = memory
        self.cgroups: dict[bytes, bytes] = {}

    @classmethod
    def make(cls, *, uid: int, gid: int) -> NotifyProxy:
        """Make DIRECTORY in the current directory, with the socket in it.

        Both belong to `uid` and `gid` of the host: the container's root.

        Raises:
            OSError: EEXIST, EMFILE, or an error of the file system.
        """
        os.mkdir(DIRECTORY, 0o755)
        proxy = cls.make_in(DIRECTORY)
        for each in (DIRECTORY, f"{DIRECTORY}/{_NAME}"):
            os.chown(each, uid, gid)
        return proxy

    @classmethod
    def make_in(cls, directory: str) -> NotifyProxy:
        """Make the socket in a directory that is there, in the place of an earlier one.

        Raises:
            OSError: It cannot be made.
        """
        path = f"{directory}/{_NAME}"
        with suppress(FileNotFoundError):
            os.unlink(path)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            made.bind(path)
            os.chmod(path, 0o666)  # noqa: S103 -- the service in the container may run as any user
        except OSError:
            made.close()
            raise
        return cls(made, NotifyMemory())

    @classmethod
    def restore(cls, packed: Mapping[str, Any], contents: FdReader) -> NotifyProxy:
        """Return the proxy of an earlier supervisor, from `snapshot`.

        Raises:
            OSError: A descriptor is no socket.
            ValueError: The memory has the wrong format.
        """
        notify_proxy = cls(
            socket.socket(fileno=contents.take(packed["socket"]).take()),
            NotifyMemory(fd=contents.take(packed["memory"]).take()),
        )
        notify_proxy.cgroups = {
            name.encode("latin-1"): path.encode("latin-1")
            for name, path in packed["cgroups"].items()
        }
        return notify_proxy

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return the state for `restore`."""
        return {
            "socket": fd_writer.add(self.socket.fileno()),
            "memory": fd_writer.add(self.memory.fd),
            "cgroups": {
                name.decode("latin-1"): path.decode("latin-1")
                for name, path in self.cgroups.items()
            },
        }

    def belongs_to(self, pid: int) -> None:
        """Note the cgroups of `pid`, the container's init, as the container's."""
        self.cgroups = cgroup_names.membership(pid)

    @property
    def is_open(self) -> bool:
        """Whether the container can send messages."""
        return self.socket.fileno() >= 0

    def close(self) -> None:
        """Close the socket: a process that sends to it then gets ECONNREFUSED."""
        if self.is_open:
            self.socket.close()
            self.memory.close()


def place_for(destinations: set[str]) -> str:
    """Return the mount point of DIRECTORY in a container with mounts at `destinations`.

    It is /run/notify, as with runc, if /run is a mount. Otherwise the runtime would create the
    directory in the container's root file system. /dev nearly always is a mount.
    """
    if "/run" not in destinations and "/dev" in destinations:
        return "/dev/notify"
    return "/run/notify"


def address_in(place: str) -> str:
    """Return the container's NOTIFY_SOCKET."""
    return f"{place}/{_NAME}"
