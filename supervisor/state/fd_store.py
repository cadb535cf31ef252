"""The fd store: everything that a supervisor holds, as a document and its descriptors.

The store is a socket pair with one message in it. The kernel keeps the message's descriptors
(unix(7), SCM_RIGHTS) as long as a process has the pair open: the next program after an exec, the fd
holder, systemd with its FD store. The first descriptor is a sealed memfd with the document, JSON.
In the document every other descriptor is an index.

An adopter finds the sockets by their inodes, which may be other sockets' by then. So the store has
a nonce: in its message, and in the file `handover` of the state directory, which only the owner can
read. The adopter's own user must have made the sockets and the document.

Only the same version reads a document. `VERSION` grows with each change of the document and of the
shared memory that the document leads to.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from contextlib import suppress

from supervisor.linux import fds, plain_json
from supervisor.linux.errors import ShimError, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

VERSION = 15
_WORD = b"forkshim-handover"
_MESSAGE_BYTES = 64
_NONCE_BYTES = 16
_CREDENTIALS = struct.Struct("iII")
_MOST_FDS = 253  # SCM_MAX_FD
_MOST_DOCUMENT = 64 << 20
_SO_PEEK_OFF = 42  # asm-generic/socket.h; the module `socket` lacks it
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class FdStoreError(ShimError):
    """The store cannot be used; the message says why."""


class FdWriter:
    """Collects the descriptors of a document, in their order. Borrows them."""

    def __init__(self) -> None:
        """Start without descriptors."""
        self.fds: list[int] = []

    def add(self, fd: int) -> int:
        """Add `fd` and return its index for the document; -1 if `fd` is negative."""
        if fd < 0:
            return -1
        self.fds.append(fd)
        return len(self.fds) - 1


class FdReader:
    """A document and its descriptors. Owns each descriptor until `take`."""

    def __init__(self, document: dict[str, Any], received: list[fds.Fd]) -> None:
        """Own `received`."""
        self.document = document
        self._received = received

    def take(self, index: int) -> fds.Fd:
        """Return the descriptor with this index in the document; the caller owns it.

        Raises:
            FdStoreError: There is none, or it was taken already.
        """
        if index == -1:
            return fds.Fd(-1)
        if not 0 <= index < len(self._received) or not self._received[index].is_open:
            raise FdStoreError(f"handover: no descriptor {index}")
        return fds.Fd(self._received[index].take())

    def close(self) -> None:
        """Close every descriptor that was not taken."""
        for each in self._received:
            each.close()


class FdStore:
    """The socket pair. Owned until `close`; its content is gone when no process has it open."""

    def __init__(self, *, ends: tuple[int, int] | None = None, nonce: str | None = None) -> None:
        """Make an empty store, or own the `ends` of a store that exists.

        `nonce` must be in its message; None where only a trusted process can have passed the ends.

        Raises:
            FdStoreError: `ends` are not such a pair; they are closed.
        """
        self._nonce = os.urandom(_NONCE_BYTES).hex() if ends is None else nonce
        try:
            import socket  # 3 ms, only where there is a store

            if ends is None:
                pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            else:
                pair = _sockets(ends)
        except OSError as error:
            raise FdStoreError(f"handover: {reason(error)}") from error
        except ImportError as error:  # EMFILE, as late as this, is that or an OSError
            raise FdStoreError(f"handover: {error}") from error
        self._front, self._back = pair

    def expect(self, nonce: str) -> None:
        """Make `look` refuse a message without this nonce."""
        self._nonce = nonce

    @property
    def nonce(self) -> str:
        """The secret in the message. Of a store that was found it is known after `look`."""
        return self._nonce or ""

    @property
    def fds(self) -> tuple[int, int]:
        """Both sockets, borrowed. A process that keeps them open keeps the content."""
        return (self._front.fileno(), self._back.fileno())

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been put into the store. Unlike `look` this changes nothing."""
        return not fds.is_readable(self._front.fileno())

    def put(self, document: dict[str, Any], fd_writer: FdWriter) -> None:
        """Replace the content. At every instant the store has the old or the new content.

        Raises:
            FdStoreError: The store has the old content still.
        """
        try:
            import array
            import socket

            memfd = _memfd(_encoded({**document, "fds": len(fd_writer.fds)}))
            try:
                rights = array.array("i", [memfd.fileno(), *fd_writer.fds])
                if len(rights) > _MOST_FDS:
                    raise FdStoreError(f"handover: {len(rights)} descriptors")
                self._back.sendmsg(
                    [self._message().ljust(_MESSAGE_BYTES, b"\0")],
                    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)],
                    socket.MSG_DONTWAIT,
                )
            finally:
                memfd.close()
        except OSError as error:
            raise FdStoreError(f"handover: {reason(error)}") from error
        except (ImportError, TypeError, ValueError) as error:  # EMFILE; a name that is no UTF-8
            raise FdStoreError(f"handover: {error}") from error
        self._drop_all_but_the_last()

    def _message(self) -> bytes:
        return b"%b %d %b" % (_WORD, VERSION, self.nonce.encode())

    def look(self) -> FdReader:
        """Return a copy of the content: new descriptors, close-on-exec, owned by the caller.

        Only one process may call it at a time, and not while another calls `put`.

        Raises:
            FdStoreError: The store is empty, or this version cannot read its content.
        """
        import socket

        self._check_whose_it_is()
        self._drop_all_but_the_last()
        try:
            message, received = _receive(self._front, socket.MSG_PEEK)
        except OSError as error:
            raise FdStoreError(f"handover: {reason(error)}") from error
        try:
            self._check_nonce(message)  # another message may have come since the first check
            return FdReader(_document(received), received[1:])
        except BaseException:
            for each in received:
                each.close()
            raise
        finally:
            if received:
                received[0].close()

    def _check_whose_it_is(self) -> None:
        """Peek at the first message. The inodes may be those of another program's sockets.

        No descriptor is received before its sender is known. close(2) of a descriptor that another
        user chose may sleep.

        Raises:
            FdStoreError: The store is not a supervisor's, has another version, or is empty.
        """
        import socket

        try:
            option = (socket.SOL_SOCKET, _SO_PEEK_OFF)
            # A supervisor that was killed in `_has_a_second` has left another offset.
            offset = self._front.getsockopt(*option)
            self._front.setsockopt(*option, -1)
            message = self._front.recv(_MESSAGE_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            makers = {_maker(end) for end in (self._front, self._back)}
            try:
                self._check(message, makers)
            except FdStoreError:
                self._front.setsockopt(*option, offset)
                raise
        except BlockingIOError as error:
            raise FdStoreError("handover: nothing has been published there yet") from error
        except OSError as error:
            raise FdStoreError(f"handover: {reason(error)}") from error

    def _check(self, message: bytes, makers: set[int]) -> None:
        word, version, nonce = [*message.rstrip(b"\0").split(b" "), b"", b""][:3]
        if word != _WORD:
            raise FdStoreError("handover: not a supervisor's")
        for uid in makers - {os.geteuid()}:
            raise FdStoreError(f"handover: made by user {uid}")
        if version != b"%d" % VERSION:
            raise FdStoreError(
                f"handover: state version {version.decode(errors='replace')!s:.20}, "
                f"this forkshim reads {VERSION}"
            )
        if self._nonce is None:
            self._nonce = nonce.decode("ascii", "replace")
        self._check_nonce(message)

    def _check_nonce(self, message: bytes) -> None:
        if message.rstrip(b"\0") != self._message():
            raise FdStoreError("handover: not what the supervisor has published")

    def _drop_all_but_the_last(self) -> None:
        """Remove the older of two messages: a supervisor may have been killed within `put`."""
        import socket

        while self._has_a_second():
            self._front.recv(
                1, socket.MSG_DONTWAIT
            )  # without ancillary data: the kernel closes the descriptors

    def _has_a_second(self) -> bool:
        import socket

        # Peeks from behind the first one (SO_PEEK_OFF, socket(7)).
        self._front.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, _MESSAGE_BYTES)
        try:
            return bool(self._front.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return False
        finally:
            self._front.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, -1)

    def close(self) -> None:
        """Close both ends."""
        self._front.close()
        self._back.close()


