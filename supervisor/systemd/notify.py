"""sd_notify(3): readiness, a line for `systemctl status`, watchdog, time-outs, the FD store.

A message is a datagram to the socket that NOTIFY_SOCKET names. Without it every method does
nothing. Only the supervisor sends, as the unit's main process. So NotifyAccess=main suffices, and
systemd attributes messages even if the supervisor exits right after them. Sending never blocks: a
full socket loses the message, and the next phase repeats what must arrive.

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
    from collections.abc import Callable, Iterable, Mapping, Sequence

SOCKET_VARIABLE = "NOTIFY_SOCKET"
_LONGEST_STATUS = 512
_SOL_SOCKET, _SCM_RIGHTS = 1, 1  # `socket` is imported only with a service manager


class Notifier:
    """Sends messages to the service manager, if there is one. Owns its socket."""

    def __init__(self, environment: Mapping[str, str], *, only_forwards: bool = False) -> None:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID from `environment`.

        An invalid address counts as no address: the container runs without a service manager. With
        `only_forwards` the service is the engine's: `forward` alone sends, no other method does.
        """
        self._only_forwards = only_forwards
        self._socket: socket.socket | None = None
        self._address = environment.get(SOCKET_VARIABLE, "")
        if self._address.startswith(("/", "@")):
            import socket  # 3 ms, only with a manager

            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
            if self._address.startswith("@"):
                self._address = "\0" + self._address[1:]
        self.watchdog_s = _watchdog_s(environment) if self._socket is not None else 0.0
        self._status = ""

    @property
    def has_manager(self) -> bool:
        """Whether there is a service manager that hears of the supervisor."""
        return self._socket is not None and not self._only_forwards

    def ready(self, status: str) -> None:
        """Report that the service has started: the container's process runs."""
        self._status = _one_line(status)
        self._send("READY=1", f"STATUS={self._status}")

    def status(self, text: str) -> None:
        """Send a status line. Do nothing if the last line was the same."""
        line = _one_line(text)
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def stopping(self) -> None:
        """Report that the service is stopping."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Reset the watchdog."""
        self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        """Extend the time limit of the present phase to `seconds` from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def reloading(self) -> None:
        """Report that a reload begins. `ready` reports its end."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def store_fds(self, descriptors: Mapping[str, int]) -> None:
        """Put descriptors into systemd's FD store under their names, for the next supervisor.

        Source: sd_notify(3), FDSTORE=1; without FDPOLL=0 systemd removes a pipe at end of file.
        """
        if not self.has_manager:
            return
        for name, fd in descriptors.items():
            message = f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0".encode()
            self._send_bytes(message, (_SOL_SOCKET, _SCM_RIGHTS, fd.to_bytes(4, sys.byteorder)))

    def remove_fds(self, names: Iterable[str]) -> None:
        """Remove the descriptors with these names from the FD store."""
        for name in names:
            self._send("FDSTOREREMOVE=1", f"FDNAME={name}")

    def forward(self, lines: Sequence[str], status: str | None, line: Callable[[], str]) -> None:
        """Forward the container's assignments in one message, with the status line if it is new.

        Args:
            lines: Assignments as `READY=1`, without the status.
            status: The container's status; None without a status.
            line: Returns the supervisor's status line, which has the container's in it.
        """
        if status is not None:
            text = _one_line(status if self._only_forwards else line())
            if self._only_forwards or text != self._status:
                self._status = text
                lines = [*lines, f"STATUS={text}"]
        if lines:
            self._send_bytes(_message(lines))

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self.has_manager:
            self._send_bytes(_message(lines))

    def _send_bytes(self, message: bytes, *ancillary: tuple[int, int, bytes]) -> None:
        if self._socket is None:
            return
        with suppress(OSError):  # EAGAIN, ECONNREFUSED: systemd is busy or re-executing
            self._socket.sendmsg([message], ancillary, 0, self._address)


def _message(lines: Sequence[str]) -> bytes:
    return "\n".join(lines).encode(errors="replace")


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """Return the interval of watchdog messages: half of systemd's time-out; 0 for none.

    Source: sd_watchdog_enabled(3).
    """
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 2e6 if text.isascii() and text.isdecimal() else 0.0


def _one_line(text: str) -> str:
    """Return printable text: systemd ends an assignment at a carriage return."""
    return printable(" ".join(text.split()))[:_LONGEST_STATUS]


SILENT = Notifier({})
"""For a supervisor without a service manager."""
