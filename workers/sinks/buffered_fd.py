"""The worker of an output with a drop policy whose sink is a descriptor: a fifo, for example.

    source --splice--> staging pipe --readv--> line buffer --write--> outlet pipe --splice--> sink

`workers.lines.reader` explains the first half; the second half mirrors it. Only the living worker
of the stream writes to the outlet pipe. So its content tells how much a killed worker has written,
and splice(2) moves a byte to the sink or leaves it there.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from typing import NamedTuple

from workers.common import fd_state, position
from workers.common.shared_memory import Record
from workers.lines import run
from workers.lines.buffer import LineBuffer
from workers.lines.sink import RecordSink
from workers.process.linger import wait_until_read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.copy.route import Route
    from workers.process.context import WorkerContext

_OUTLET_BYTES = 64 << 10
_SLOW_BYTES = 512
"""For a terminal or a device: poll(2) reports room for some bytes, but write(2) waits for all."""


class OutletState(NamedTuple):
    """How far the bytes of the line buffer have come.

    Attributes:
        consumed: Position up to which every byte is in the outlet pipe or in the sink.
        sending: 1 during a write to the outlet pipe, which was empty before.
    """

    consumed: int
    sending: int


class Buffered:
    """The supervisor's side of one stream. Made before fork(2); the owner calls `close`."""

    def __init__(
        self, stream: str, policy: str, buffer_bytes: int, inherited: Sequence[int] = ()
    ) -> None:
        """Make the memory and the pipe, or take over `inherited`, the `fds` of an earlier object.

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
        """Descriptors that a worker keeps open."""
        return (*self.buffer.fds, *self.outlet)

    def read(self) -> OutletState:
        """Return the state of the last commit."""
        return OutletState._make(self._record.read())

    def commit(self, state: OutletState) -> None:
        """Make `state` the current state."""
        self._record.commit(state)

    def close(self) -> None:
        """Close the memory and the pipe."""
        self._record.release()
        self.buffer.close()
        self._close_outlet()

    def _close_outlet(self) -> None:
        ends, self.outlet = self.outlet, (-1, -1)
        for end in ends:
            if end >= 0:
                os.close(end)


class PipeWriter(RecordSink):
    """One worker's access to the sink. It may cut the bytes anywhere: there are no records."""

    limit_bytes = 0
    stall_fd = -1

    def __init__(self, buffered: Buffered, sink_fd: int, *, lingers: bool) -> None:
        """Continue where a killed worker stopped.

        `lingers`: the sink is a socket, and `close` waits until the peer has read everything.
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
        self.consumed = max(consumed, buffered.buffer.read().dropped_to)

    @property
    def rest_bytes(self) -> int:
        """How many bytes the outlet pipe holds."""
        return fd_state.pending_bytes(self._outlet_rfd)

    def write(self, end: int) -> None:
        """Flush the outlet pipe, then write whole lines, if there are any, to it.

        Raises:
            BlockingIOError: The sink has no room.
            OSError: The sink failed.
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
        """Move the content of the outlet pipe to the sink. Raises as `write`."""
        while rest := self.rest_bytes:
            if fd_state.would_wait(self.stall_fd, select.POLLOUT):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            most = rest if _takes_what_fits(self.stall_fd) else min(rest, _SLOW_BYTES)
            self._to_position()
            try:
                os.splice(self._outlet_rfd, self.stall_fd, most, flags=os.SPLICE_F_NONBLOCK)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._write_rest(most)

    def _write_rest(self, most: int) -> None:
        """Flush with write(2) where splice(2) fails with EINVAL. A kill may lose those bytes."""
        content = self.take_rest()
        written = 0
        try:
            written = os.write(self.stall_fd, content[:most])
        finally:
            if content[written:]:
                os.write(self._outlet_wfd, content[written:])

    def take_rest(self) -> bytes:
        """Empty the outlet pipe, and return its content."""
        rest = self.rest_bytes
        return os.read(self._outlet_rfd, rest) if rest else b""

    def close(self) -> None:
        """Wait until the peer has read everything, for a limited time."""
        if self._lingers:
            wait_until_read(self.stall_fd)


def _takes_what_fits(fd: int) -> bool:
    """Return whether splice(2) to a writable `fd` moves what fits and returns.

    True for pipes (SPLICE_F_NONBLOCK), for non-blocking sockets, and for files.
    """
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def work(
    context: WorkerContext,
    route: Route,
    buffered: Buffered,
    sink_fd: int,
    *,
    lingers: bool = False,
) -> None:
    """Copy until the container has closed its side, then report. Does not use the sink of `route`.

    Args:
        context: The worker's context.
        route: The source and the staging pipe.
        buffered: The buffer of this stream, which the supervisor owns.
        sink_fd: Must be non-blocking if it is a socket.
        lingers: See `PipeWriter`.
    """
    context.enter((*route.source_fds, *buffered.fds, sink_fd))
    writer = PipeWriter(buffered, sink_fd, lingers=lingers)
    run.work(context, route, buffered.buffer, writer)
