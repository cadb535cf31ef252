"""Sends messages of the supervisor to systemd's journal, as native records.

The supervisor does so if the container's lines go to the journal, too. Then `journalctl
CONTAINER_NAME=web` finds both. Each kind of message has its own MESSAGE_ID. Sending never blocks:
if journald does not accept a record at once, `send` returns False and the caller uses stderr.

Source: JOURNAL_NATIVE_PROTOCOL; systemd.journal-fields(7).
"""

from __future__ import annotations

from enum import Enum

from supervisor.linux.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

JOURNAL_SOCKET = "/run/systemd/journal/socket"
ERR, WARNING, NOTICE = 3, 4, 5
_SHORT_ID = 12


class Kind(Enum):
    """The subject of a message: its MESSAGE_ID. README has the same table."""

    OTHER = "e635cb4251fb4309a73f152273b87556"
    LOST = "e9e7521dde754f4ab848b4f64452b61c"
    SINK = "49b1c2fbd519484491a25ed61f2e29d0"
    DEGRADED = "2dc4cb4cf39f461b9c290cae3d40699c"
    KILLED = "ea6dc9856c4d41b9aafb4293e8f9b722"
    ENDED = "51267814c4ae41a998a207d1a790f020"
    RELOADED = "1bd792a443c34d0a92467aa4953493d7"
    NOT_RELOADED = "994f73a90d384cc0a639491b49a94050"
    ADOPTED = "82e4416f5f4e4712bd612d08c5e4f78c"
    OUTSIDE = "4f0c0b684b5a44119e49378d2fc9958c"


class JournalLog:
    """Sends records about one container. Owns its socket until `close`."""

    def __init__(self, container_id: str, path: str) -> None:
        """Create the socket. Each record names journald's address, so journald may restart."""
        import socket  # 3 ms, only with the journal

        self._id = container_id
        self._path = path
        self._flags = socket.MSG_DONTWAIT
        self._socket: socket.socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        )

    def fileno(self) -> int:
        """Return the socket, borrowed."""
        return self._socket.fileno()

    def send(self, message: str, priority: int, kind: Kind) -> bool:
        """Send a record. Return False if journald does not run or its queue is full."""
        try:
            self._socket.sendto(encode(self._id, message, priority, kind), self._flags, self._path)
        except OSError:  # EAGAIN: its queue is full; ENOENT, ECONNREFUSED: it is stopped
            return False
        return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def encode(container_id: str, message: str, priority: int, kind: Kind) -> bytes:
    """Return the bytes of a record. Pure."""
    return (
        f"MESSAGE={printable(f'forkshim: {container_id}: {message}')}\n"
        f"PRIORITY={priority}\n"
        f"MESSAGE_ID={kind.value}\n"
        f"SYSLOG_IDENTIFIER={container_id}\n"
        f"CONTAINER_NAME={container_id}\n"
        f"CONTAINER_ID={container_id[:_SHORT_ID]}\n"
        f"CONTAINER_ID_FULL={container_id}\n"
    ).encode()
