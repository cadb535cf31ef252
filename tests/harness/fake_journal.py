"""A socket that takes records as journald does, and what was in them."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from supervisor.linux import spawn
from tests.harness.forked import Child

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_END = b"END\n"


@dataclass(frozen=True)
class Datagram:
    """One record: its fields, the pid it was sent for, and whether it came as a memfd."""

    fields: dict[str, bytes]
    pid: int
    is_memfd: bool

    @property
    def ordinal(self) -> int:
        return int(self.fields["CONTAINER_LOG_ORDINAL"])

    @property
    def message(self) -> bytes:
        return self.fields["MESSAGE"]


def parse(payload: bytes) -> dict[str, bytes]:
    """Read the native protocol; a name twice, or anything that is no field, is an error."""
    fields = {}
    while payload:
        head, newline, rest = payload.partition(b"\n")
        assert newline
        name, equals, value = head.partition(b"=")
        if not equals:
            length = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        assert name.decode() not in fields
        fields[name.decode()] = value
        payload = rest
    return fields


def receive(receiver: socket.socket) -> tuple[bytes, int, bool]:
    """Take one datagram: its payload, the sender's pid, and whether it came as a memfd."""
    space = socket.CMSG_SPACE(12) + socket.CMSG_SPACE(4)
    payload, control, _flags, _address = receiver.recvmsg(1 << 20, space)
    pid, is_memfd = 0, False
    for _level, kind, content in control:
        if kind == socket.SCM_CREDENTIALS:
            pid = struct.unpack("3i", content)[0]
        else:
            fd = array.array("i", content)[0]
            assert payload == b""
            assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == 0xF  # all that journald asks for
            payload = os.pread(fd, os.fstat(fd).st_size, 0)
            is_memfd = True
            os.close(fd)
    return payload, pid, is_memfd


def bind(path: Path) -> socket.socket:
    """Return a socket of that name that is told who sends."""
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(os.fspath(path))
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return receiver


class FakeJournal:
    """A child that reads a socket all the time and keeps what it gets in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept = path.with_suffix(".kept")
        self._kept.touch()  # a test may read it before the child has begun
        self._receiver = bind(path)
        self._child = Child(spawn.fork_worker(self._keep))

    def _keep(self) -> None:
        with self._kept.open("wb", buffering=0) as file:  # a test may look at it meanwhile
            while True:
                payload, pid, is_memfd = receive(self._receiver)
                if payload == _END:
                    return
                file.write(struct.pack("qq?", len(payload), pid, is_memfd) + payload)

    def stop(self) -> None:
        """Have it read nothing for a while."""
        os.kill(self._child.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Have it read again."""
        os.kill(self._child.pid, signal.SIGCONT)

    def datagrams(self) -> Iterator[Datagram]:
        """End it, and yield what came, in order."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(_END, os.fspath(self.path))
        self._child.wait()
        content = memoryview(self._kept.read_bytes())
        head = struct.calcsize("qq?")
        while content:
            length, pid, is_memfd = struct.unpack("qq?", content[:head])
            yield Datagram(parse(bytes(content[head : head + length])), pid, is_memfd)
            content = content[head + length :]

    def __enter__(self) -> FakeJournal:
        return self

    def close(self) -> None:
        """End it, without its name; a second call does nothing."""
        self._child.kill()
        self._receiver.close()

    def __exit__(self, *_exception: object) -> None:
        self.close()
        self.path.unlink(missing_ok=True)
        self._kept.unlink(missing_ok=True)  # a second one of the same path has removed it


class FakeStreams:
    """A child that takes streams as journald's /run/systemd/journal/stdout does, one at a time.

    Keeps what comes after each header in one file; a stream begins where the one before ended.
    """

    HEADER_LINES = 7

    def __init__(self, path: Path) -> None:
        self.kept = path.with_suffix(".kept")
        self.kept.touch()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(os.fspath(path))
        self._listener.listen()
        self._child = Child(spawn.fork_worker(self._keep))

    def _keep(self) -> None:
        with self.kept.open("wb", buffering=0) as file:
            while True:
                stream, _address = self._listener.accept()
                with stream, stream.makefile("rb", buffering=1 << 20) as reader:
                    for _ in range(self.HEADER_LINES):
                        reader.readline()
                    while line := reader.readline(1 << 20):
                        file.write(line)

    def __enter__(self) -> FakeStreams:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._child.kill()
        self._listener.close()
