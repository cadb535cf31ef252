"""The worker that reads the container's sd_notify socket, and it alone.

What comes is of the container's choice, and so is how long it takes to be taken off the socket: a
datagram can bring a descriptor whose close(2) sleeps (a TCP socket with SO_LINGER, a file of the
container's own FUSE). The kernel closes it in the process that receives. So this process does
nothing else, holds nothing else, and the supervisor replaces it when it does not move.

A datagram is looked at first (MSG_PEEK), told or noted, and only then taken off. The descriptors
are never received: the kernel closes what finds no room, which also answers BARRIER=1.

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
"""Of each message to the supervisor, padded with NUL: up to PIPE_BUF a write(2) is not torn."""
_MOST_LAST_WORDS = 256
_CREDENTIALS = struct.Struct("=iII")


class Place(NamedTuple):
    """What the worker is handed before the fork. Every descriptor is borrowed.

    Attributes:
        title: As ps(1) shows it.
        socket: The container's, with SO_PASSCRED.
        memory: What it leaves to the next worker.
        words_wfd: Where records go.
        until_rfd: A pipe, whose hang-up means that these are the last words.
        null_fd: /dev/null, open for reading and writing.
        cgroups: The container's; who is in others is not heard.
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


def work(place: Place) -> None:
    """Read until there is nothing more to come, or the supervisor is gone."""
    kept = (place.socket.fileno(), place.words_wfd, place.until_rfd)
    isolate.enter_worker(place.title, kept, place.null_fd)
    with contextlib.suppress(BrokenPipeError):
        _Reader(place).run()


class _Reader:
    def __init__(self, place: Place) -> None:
        self._place = place
        self._memory = place.memory
        self._waiting = place.memory.waiting()
        now_s = time.monotonic()
        self._tokens = Bucket(AT_ONCE, A_SECOND, now_s)
        self._reads = Bucket(READ_AT_ONCE, READ_A_SECOND, now_s)
        self._rest_until_s = 0.0
        self._poller = select.poll()
        self._poller.register(place.until_rfd, 0)  # POLLHUP

    def run(self) -> None:
        """Tell what waits, then read what comes."""
        while True:
            now_s = time.monotonic()
            while self._waiting and self._tokens.take(now_s):
                self._tell_first()
            rest_s = max(0.0, self._rest_until_s - now_s)
            if self._poll(now_s, rest_s):
                self._tell_the_last()
                return
            if not rest_s:
                self._take_one()

    def _poll(self, now_s: float, rest_s: float) -> bool:
        """Wait for a datagram, a token or the end of a rest; True if the last words have come."""
        self._poller.register(self._place.socket, 0 if rest_s else select.POLLIN)
        waits_s = [rest_s] if rest_s else []
        if self._waiting:
            waits_s.append(self._tokens.wait_s(now_s))
        ready = self._poller.poll(min(waits_s) * 1000 if waits_s else None)
        return any(fd == self._place.until_rfd for fd, _events in ready)

    def _tell_the_last(self) -> None:
        for _each in range(_MOST_LAST_WORDS):
            if not self._take_one():
                break
        while self._waiting:
            self._tell_first()

    def _take_one(self) -> bool:
        """Tell or note one datagram, and take it off; False if there is none."""
        seen = self._receive(socket.MSG_PEEK)
        if seen is None:
            return False
        self._hear(seen)
        self._memory.begin()
        taken = self._receive(0)  # may sleep: the module's docstring says why
        self._memory.done()
        if taken is not None and taken != seen:  # a predecessor took that one, as it was killed
            self._hear(taken)
        return True

    def _hear(self, datagram: _Datagram) -> None:
        words = notify_words.NOTHING
        if not datagram.is_cut and self._is_of_the_container(datagram.pid):
            words = notify_words.parse(datagram.data)
        now_s = time.monotonic()
        if words != notify_words.NOTHING and not self._waiting and self._tokens.take(now_s):
            self._tell(words)
            return
        if words != notify_words.NOTHING:
            self._waiting = merge(self._waiting, words)
            self._memory.keep(self._waiting)
            self._memory.count_merged()
        if not self._reads.take(now_s):
            self._rest_until_s = now_s + REST_S

    def _receive(self, flags: int) -> _Datagram | None:
        try:
            data, ancillary, flags, _address = self._place.socket.recvmsg(
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
        """Say whether a sender may speak; of one that has ended nothing can be known.

        Such a one may: only root of this machine and the container reach the socket at all.
        """
        if pid == 0:  # of a pid namespace that is neither ours nor below it
            return False
        theirs = {} if process_stat.is_ending(pid) else cgroup_names.membership(pid)
        return not theirs or all(
            theirs.get(name, b"") == path
            or theirs.get(name, b"").startswith(path.rstrip(b"/") + b"/")
            for name, path in self._place.cgroups.items()
        )

    def _tell_first(self) -> None:
        # Told before it is forgotten: a worker that is killed in between has it told twice.
        self._tell(self._waiting[0])
        self._waiting = self._waiting[1:]
        self._memory.keep(self._waiting)

    def _tell(self, words: Words) -> None:
        os.write(self._place.words_wfd, notify_words.encode(words).ljust(RECORD_BYTES, b"\0"))
