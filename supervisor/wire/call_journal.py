"""What a server connection has read and not answered, kept where a kill -9 does not reach.

The journal is an unnamed file (memfd_create(2)). A process that holds it and the socket, an fd
holder say, can hand both to a successor, which answers what the dead process has read: a client
that sets no deadline would hang for ever else.

A record is whole or not there: two places take turns, each with a number and a checksum. SIGKILL
may cut a write(2) at a page.
"""

from __future__ import annotations

import binascii
import json
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_HEADER = struct.Struct(">QQII")  # number, offset, length, checksum of the content
_PLACES = 2
_CONTENT_AT = _PLACES * _HEADER.size


class CallJournal:
    """The last two states of a connection. Owns its descriptor until `close`."""

    def __init__(self, fd: int) -> None:
        """Take ownership of an unnamed file: a new one, or that of a connection taken over."""
        self._fd = fd
        self._number = 0
        self.read()

    @staticmethod
    def create() -> CallJournal:
        """Make an empty journal.

        Raises:
            OSError: memfd_create(2) failed.
        """
        return CallJournal(os.memfd_create("ttrpc-calls", os.MFD_CLOEXEC))

    def fileno(self) -> int:
        """Lend the descriptor."""
        return self._fd

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the older of the two states. `state` has values of JSON.

        Raises:
            OSError: ENOSPC: no memory.
        """
        self.write_content(json.dumps(state, separators=(",", ":")).encode())

    def write_content(self, content: bytes) -> None:
        """Replace the older state by a JSON object that is encoded already; as `write`."""
        self._number += 1
        place = self._number % _PLACES
        # The other place's content stays untouched, wherever it lies.
        other_start, other_end = self._span(1 - place)
        fits_before = _CONTENT_AT + len(content) <= other_start
        at = _CONTENT_AT if fits_before else max(other_end, _CONTENT_AT)
        os.pwrite(self._fd, content, at)
        checksum = binascii.crc32(content)
        header = _HEADER.pack(self._number, at, len(content), checksum)
        os.pwrite(self._fd, header, place * _HEADER.size)

    def read(self) -> dict[str, Any] | None:
        """Return the last state that was written whole; None if there is none."""
        found: tuple[int, bytes] = (0, b"")
        for place in range(_PLACES):
            header = os.pread(self._fd, _HEADER.size, place * _HEADER.size)
            if len(header) < _HEADER.size:
                continue
            number, at, length, checksum = _HEADER.unpack(header)
            content = os.pread(self._fd, length, at)
            if len(content) == length and binascii.crc32(content) == checksum:
                found = max(found, (number, content))
        self._number = found[0]
        state: dict[str, Any] | None = json.loads(found[1]) if found[0] else None
        return state

    def _span(self, place: int) -> tuple[int, int]:
        header = os.pread(self._fd, _HEADER.size, place * _HEADER.size)
        if len(header) < _HEADER.size:
            return _CONTENT_AT, _CONTENT_AT
        _number, at, length, _checksum = _HEADER.unpack(header)
        return at, at + length

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
