"""The fd store: everything that another supervisor needs, as a document and descriptors.

The store is a socket pair that contains one message. The kernel keeps the message's descriptors
(unix(7), SCM_RIGHTS) while a process has the pair open: the next program after an execve(2), the fd
holder, or systemd with its FD store. The first descriptor is a sealed memfd with a JSON document.
The document names every other descriptor by its index.

An adopter finds the sockets by their inodes, which may belong to other sockets by then. So the
store has a nonce: in its message, and in the file `handover` of the state directory, which only the
owner can read. The adopter's own user must have made the sockets and the document.

Only the same version reads a document. `VERSION` grows with each change of the document and of the
shared memory whose descriptors it names.
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
    """The store cannot be used. The message has the reason."""


class FdWriter:
    """Collects the descriptors of a document, in order. Borrows them."""

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
        """Return the descriptor with this index; the caller owns it. -1: a closed `Fd`.

        Raises:
            FdStoreError: There is no such descriptor, or it was taken already.
        """
        if index == -1:
            return fds.Fd(-1)
        if not 0 <= index < len(self._received) or not self._received[index].is_open:
            raise FdStoreError(f"handover: no descriptor {index}")
        return fds.Fd(self._received[index].take())

    def inode(self, index: int) -> int:
        """Return the inode of a descriptor that was not taken.

        Raises:
            OSError, IndexError: There is none.
        """
        return os.fstat(self._received[index].fileno()).st_ino

    def close(self) -> None:
        """Close every descriptor that was not taken."""
        for each in self._received:
            each.close()


class FdStore:
    """Owns the socket pair until `close`. The content exists while a process has the pair open."""

    def __init__(self, *, ends: tuple[int, int] | None = None, nonce: str | None = None) -> None:
        """Make an empty store, or own the two `ends` of an existing store.

        `nonce`: `look` refuses a message with another nonce. None accepts any, because only a
        trusted process could have passed the ends.

        Raises:
            FdStoreError: EMFILE; or `ends` are no such pair, and are closed now.
        """
        self._nonce = os.urandom(_NONCE_BYTES).hex() if ends is None else nonce
        try:
            import socket  # 3 ms, only for a container that can be adopted

            if ends is None:
                pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            else:
                pair = _sockets(ends)
        except OSError as error:
            raise FdStoreError(f"handover: {reason(error)}") from error
        except ImportError as error:  # EMFILE while the module was opened
            raise FdStoreError(f"handover: {error}") from error
        self._front, self._back = pair

    def expect(self, nonce: str) -> None:
        """Make `look` refuse a message without this nonce."""
        self._nonce = nonce

    @property
    def nonce(self) -> str:
        """The secret in the message; "" for an existing store before `look`."""
        return self._nonce or ""

    @property
    def fds(self) -> tuple[int, int]:
        """Both sockets, borrowed. A process that keeps them open keeps the content."""
        return (self._front.fileno(), self._back.fileno())

    @property
    def is_empty(self) -> bool:
        """Whether the store has no message. Unlike `look`, this changes nothing."""
        return not fds.is_readable(self._front.fileno())

    def put(self, document: dict[str, Any], fd_writer: FdWriter) -> None:
        """Replace the content. At every instant the store has the old or the new content.

        Raises:
            FdStoreError: A system call failed, or there are over 253 descriptors. The store keeps
                the old content.
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
        except (ImportError, TypeError, ValueError) as error:  # EMFILE; a name that is not UTF-8
            raise FdStoreError(f"handover: {error}") from error
        self._drop_all_but_the_last()

    def clear(self) -> None:
        """Remove the content, although another process keeps the store open."""
        import socket

        with suppress(BlockingIOError):
            while True:  # without ancillary data: the kernel closes the descriptors
                self._front.recv(1, socket.MSG_DONTWAIT)

    def _message(self) -> bytes:
        return b"%b %d %b" % (_WORD, VERSION, self.nonce.encode())

    def look(self) -> FdReader:
        """Return a copy of the content: new descriptors, close-on-exec, owned by the caller.

        Only one process at a time may call `look` or `put`.

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
        except BaseException:  # also KeyboardInterrupt: the descriptors have no other owner
            for each in received:
                each.close()
            raise
        finally:
            if received:
                received[0].close()

    def _check_whose_it_is(self) -> None:
        """Peek at the first message: the inodes may belong to another program's sockets by now.

        This receives no descriptor, because its sender is not known yet. close(2) of a descriptor
        that another user chose may sleep.

        Raises:
            FdStoreError: No supervisor wrote the message, it has another version, or there is none.
        """
        import socket

        try:
            option = (socket.SOL_SOCKET, _SO_PEEK_OFF)
            # A supervisor that was killed in `_has_a_second` has left an offset.
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
            raise FdStoreError("handover: the fd store is empty") from error
        except OSError as error:
            raise FdStoreError(f"handover: {reason(error)}") from error

    def _check(self, message: bytes, makers: set[int]) -> None:
        word, version, nonce = [*message.rstrip(b"\0").split(b" "), b"", b""][:3]
        if word != _WORD:
            raise FdStoreError("handover: not written by a supervisor")
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
            raise FdStoreError("handover: wrong nonce: another process has published it")

    def _drop_all_but_the_last(self) -> None:
        """Remove the older of two messages: `put` sends first, and a signal may kill it then."""
        import socket

        while self._has_a_second():
            # recv(2) takes no ancillary data, so the kernel closes the message's descriptors.
            self._front.recv(1, socket.MSG_DONTWAIT)

    def _has_a_second(self) -> bool:
        import socket

        # Peek after the end of the first message. Source: socket(7), SO_PEEK_OFF.
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
        raise FdStoreError("handover: not written by a supervisor")
    front, back = taken
    return front, back


def _maker(end: socket.socket) -> int:
    """Return the uid that made the pair. Source: unix(7), SO_PEERCRED of socketpair(2)."""
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
    """Return the JSON.

    Raises:
        UnicodeEncodeError: A path is not UTF-8: `loads` would return another path.
    """
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _document(received: list[fds.Fd]) -> dict[str, Any]:
    if not received:
        raise FdStoreError("handover: not written by a supervisor")
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
