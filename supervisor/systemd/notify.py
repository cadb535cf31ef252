"""What we tell systemd: readiness, a line for `systemctl status`, signs of life, more time.

One datagram a message, to the socket that NOTIFY_SOCKET names; without it every method does
nothing. Only the supervisor speaks, as the unit's main process: NotifyAccess=main is enough, and
its messages are attributed even when it ends right after them. It never waits for systemd: a full
socket loses a status line, and what must not be lost is sent again by the next phase.

Source: sd_notify(3); unix(7) for abstract names.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

from supervisor.linux.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Mapping, Sequence

SOCKET_VARIABLE = "NOTIFY_SOCKET"
_LONGEST_STATUS = 512
_SOL_SOCKET, _SCM_RIGHTS, _SCM_CREDENTIALS = (
    1,
    1,
    2,
)  # the module `socket` is imported where somebody listens


class Notifier:
    """Speaks to the service manager, if there is one. Owns its socket."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID from `environment`.

        An address that cannot be used is like none: a container is not ended for it.
        """
        self._socket: socket.socket | None = None
        self._address = environment.get(SOCKET_VARIABLE, "")
        if self._address.startswith(("/", "@")):
            import socket  # 3 ms, for those who are heard

            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
            if self._address.startswith("@"):
                self._address = "\0" + self._address[1:]
        self.watchdog_s = _watchdog_s(environment) if self._socket is not None else 0.0
        self._status = ""

    @property
    def is_heard(self) -> bool:
        """Whether there is a service manager."""
        return self._socket is not None

    def ready(self, status: str) -> None:
        """Say that the service has started: the container's process runs."""
        self._status = _one_line(status)
        self._send("READY=1", f"STATUS={self._status}")

    def status(self, text: str) -> None:
        """Say how it is, in one line; nothing is sent if it is what was said last."""
        line = _one_line(text)
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def stopping(self) -> None:
        """Say that the service is on its way out."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Reset the watchdog."""
        self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        """Ask for so much time from now for the phase that begins, whatever the unit's limit."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def reloading(self) -> None:
        """Say that we take up another version; `ready` says that it is over."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def keep(self, descriptors: Mapping[str, int]) -> None:
        """Leave these with systemd, under their names, for whoever is started after us.

        Source: sd_notify(3), FDSTORE=1; FDPOLL=0, or a pipe at its end would be taken out.
        """
        if self._socket is None:
            return
        for name, fd in descriptors.items():
            message = f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0".encode()
            self._send_bytes(message, (_SOL_SOCKET, _SCM_RIGHTS, fd.to_bytes(4, sys.byteorder)))

    def keep_no_more(self, names: Iterable[str]) -> None:
        """Take back what was left there under these names."""
        for name in names:
            self._send("FDSTOREREMOVE=1", f"FDNAME={name}")

    def pass_on(self, lines: Sequence[str], status: str | None) -> None:
        """Say what another process has said, in one message, with our own line if that is new."""
        line = self._status if status is None else _one_line(status)
        if line != self._status:
            self._status = line
            lines = [*lines, f"STATUS={line}"]
        if lines:
            self._send(*lines)

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is not None:
            self._send_bytes("\n".join(lines).encode(errors="replace"))

    def _send_bytes(self, message: bytes, *ancillary: tuple[int, int, bytes]) -> None:
        if self._socket is None:
            return
        with suppress(OSError):  # EAGAIN, ECONNREFUSED: systemd is busy or being replaced
            self._socket.sendmsg([message], ancillary, 0, self._address)


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """Return how often to give a sign of life: twice in the time that systemd waits; 0 for never.

    Source: sd_watchdog_enabled(3).
    """
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 2e6 if text.isascii() and text.isdecimal() else 0.0


def _one_line(text: str) -> str:
    """Return printable text: systemd takes a carriage return for the end of an assignment."""
    return printable(" ".join(text.split()))[:_LONGEST_STATUS]


SILENT = Notifier({})
"""For a supervisor that no service manager has started."""
