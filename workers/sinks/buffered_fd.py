"""The worker of an output that may be dropped, and whose sink is a descriptor, as a fifo.

    source --splice--> staging --readv--> line buffer --writev--> outlet pipe --splice--> sink

The way in is that of `workers.lines.reader`, and the way out is its mirror image: only the stream's
one living worker writes to the outlet pipe, so what is in there tells how much a killed one has
written, and splice(2) moves it to the sink or does not.
"""

from __future__ import annotations

import errno
import os
import select
from typing import NamedTuple

from workers.common import position
from workers.common.shared_memory import Record
from workers.copy import splice
from workers.lines import run
from workers.lines.buffer import LineBuffer
from workers.process.linger import wait_until_read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.process.context import WorkerContext

_OUTLET_BYTES = 64 << 10
_SLOW_BYTES = 512
"""For a terminal or a device: poll(2) promises room for something, and write(2) waits for all."""


class OutletState(NamedTuple):
    """What has left the line buffer.

    Attributes:
        consumed: The position up to which everything is in the outlet pipe or in the sink.
        sending: While bytes are on their way into the outlet pipe: 1, and it was empty before.
    """

    consumed: int
    sending: int


class Buffered:
    """The parent's side of one stream: made before the fork, owned until `close`."""

    def __init__(
        self, stream: str, policy: str, buffer_bytes: int, inherited: Sequence[int] = ()
    ) -> None:
        """Make the memory and the pipe, or take over `inherited`, the `fds` of an earlier one.

        Raises:
            OSError: EMFILE, ENFILE.
        """
        buffer_fd, *ends = inherited or (-1, -1, -1)
        self.outlet = (ends[0], ends[1]) if inherited else os.pipe2(os.O_CLOEXEC)
        try:
            self.buffer = LineBuffer(
                f"forkshim:{stream}", buffer_bytes, policy=policy, fd=buffer_fd
            )
        except OSError:
            self._close_outlet()
            raise
        words = Record.words_needed(len(OutletState._fields))
        self._record = Record(self.buffer.more_words[:words], len(OutletState._fields))

    @property
    def fds(self) -> tuple[int, ...]:
        """What a worker keeps."""
        return (*self.buffer.fds, *self.outlet)

    def read(self) -> OutletState:
        """Return what was committed last."""
        return OutletState._make(self._record.read())

    def commit(self, state: OutletState) -> None:
        """Make `state` the one that counts."""
        self._record.commit(state)

    def close(self) -> None:
        """Give everything back."""
        self._record.release()
        self.buffer.close()
        self._close_outlet()

    def _close_outlet(self) -> None:
        ends, self.outlet = self.outlet, (-1, -1)
        for end in ends:
            if end >= 0:
                os.close(end)


class PipeWriter:
    """One worker's hand on the sink. Any cut of the bytes will do: there are no records."""

    is_unfinished = False
    limit_bytes = 0

    def __init__(self, buffered: Buffered, sink_fd: int, *, lingers: bool) -> None:
        """Go on where a killed predecessor stopped.

        `lingers`: the sink is a socket, whose peer has to read everything before we end.
        """
        self._buffered = buffered
        self._outlet_rfd, self._outlet_wfd = buffered.outlet
        self.stall_fd = sink_fd
        self._to_position = position.make_positioner(sink_fd, is_log=False)
        self._lingers = lingers
        consumed, sending = buffered.read()
        if sending:
            consumed += self.rest_bytes
            buffered.commit(OutletState(consumed, 0))
        self.consumed = max(consumed, buffered.buffer.read().front)

    @property
    def rest_bytes(self) -> int:
        """What is in the outlet pipe."""
        return splice.pending_bytes(self._outlet_rfd)

    def hold(self, end: int) -> int:
        """Return `end`: nothing waits."""
        return end

    def open(self) -> None:
        """Do nothing: the sink is open."""

    def pass_over(self, position: int) -> None:
        """Go on from `position`."""
        self.consumed = position

    def write(self, end: int) -> None:
        """Move whole lines, if there are some, into the outlet pipe, when that is empty.

        Raises:
            BlockingIOError: The sink has no room.
            OSError: The sink fails.
        """
        self.flush()
        buffer = self._buffered.buffer
        end = min(end, self.consumed + _OUTLET_BYTES)
        newline = buffer.last_newline(self.consumed, end)
        content = buffer.copy(self.consumed, end if newline < 0 else newline + 1)
        self._buffered.commit(OutletState(self.consumed, 1))
        written = os.write(self._outlet_wfd, content)
        self._buffered.commit(OutletState(self.consumed + written, 0))
        self.consumed += written

    def flush(self) -> None:
        """Move what is in the outlet pipe into the sink; raises as `write`."""
        writable = select.poll()
        writable.register(self.stall_fd, select.POLLOUT)
        while rest := self.rest_bytes:
            if not writable.poll(0):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            most = rest if splice.is_lossy(self.stall_fd) else min(rest, _SLOW_BYTES)
            self._to_position()
            try:
                os.splice(self._outlet_rfd, self.stall_fd, most, flags=os.SPLICE_F_NONBLOCK)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._write_rest(most)

    def _write_rest(self, most: int) -> None:
        """As `flush`, for what splice(2) refuses; a kill may lose what is in hand."""
        content = self.take_back()
        written = 0
        try:
            written = os.write(self.stall_fd, content[:most])
        finally:
            if content[written:]:
                os.write(self._outlet_wfd, content[written:])

    def take_back(self) -> bytes:
        """Empty the outlet pipe."""
        rest = self.rest_bytes
        return os.read(self._outlet_rfd, rest) if rest else b""

    def close(self) -> None:
        """Stay until all is read, for a while."""
        if self._lingers:
            wait_until_read(self.stall_fd)


def work(
    context: WorkerContext,
    route: splice.Route,
    buffered: Buffered,
    sink_fd: int,
    *,
    lingers: bool = False,
) -> None:
    """Copy until the container has closed its side, then report. The sink of `route` is not used.

    Args:
        context: As for every worker.
        route: The source and the staging pipe.
        buffered: What the parent has made, for this stream alone.
        sink_fd: A socket has to be non-blocking.
        lingers: See `PipeWriter`.
    """
    context.enter((*route.source_fds, *buffered.fds, sink_fd))
    writer = PipeWriter(buffered, sink_fd, lingers=lingers)
    run.work(context, route, buffered.buffer, writer)
