"""Parses and encodes the messages that a container may send to its service manager. Pure.

The grammar is systemd's. It splits a datagram at line feeds and carriage returns, and rejects a NUL
that is not the last byte. It uses the last of READY=1, RELOADING=1 and STOPPING=1, and the first
assignment of any other name. So this module parses each value, checks it by its own grammar, and
formats it again. It forwards no byte of the container, except printable text of STATUS=.

Source: sd_notify(3); systemd 252 and 257.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MOST_BYTES = 4096
"""The longest datagram that systemd reads (NOTIFY_BUFFER_MAX)."""
LONGEST_STATUS = 256
"""Characters. The supervisor's own status line has room for 512."""

_STATES = (b"READY", b"RELOADING", b"STOPPING")
_WATCHDOG = {b"1": "1", b"trigger": "trigger"}
_MOST_ERRNO = 4095
_MOST_USEC = 2**64 - 1
_DIGITS = re.compile(rb"[0-9]{1,20}")
_BUS_ERROR = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+")
_LONGEST_BUS_ERROR = 255
"""Source: the D-Bus specification, valid names, error names."""


class Words(NamedTuple):
    """The values of one datagram that the supervisor forwards.

    Attributes:
        state: READY, RELOADING, STOPPING, or empty.
        monotonic_usec: When a reload began; systemd reads it only together with RELOADING=1.
        watchdog: "1", "trigger", or empty.
        errno: 0 to 4095.
        bus_error: A D-Bus error name.
        watchdog_usec: An unsigned 64-bit number, as each *_usec.
        extend_timeout_usec: The same.
        status: Printable text, at most LONGEST_STATUS characters; part of the supervisor's line.
    """

    state: str = ""
    monotonic_usec: int | None = None
    watchdog: str = ""
    errno: int | None = None
    bus_error: str = ""
    watchdog_usec: int | None = None
    extend_timeout_usec: int | None = None
    status: str | None = None

    def lines(self) -> list[str]:
        """Return the assignments for the manager, without STATUS=."""
        given = {
            self.state: "1",
            "MONOTONIC_USEC": self.monotonic_usec,
            "WATCHDOG": self.watchdog or None,
            "ERRNO": self.errno,
            "BUSERROR": self.bus_error or None,
            "WATCHDOG_USEC": self.watchdog_usec,
            "EXTEND_TIMEOUT_USEC": self.extend_timeout_usec,
        }
        return [f"{name}={value}" for name, value in given.items() if name and value is not None]


NOTHING = Words()


def parse(data: bytes) -> Words:
    """Parse a datagram. Ignore assignments that are not allowed or not valid."""
    if len(data) > MOST_BYTES or b"\0" in data.removesuffix(b"\0"):
        return NOTHING
    state = ""
    found: dict[bytes, bytes] = {}
    for line in data.removesuffix(b"\0").replace(b"\r", b"\n").split(b"\n"):
        name, equals, value = line.partition(b"=")
        if name in _STATES:
            state = name.decode() if value == b"1" else state
        elif equals:
            found.setdefault(name, value)
    status = found.get(b"STATUS")
    return Words(
        state=state,
        monotonic_usec=_number(found.get(b"MONOTONIC_USEC")) if state == "RELOADING" else None,
        watchdog=_WATCHDOG.get(found.get(b"WATCHDOG", b""), ""),
        errno=_number(found.get(b"ERRNO"), _MOST_ERRNO),
        bus_error=_bus_error(found.get(b"BUSERROR", b"")),
        watchdog_usec=_number(found.get(b"WATCHDOG_USEC")),
        extend_timeout_usec=_number(found.get(b"EXTEND_TIMEOUT_USEC")),
        status=None if status is None else _printable(status),
    )


def encode(words: Words) -> bytes:
    """Return bytes that `parse` reads as the same words."""
    status = [] if words.status is None else [f"STATUS={words.status}"]
    return "\n".join([*words.lines(), *status]).encode()


def _number(text: bytes | None, most: int = _MOST_USEC) -> int | None:
    if text is None or not _DIGITS.fullmatch(text):
        return None
    number = int(text)
    return number if number <= most else None


def _bus_error(text: bytes) -> str:
    if len(text) > _LONGEST_BUS_ERROR or not _BUS_ERROR.fullmatch(text):
        return ""
    return text.decode()


def _printable(text: bytes) -> str:
    """Return text that is safe on a terminal: `systemctl status` and ps(1) print it."""
    decoded = text.decode("utf-8", "replace")[:LONGEST_STATUS]
    return "".join(each if each.isprintable() else "?" for each in decoded)
