"""Attach clients over fifos: they read a container's output while it runs.

A client is `forkshim attach` or any other reader of a fifo. It makes a fifo in the state directory,
opens it for reading, and writes its name to `control`. The stream's worker then copies into the
fifo whatever fits. Attach clients never slow the container down: a client that reads too slowly
loses output, other clients and the sink do not.
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

ASKING, ACCEPTED, REJECTED, NOTHING_TO_HEAR = 0o600, 0o400, 0o200, 0
"""Modes of a client's fifo. The client makes it with the first; the others are the answer.

No event could tell the answer: poll(2) reports nothing for a fifo that never had a writer.
"""


@dataclass(frozen=True, slots=True)
class _Client:
    stream: Stream
    number: int
    name: str
    pipe: fds.Fd


class AttachHub:
    """All attach clients of one container. Owns the write ends of their fifos."""

    SNAPSHOT = ("_clients",)
    TRANSIENT = ("_loop", "_log", "_counters", "_on_left", "_dir_fd")

    def __init__(
        self,
        loop: Loop,
        log: Log,
        counters: StreamCounters,
        on_left: Callable[[Stream], None],
        dir_fd: int | None = None,
    ) -> None:
        """Borrow everything.

        Args:
            loop: Watches the fifos.
            log: Gets rejected clients and skipped bytes.
            counters: Count what each client skipped.
            on_left: Called when a client of a stream has left.
            dir_fd: The state directory, where the clients make their fifos. None: the cwd.
        """
        self._dir_fd = dir_fd
        self._loop = loop
        self._log = log
        self._counters = counters
        self._on_left = on_left
        self._clients: list[_Client] = []

    def clients_of(self, stream: Stream) -> tuple[tuple[int, int], ...]:
        """Return number and descriptor of each client of this stream."""
        return tuple((each.number, each.pipe.fileno()) for each in self._of(stream))

    def add(self, stream: Stream | None, fifo: str) -> bool:
        """Add the reader of `fifo` to the clients of the stream. The next worker writes to it.

        Unlinks the fifo. A rejected client reads end of file at once. A client is rejected if there
        is no such stream, if there are too many clients, or if the sink is open for appending.

        Returns:
            Whether the client was added. `accept` tells the client.
        """
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            if stream is not None and stream.staging is None:
                stream.staging = fds.pipe()
            pipe = fds.Fd(os.open(fifo, flags, dir_fd=self._dir_fd))
        except OSError as error:  # EMFILE
            self._reject(fifo, error)
            return False
        if not fds.is_fifo(pipe.fileno()):
            self._log.warning(f"attach {fifo}: rejected, not a fifo")
            pipe.close()
            return False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fifo, dir_fd=self._dir_fd)
        number = self._free_number()
        if stream is None or number is None or not stream.is_interruptible:
            mode = REJECTED
            if stream is None:
                mode = NOTHING_TO_HEAR
            elif number is None:
                self._log.warning(
                    f"attach {fifo}: rejected, {MAX_ATTACH_CLIENTS} clients are attached already"
                )
            else:
                self._log.warning(
                    f"attach {fifo}: rejected, {stream.sink_name} is open for appending"
                )
            os.fchmod(pipe.fileno(), mode)
            pipe.close()
            return False
        fds.grow_pipe(pipe.fileno())
        self._counters.reset_skipped(number)
        self._take(_Client(stream, number, fifo, pipe))
        return True

    def accept(self, stream: Stream) -> None:
        """Tell the waiting clients that they get what the stream takes from now on."""
        for each in self._of(stream):
            os.fchmod(each.pipe.fileno(), ACCEPTED)

    def _reject(self, fifo: str, error: OSError) -> None:
        """Tell the reader of `fifo` and the log that it cannot be opened.

        Opens no descriptor: EMFILE may be the reason.
        """
        if error.errno not in (errno.ENOENT, errno.ENXIO):  # else the client has left meanwhile
            self._log.warning(f"attach {fifo}: rejected, {reason(error)}")
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISFIFO(os.stat(fifo, dir_fd=self._dir_fd, follow_symlinks=False).st_mode):
                os.chmod(fifo, REJECTED, dir_fd=self._dir_fd)
                os.unlink(fifo, dir_fd=self._dir_fd)

    def end(self, stream: Stream) -> None:
        """Close the fifos of this stream's clients, which then read end of file."""
        for each in self._of(stream):
            self._remove(each)

    def snapshot(self, fd_writer: FdWriter) -> list[dict[str, Any]]:
        """Return what `restore` of the next supervisor needs."""
        return [
            {
                "stream": each.stream.name,
                "number": each.number,
                "name": each.name,
                "pipe": fd_writer.add(each.pipe.fileno()),
            }
            for each in self._clients
        ]

    def restore(
        self, packed: Iterable[Mapping[str, Any]], contents: FdReader, streams: Iterable[Stream]
    ) -> None:
        """Take the clients of an earlier supervisor."""
        by_name = {stream.name: stream for stream in streams}
        for each in packed:
            pipe = contents.take(each["pipe"])
            self._take(_Client(by_name[each["stream"]], each["number"], each["name"], pipe))

    def close(self) -> None:
        """Close the fifos of all clients."""
        for each in list(self._clients):
            self._remove(each)

    def _of(self, stream: Stream) -> list[_Client]:
        return [each for each in self._clients if each.stream is stream]

    def _free_number(self) -> int | None:
        taken = {each.number for each in self._clients}
        return next((number for number in range(MAX_ATTACH_CLIENTS) if number not in taken), None)

    def _take(self, client: _Client) -> None:
        self._clients.append(client)
        # A write end is never readable. poll(2) reports POLLERR once the last reader has left.
        self._loop.watch(client.pipe.fileno(), partial(self._left, client), feature="attach")

    def _left(self, client: _Client) -> None:
        self._remove(client)
        self._on_left(client.stream)

    def _remove(self, client: _Client) -> None:
        self._clients.remove(client)
        self._loop.forget(client.pipe.fileno())
        client.pipe.close()
        skipped = self._counters.skipped_bytes(client.number)
        if skipped:
            self._log.info(
                f"attach client {client.name}: skipped {skipped} bytes of {client.stream.name}, "
                "client too slow"
            )
