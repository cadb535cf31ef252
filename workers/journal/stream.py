"""A stream connection to journald, as a service has: a header, then plain lines.

The worker splices the bytes, and journald makes the records. That is cheap, but loses more than
`workers.journal.native`. journald drops empty lines and blanks at the end of a line, and cuts long
lines. If a worker replaces another in the middle of a line, the line becomes two records. Bytes
that journald has not read when it is stopped (not restarted) are lost.

Source: systemd.journal(5), systemd-journald.service(8), journald-stream.c in v252.
"""

from __future__ import annotations

import socket

from workers.common import cgroup_names

STREAM_SOCKET = "/run/systemd/journal/stdout"


def unit_of(cgroups: bytes) -> str:
    """Return the system unit of a process from its /proc/PID/cgroup; "" if there is none."""
    for controller, path in cgroup_names.parse(cgroups).items():
        if controller in (b"", b"name=systemd"):
            for part in path.split(b"/"):
                if part.endswith((b".service", b".scope")):
                    return part.decode("utf-8", "replace")
    return ""


def header(identifier: str, unit: str, priority: int) -> bytes:
    """Return the header that journald reads first.

    journald uses `unit` if root sends it and the sender has exited before journald looks it up. The
    header makes journald read prefixes (`<4>`), and forward nothing to syslog, kmsg or the console.
    """
    return f"{identifier}\n{unit}\n{priority}\n1\n0\n0\n0\n".encode()


class JournalStream:
    """The supervisor's side of one stream. Connected before fork(2); the owner calls `close`."""

    def __init__(
        self, first: bytes, path: str = STREAM_SOCKET, *, is_blocking: bool = True, fd: int = -1
    ) -> None:
        """Connect and send the header `first`, or take over `fd`, the socket of an earlier object.

        `is_blocking`: a write waits for room.

        Raises:
            OSError: As `reconnect`.
        """
        self._first = first
        self._path = path
        self._is_blocking = is_blocking
        self.socket = socket.socket(fileno=fd) if fd >= 0 else self._connect()

    def _connect(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.setblocking(False)  # do not wait for a stopped journald
            made.connect(self._path)
            made.send(self._first)
            made.shutdown(socket.SHUT_RD)
            made.setblocking(self._is_blocking)
        except OSError:
            made.close()
            raise
        return made

    def reconnect(self) -> None:
        """Replace the socket, after a worker has reported an error of the sink.

        Raises:
            OSError: ENOENT, ECONNREFUSED, EAGAIN: journald does not run or does not accept. The old
                socket is kept.
        """
        fresh = self._connect()
        self.socket.close()
        self.socket = fresh

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()