def _sockets(ends: tuple[int, int]) -> tuple[socket.socket, socket.socket]:
    import socket

    taken: list[socket.socket] = []
    is_such_a_pair = False
    try:
        taken.extend(socket.socket(fileno=end) for end in ends)
        kinds = {(each.family, each.type) for each in taken}
        is_such_a_pair = kinds == {(socket.AF_UNIX, socket.SOCK_DGRAM)}
    finally:
        if not is_such_a_pair:
            for each in taken:
                each.detach()
            for end in ends:
                with suppress(OSError):  # EBADF
                    os.close(end)
    if not is_such_a_pair:
        raise FdStoreError("handover: not a supervisor's")
    front, back = taken
    return front, back


def _maker(end: socket.socket) -> int:
    """Return the user that made the pair. Source: unix(7), SO_PEERCRED of socketpair(2)."""
    import socket

    _pid, uid, _gid = _CREDENTIALS.unpack(
        end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return int(uid)


def _memfd(content: bytes) -> fds.Fd:
    memfd = fds.Fd(os.memfd_create("forkshim:handover", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(memfd.fileno(), rest) :]
        fcntl.fcntl(memfd.fileno(), fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        memfd.close()
        raise
    return memfd


def _receive(front: socket.socket, flags: int) -> tuple[bytes, list[fds.Fd]]:
    import socket

    from workers.common import fd_passing

    message, received = fd_passing.receive(
        front, _MESSAGE_BYTES, _MOST_FDS, flags | socket.MSG_DONTWAIT
    )
    return message, [fds.Fd(fd) for fd in received]


def _encoded(document: dict[str, Any]) -> bytes:
    """Raise UnicodeEncodeError for a path that is not UTF-8: `loads` would return another path."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _document(received: list[fds.Fd]) -> dict[str, Any]:
    if not received:
        raise FdStoreError("handover: not a supervisor's")
    memfd = received[0].fileno()
    attributes = os.fstat(memfd)
    size = attributes.st_size
    if attributes.st_uid != os.geteuid():
        raise FdStoreError(f"handover: a document of user {attributes.st_uid}")
    if fcntl.fcntl(memfd, fcntl.F_GET_SEALS) & _SEALS != _SEALS or size > _MOST_DOCUMENT:
        raise FdStoreError("handover: not a sealed document")
    try:
        document = plain_json.loads(os.pread(memfd, size, 0))
    except ValueError as error:
        raise FdStoreError(f"handover: {error}") from error
    if not isinstance(document, dict) or document.get("fds") != len(received) - 1:
        raise FdStoreError("handover: descriptors are missing")
    return document
