"""Sends datagrams that journald can attribute, and waits until journald has read them.

journald looks up the unit of a sender in /proc when it *reads* the datagram. A sender that has
exited by then has no unit, and `journalctl -u` does not show its records. So a worker sends with
the supervisor's credentials where the kernel allows it (SCM_CREDENTIALS, unix(7): with
CAP_SYS_ADMIN), and does not report its end before journald has read its datagrams.

A blocking send(2) is the backpressure. It blocks at a send buffer that is smaller than journald's
queue (net.unix.max_dgram_qlen, 512 under systemd), for two reasons:

- At a full queue the kernel wakes the sender for each datagram that is read. At a full send buffer
  it wakes the sender once three quarters are free (unix_dgram_recvmsg, unix_write_space in
  net/unix/af_unix.c). A record of 100 bytes then costs journald 14 us instead of 18, and the worker
  2 us instead of 6.
- A full queue is full for all senders: journald refused two thirds of the datagrams of senders that
  do not wait.

A datagram is one record. journald can read several records from one datagram, separated by an empty
line. But since version 253 it stops after the first record that has a MESSAGE (server_process_entry
returns what client_context_check_keep_log returns); seen with 257.

A record that is too large for a datagram is sent as a sealed memfd, which journald does not copy.
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
"""The kernel doubles it. 64 records of 100 bytes fill it, each in 1,280 bytes of its own."""

LARGE_ROOM_BYTES = 1 << 20
"""For a datagram that is larger than ROOM_BYTES. A memfd would take a third longer."""

LARGEST_DATAGRAM_BYTES = 256 << 10
"""The kernel accepts more, but copies it twice, and such memory is hard to allocate."""

_SO_SNDBUFFORCE = 32  # asm-generic/socket.h; the module `socket` lacks it

_TOO_LARGE = frozenset({errno.EMSGSIZE, errno.ENOBUFS})
_NOT_IN_THAT_NAME = frozenset({errno.EPERM, errno.ESRCH})
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def connect(path: str = JOURNAL_SOCKET) -> socket.socket:
    """Return a socket that is connected to journald; the caller owns it.

    Raises:
        OSError: ENOENT, ECONNREFUSED: journald does not run; EMFILE.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        made.connect(path)
    except OSError:
        made.close()
        raise
    return made


class Sender:
    """Sends one worker's records. Borrows the socket."""

    def __init__(self, to: socket.socket, supervisor_pid: int, *, is_blocking: bool = True) -> None:
        """Send with the credentials of `supervisor_pid`, the worker's parent, while it lives.

        `is_blocking`: `send` waits for room. Otherwise it raises BlockingIOError without room.
        """
        self._to = to
        self._flags = 0 if is_blocking else socket.MSG_DONTWAIT
        self._supervisor_pid = supervisor_pid
        ucred = struct.pack("3i", supervisor_pid, os.getuid(), os.getgid())
        self._control: list[tuple[int, int, bytes]] = [
            (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, ucred)
        ]
        self._set_room(ROOM_BYTES)  # a killed worker may have left it large

    def check_parent(self) -> None:
        """Send with the worker's own credentials if the supervisor has died: pids are reused."""
        if os.getppid() != self._supervisor_pid:
            self._control = []

    def send(self, payload: bytes) -> None:
        """Send one record.

        Raises:
            BlockingIOError: There is no room, and this sender does not wait.
            OSError: ECONNREFUSED, ENOTCONN, ...: the supervisor must replace the socket.
        """
        if len(payload) <= LARGEST_DATAGRAM_BYTES:
            try:
                self._send_datagram(payload)
            except OSError as error:
                if error.errno not in _TOO_LARGE:  # too large for the allowed send buffer
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
        """Wait until journald has read everything. Return False if that takes over `limit_s`."""
        return linger.wait_until_read(self._to.fileno(), limit_s)
