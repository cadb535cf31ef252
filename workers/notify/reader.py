"""The worker that reads the container's sd_notify socket.

The container chooses the datagrams, and how long their reception takes. A datagram can carry a
descriptor whose close(2) sleeps (a TCP socket with SO_LINGER, a file of the container's own FUSE).
The kernel closes it in the receiving process. So this process has no other work and no other
descriptors, and the supervisor replaces it when it makes no progress.

The worker first peeks at a datagram (MSG_PEEK), sends or stores its message, and then receives it.
It provides no buffer for descriptors, so the kernel closes them, which also answers BARRIER=1.

Source: unix(7), SCM_CREDENTIALS; recv(2); socket(7), SO_LINGER.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from typing import NamedTuple

from workers.common import cgroup_names, process_stat
from workers.notify import words as notify_words
from workers.notify.rate_limit import (
    A_SECOND,
    AT_ONCE,
    READ_A_SECOND,
    READ_AT_ONCE,
    REST_S,
    Bucket,
    merge,
)
from workers.process import isolate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from workers.notify.memory import NotifyMemory
    from workers.notify.words import Words

RECORD_BYTES = 2048
"""Size of each message to the supervisor, padded with NUL: a write(2) up to PIPE_BUF is atomic."""
_MOST_LAST_WORDS = 256
_CREDENTIALS = struct.Struct("=iII")


class NotifyContext(NamedTuple):
    """Context passed to the worker across fork(2). Every descriptor is borrowed.

    Attributes:
        title: Process title for ps(1).
        socket: The container's socket, with SO_PASSCRED.
        memory: State for the next worker.
        words_wfd: Write end of the pipe for messages to the supervisor.
        until_rfd: Read end of a pipe. Its hang-up means that no further message will come.
        null_fd: /dev/null, open for reading and writing.
        cgroups: The container's cgroups; the worker ignores senders in other cgroups.
    """

    title: str
    socket: socket.socket
    memory: NotifyMemory
    words_wfd: int
    until_rfd: int
    null_fd: int
    cgroups: Mapping[bytes, bytes]


class _Datagram(NamedTuple):
    data: bytes
    pid: int
    is_cut: bool


def work(context: NotifyContext) -> None:
    """Read until `until_rfd` hangs up, or the supervisor has died."""
    kept = (context.socket.fileno(), context.words_wfd, context.until_rfd)
    isolate.enter_worker(context.title, kept, context.null_fd)
    with contextlib.suppress(BrokenPipeError):
        _Reader(context).run()


class _Reader:
    def __init__(self, context: NotifyContext) -> None:
        self._context = context
        self._memory = context.memory
        self._waiting = context.memory.waiting()
        now_s = time.monotonic()
        self._tokens = Bucket(AT_ONCE, A_SECOND, now_s)
        self._reads = Bucket(READ_AT_ONCE, READ_A_SECOND, now_s)
        self._rest_until_s = 0.0
        self._poller = select.poll()
        self._poller.register(context.until_rfd, 0)  # POLLHUP

    def run(self) -> None:
        """Send stored messages, and read."""
        while True:
            now_s = time.monotonic()
            while self._waiting and self._tokens.take(now_s):
                self._send_first()
            rest_s = max(0.0, self._rest_until_s - now_s)
            if self._poll(now_s, rest_s):
                self._send_last()
                return
            if not rest_s:
                self._take_one()

    def _poll(self, now_s: float, rest_s: float) -> bool:
        """Wait for a datagram, a token or the end of a rest. Return whether `until_rfd` hung up."""
        self._poller.register(self._context.socket, 0 if rest_s else select.POLLIN)
        waits_s = [rest_s] if rest_s else []
        if self._waiting:
            waits_s.append(self._tokens.wait_s(now_s))
        ready = self._poller.poll(min(waits_s) * 1000 if waits_s else None)
        return any(fd == self._context.until_rfd for fd, _events in ready)

    def _send_last(self) -> None:
        for _each in range(_MOST_LAST_WORDS):
            if not self._take_one():
                break
        while self._waiting:
            self._send_first()

    def _take_one(self) -> bool:
        """Send or store one message, and receive its datagram. Return False if there is none."""
        seen = self._receive(socket.MSG_PEEK)
        if seen is None:
            return False
        self._handle(seen)
        self._memory.begin()
        taken = self._receive(0)  # may sleep, see the module docstring
        self._memory.done()
        if taken is not None and taken != seen:  # a killed worker has received the first
            self._handle(taken)
        return True

    def _handle(self, datagram: _Datagram) -> None:
        words = notify_words.NOTHING
        if not datagram.is_cut and self._is_of_the_container(datagram.pid):
            words = notify_words.parse(datagram.data)
        now_s = time.monotonic()
        if words != notify_words.NOTHING and not self._waiting and self._tokens.take(now_s):
            self._send(words)
            return
        if words != notify_words.NOTHING:
            self._waiting = merge(self._waiting, words)
            self._memory.keep(self._waiting)
            self._memory.count_merged()
        if not self._reads.take(now_s):
            self._rest_until_s = now_s + REST_S

    def _receive(self, flags: int) -> _Datagram | None:
        try:
            data, ancillary, flags, _address = self._context.socket.recvmsg(
                notify_words.MOST_BYTES,
                socket.CMSG_LEN(_CREDENTIALS.size),  # no room for descriptors
                flags | socket.MSG_DONTWAIT,
            )
        except BlockingIOError:
            return None
        pid = 0
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                pid = _CREDENTIALS.unpack(content)[0]
        return _Datagram(data, pid, bool(flags & socket.MSG_TRUNC))

    def _is_of_the_container(self, pid: int) -> bool:
        """Return whether a sender is in the container's cgroups.

        True for a sender that has exited: only root of this machine and the container can reach
        the socket.
        """
        if pid == 0:  # the sender's pid namespace is not below this process's
            return False
        theirs = {} if process_stat.is_ending(pid) else cgroup_names.membership(pid)
        return not theirs or all(
            theirs.get(name, b"") == path
            or theirs.get(name, b"").startswith(path.rstrip(b"/") + b"/")
            for name, path in self._context.cgroups.items()
        )

    def _send_first(self) -> None:
        # Send before removing: if the worker is killed in between, the message is sent twice.
        self._send(self._waiting[0])
        self._waiting = self._waiting[1:]
        self._memory.keep(self._waiting)

    def _send(self, words: Words) -> None:
        os.write(self._context.words_wfd, notify_words.encode(words).ljust(RECORD_BYTES, b"\0"))
