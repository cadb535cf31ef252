"""Sends messages of the supervisor to syslog, in the format of conmon's `--syslog`.

Sending never blocks: a message that the socket does not accept at once is dropped, and
shim-log.json has it. The socket is not connected, so the syslog daemon may restart.

Source: syslog(3), unix(7), RFC 3164; conmon(8).
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Collection

SYSLOG_SOCKET = "/dev/log"
_FACILITY_DAEMON = 3 << 3
_PRIORITIES = {"error": 3, "warn": 4, "info": 6}
_NAMES = {"error": "error", "warn": "nwarn", "info": "ninfo"}
_SHORT_ID = 20


class Syslog:
    """Sends messages about one container. Owns its socket until `close`."""

    def __init__(
        self, container_id: str, levels: Collection[str], path: str = SYSLOG_SOCKET
    ) -> None:
        """Create the socket. `levels`: which of "error", "warn" and "info" are sent.

        Raises:
            OSError: EMFILE, ENFILE.
        """
        import socket  # 3 ms, only with --syslog

        self._id = container_id
        self._levels = levels
        self._path = path
        self._flags = socket.MSG_DONTWAIT
        self._socket: socket.socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        )

    def fileno(self) -> int:
        """Return the socket, borrowed."""
        return self._socket.fileno()

    def send(self, level: str, message: str) -> None:
        """Send a printable message, if its level is in `levels`."""
        if level not in self._levels:
            return
        data = encode(self._id, level, message, pid=os.getpid(), at_s=time.time())
        try:
            self._socket.sendto(data, self._flags, self._path)
        except OSError:  # EAGAIN: its queue is full; ENOENT, ECONNREFUSED: it does not run
            return

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def encode(container_id: str, level: str, message: str, *, pid: int, at_s: float) -> bytes:
    """Return the bytes of a message. Pure, except for the time zone."""
    stamp = time.strftime("%b %e %H:%M:%S", time.localtime(at_s))
    head = f"<{_FACILITY_DAEMON | _PRIORITIES[level]}>{stamp} conmon[{pid}]"
    text = f"conmon {container_id[:_SHORT_ID]} <{_NAMES[level]}>: {message}"
    return f"{head}: {text}".encode(errors="replace")
