"""Those who hear a container's output while it runs: `forkshim attach`, or any reader of a fifo.

A listener makes a fifo in the state directory, opens it for reading and says so to `control`. The
worker of the stream then copies into it what has room there, and waits for nobody: who reads too
slowly, or was stopped, misses something, and only he.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from functools import partial

from supervisor.linux import fds
from supervisor.linux.errors import reason
from workers.common.records import dataclass
from workers.process.counters import MAX_ATTACH_CLIENTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from supervisor.io.stream import Stream
    from supervisor.linux.event_loop import Loop
    from supervisor.state.fd_store import FdReader, FdWriter
    from supervisor.state.log import Log
    from workers.process.counters import StreamCounters

ASKING, LET_IN, TURNED_AWAY, NOTHING_TO_HEAR = 0o600, 0o400, 0o200, 0
"""Modes of a listener's fifo, which tell him what became of it; he makes it with the first. No
event does: one that never had a writer is silent, also when it never will have one."""


@dataclass(frozen=True, slots=True)
class _Listener:
    stream: Stream
    number: int
    name: str
    pipe: fds.Fd


class AttachClients:
    """All listeners of one container. Owns their fifos, our ends of them."""

    def __init__(
        self,
        loop: Loop,
        log: Log,
        counters: StreamCounters,
        on_left: Callable[[Stream], None],
        dir_fd: int | None = None,
    ) -> None:
        """Borrow everything; `on_left` follows when a listener of a stream has gone.

        `dir_fd`: the state directory, where the clients make their fifos.
        """
        self._dir_fd = dir_fd
        self._loop = loop
        self._log = log
        self._counters = counters
        self._on_left = on_left
        self._listeners: list[_Listener] = []

    def of(self, stream: Stream) -> tuple[tuple[int, int], ...]:
        """Return number and descriptor of each who hears this stream."""
        return tuple((each.number, each.pipe.fileno()) for each in self._of(stream))

    def add(self, stream: Stream | None, fifo: str) -> bool:
        """Let whoever reads `fifo` hear the stream; the next worker does it.

        Its name is removed. Who cannot be let, because there is no such stream or there are too
        many, is at end of file at once. Returns whether he will hear: `let_in` tells him.
        """
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            pipe = fds.Fd(os.open(fifo, flags, dir_fd=self._dir_fd))
        except OSError as error:
            self.reject(fifo, error)
            return False
        if not fds.is_fifo(pipe.fileno()):
            self._log.warning(f"attach {fifo}: not a fifo")
            pipe.close()
            return False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fifo, dir_fd=self._dir_fd)
        number = self._free_number()
        if stream is None or number is None or not stream.is_interruptible:
            mode = TURNED_AWAY
            if stream is None:
                mode = NOTHING_TO_HEAR
            elif number is None:
                self._log.warning(f"attach {fifo}: there are {MAX_ATTACH_CLIENTS} listeners")
            else:
                self._log.warning(f"attach {fifo}: {stream.sink_name} is open for appending")
            os.fchmod(pipe.fileno(), mode)
            pipe.close()
            return False
        fds.grow_pipe(pipe.fileno())
        self._counters.reset_skipped(number)
        self._take(_Listener(stream, number, fifo, pipe))
        return True

    def accept(self, stream: Stream) -> None:
        """Tell those who ask that what the stream takes from now on is heard."""
        for each in self._of(stream):
            os.fchmod(each.pipe.fileno(), LET_IN)

    def reject(self, fifo: str, error: OSError) -> None:
        """Tell whoever reads `fifo`, which cannot be opened or not be used, and the log.

        Takes no descriptor: want of them is why one is turned away.
        """
        if error.errno not in (errno.ENOENT, errno.ENXIO):  # else he has left meanwhile
            self._log.warning(f"attach {fifo}: {reason(error)}")
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISFIFO(os.stat(fifo, dir_fd=self._dir_fd, follow_symlinks=False).st_mode):
                os.chmod(fifo, TURNED_AWAY, dir_fd=self._dir_fd)
                os.unlink(fifo, dir_fd=self._dir_fd)

    def end(self, stream: Stream) -> None:
        """Let those who hear this stream see its end."""
        for each in self._of(stream):
            self._let_go(each)

    def pack(self, fd_writer: FdWriter) -> list[dict[str, Any]]:
        """Return what `go_on` of a successor needs."""
        return [
            {
                "stream": each.stream.name,
                "number": each.number,
                "name": each.name,
                "pipe": fd_writer.add(each.pipe.fileno()),
            }
            for each in self._listeners
        ]

    def go_on(
        self, packed: Iterable[Mapping[str, Any]], contents: FdReader, streams: Iterable[Stream]
    ) -> None:
        """Take those of an earlier supervisor."""
        by_name = {stream.name: stream for stream in streams}
        for each in packed:
            pipe = contents.take(each["pipe"])
            self._take(_Listener(by_name[each["stream"]], each["number"], each["name"], pipe))

    def close(self) -> None:
        """Let everybody go."""
        for each in list(self._listeners):
            self._let_go(each)

    def _of(self, stream: Stream) -> list[_Listener]:
        return [each for each in self._listeners if each.stream is stream]

    def _free_number(self) -> int | None:
        taken = {each.number for each in self._listeners}
        return next((number for number in range(MAX_ATTACH_CLIENTS) if number not in taken), None)

    def _take(self, listener: _Listener) -> None:
        self._listeners.append(listener)
        # The write end of a pipe without a reader: POLLERR, poll(2). It never is readable.
        self._loop.watch(listener.pipe.fileno(), partial(self._left, listener), feature="attach")

    def _left(self, listener: _Listener) -> None:
        self._let_go(listener)
        self._on_left(listener.stream)

    def _let_go(self, listener: _Listener) -> None:
        self._listeners.remove(listener)
        self._loop.forget(listener.pipe.fileno())
        listener.pipe.close()
        missed = self._counters.skipped_bytes(listener.number)
        if missed:
            self._log.info(
                f"{listener.name}: has missed {missed} bytes of {listener.stream.name}: too slow"
            )
