"""Sending datagrams to journald, as it can attribute them, and knowing when it has read them.

journald looks up a sender's unit in /proc when it *reads* the datagram. A sender that has ended by
then has no unit, and `journalctl -u` does not show what it said. So the records are sent
in the supervisor's name where the kernel allows it (SCM_CREDENTIALS, unix(7): with
CAP_SYS_ADMIN), and a worker does not report its end before its datagrams have been read.

A blocking send(2) is the backpressure. It blocks at a room of our own that is smaller than
journald's queue (net.unix.max_dgram_qlen, 512 under systemd), for two reasons. At that queue the
kernel wakes the sender for each datagram that is read, at a room of its own when three quarters of
it are free (unix_dgram_recvmsg, unix_write_space in net/unix/af_unix.c): a record of 100 bytes then
takes journald 14 us, not 18, and us 2, not 6. And a full queue is full for everybody: of what
others said without waiting, two thirds were refused.

A datagram is one record. journald reads several out of one, with an empty line between them, but
from 253 on it stops after the first that has a MESSAGE (server_process_entry returns what
client_context_check_keep_log does); seen with 257.

What is too large for a datagram goes as a sealed memfd, of which journald needs no copy.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
from contextlib import suppress

from workers.process import linger

JOURNAL_SOCKET = "/run/systemd/journal/socket"
ROOM_BYTES = 40 << 10
"""The kernel takes it twice, which 64 records of 100 bytes fill, each in 1,280 bytes of its own."""

LARGE_ROOM_BYTES = 1 << 20
"""For a datagram that is larger than the room; a memfd would take a third longer."""

LARGEST_DATAGRAM_BYTES = 256 << 10
"""The kernel takes more at once, but copies it twice and finds it hard to get such memory."""

_SO_SNDBUFFORCE = 32  # asm-generic/socket.h; the module `socket` lacks it

_TOO_LARGE = frozenset({errno.EMSGSIZE, errno.ENOBUFS})
_NOT_IN_THAT_NAME = frozenset({errno.EPERM, errno.ESRCH})
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def connect(path: str = JOURNAL_SOCKET) -> socket.socket:
    """Return a socket whose datagrams go to journald; the caller owns it.

    Raises:
        OSError: ENOENT, ECONNREFUSED: there is no journald now.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        made.connect(path)
    except OSError:
        made.close()
        raise
    return made


class Sender:
    """One worker's use of the socket. Borrows it."""

    def __init__(self, to: socket.socket, supervisor_pid: int, *, is_blocking: bool = True) -> None:
        """Send in the name of `supervisor_pid`, our parent, while it lives.

        `is_blocking`: wait for room; else BlockingIOError is raised when there is none.
        """
        self._to = to
        self._flags = 0 if is_blocking else socket.MSG_DONTWAIT
        self._supervisor_pid = supervisor_pid
        ucred = struct.pack("3i", supervisor_pid, os.getuid(), os.getgid())
        self._control: list[tuple[int, int, bytes]] = [
            (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, ucred)
        ]
        self._set_room(ROOM_BYTES)  # whoever was killed may have left it large

    def check_parent(self) -> None:
        """Speak for ourselves if the supervisor is gone: its pid may be another's soon."""
        if os.getppid() != self._supervisor_pid:
            self._control = []

    def send(self, payload: bytes) -> None:
        """Send one record.

        Raises:
            BlockingIOError: There is no room, and we are not patient.
            OSError: ECONNREFUSED, ENOTCONN, ...: this socket is of no use any more.
        """
        if len(payload) <= LARGEST_DATAGRAM_BYTES:
            try:
                self._send_datagram(payload)
            except OSError as error:
                if error.errno not in _TOO_LARGE:  # for the buffer that we were allowed
                    raise
            else:
                return
        self._send_memfd(payload)

    def _send_datagram(self, payload: bytes) -> None:
        if len(payload) <= ROOM_BYTES:
            self._send([payload], [])
            return
        self._set_room(LARGE_ROOM_BYTES)
        try:
            self._send([payload], [])
        finally:
            self._set_room(ROOM_BYTES)

    def _set_room(self, room_bytes: int) -> None:
        self._to.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room_bytes)
        with suppress(PermissionError):  # only root may have more than net.core.wmem_max
            self._to.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, room_bytes)

    def _send(self, payload: list[bytes], control: list[tuple[int, int, bytes]]) -> None:
        try:
            self._to.sendmsg(payload, self._control + control, self._flags)
        except OSError as error:
            if error.errno not in _NOT_IN_THAT_NAME or not self._control:
                raise
            self._control = []
            self._to.sendmsg(payload, control, self._flags)

    def _send_memfd(self, payload: bytes) -> None:
        fd = os.memfd_create("forkshim:record", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            rest = memoryview(payload)
            while rest:
                rest = rest[os.write(fd, rest) :]
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            rights = array.array("i", [fd]).tobytes()
            self._send([], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        finally:
            os.close(fd)

    def wait_until_read(self, limit_s: float = linger.LINGER_S) -> bool:
        """Wait until journald has read all that was sent; False if it has not in time."""
        return linger.wait_until_read(self._to.fileno(), limit_s)
