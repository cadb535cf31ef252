"""A stream of journald's, as systemd gives one to a service: a header, then lines as they are.

The bytes are spliced, and journald makes the records. So it is cheap, and knows less than
`workers.journal.native`: journald drops empty lines and blanks at the end of a line, cuts long
lines, and where one worker takes over from another in the middle of a line, that becomes two
records. What it has not read when it is stopped (not restarted) is gone.

Source: systemd.journal(5), systemd-journald.service(8), journald-stream.c in v252.
"""

from __future__ import annotations

import socket

from workers.common import cgroup_names

STREAM_SOCKET = "/run/systemd/journal/stdout"


def unit_of(cgroups: bytes) -> str:
    """Return the system unit of a process with this /proc/PID/cgroup; "" if there is none."""
    for controller, path in cgroup_names.parse(cgroups).items():
        if controller in (b"", b"name=systemd"):
            for part in path.split(b"/"):
                if part.endswith((b".service", b".scope")):
                    return part.decode("utf-8", "replace")
    return ""


def header(identifier: str, unit: str, priority: int) -> bytes:
    """Return what journald reads first.

    `unit` counts when root sends it, where the sender has ended before it is looked up. Prefixes
    like `<4>` are honoured; nothing goes on to syslog, kmsg or the console.
    """
    return f"{identifier}\n{unit}\n{priority}\n1\n0\n0\n0\n".encode()


class JournalStream:
    """The parent's side of one stream: connected before the fork, owned until `close`."""

    def __init__(
        self, first: bytes, path: str = STREAM_SOCKET, *, is_blocking: bool = True, fd: int = -1
    ) -> None:
        """Connect, with the header `first`; or take over `fd`, an earlier one's socket.

        `is_blocking`: who writes waits for room.

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
            made.setblocking(False)  # a stopped journald is not waited for
            made.connect(self._path)
            made.send(self._first)
            made.shutdown(socket.SHUT_RD)
            made.setblocking(self._is_blocking)
        except OSError:
            made.close()
            raise
        return made

    def reconnect(self) -> None:
        """Take another stream, after a worker has reported an error of this one.

        Raises:
            OSError: ENOENT, ECONNREFUSED, EAGAIN: there is no journald now; the old one is kept.
        """
        fresh = self._connect()
        self.socket.close()
        self.socket = fresh

    def close(self) -> None:
        """Close it."""
        self.socket.close()
