"""The worker of stdin: from the client's fifo, file or terminal to the container.

It differs from the others in what it must notice without a byte to move: that the container has
closed its stdin, and that the supervisor is gone while a person's terminal is in raw mode. So it
polls before it splices, and never sleeps inside splice(2) on a full pipe. Nor does it let small
writes gather (`workers.copy.batching`): the container waits for each of them, and there may be a
person.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import termios
from enum import Enum

from workers.common.records import dataclass
from workers.copy import splice
from workers.process import report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from workers.process.context import WorkerContext


@dataclass(frozen=True, slots=True)
class RawTerminal:
    """A terminal in raw mode, and what tcsetattr(3) has to be given to undo it."""

    fd: int
    saved: list[Any]


def work(context: WorkerContext, route: splice.Route, raw: RawTerminal | None = None) -> None:
    """Copy until end of file or until the container stops reading, then report.

    With `raw` it also ends when the supervisor has died, and gives the terminal back.
    """
    context.enter(route.fds if raw is None else (*route.fds, raw.fd))
    try:
        if not _copy(context, route, ends_with_supervisor=raw is not None) and raw is not None:
            _give_back(raw)
    except splice.CopyError as error:
        context.send(report.Report(context.stream, context.copied_bytes, error.errno, error.side))
    else:
        context.send(report.Report(context.stream, context.copied_bytes))


def _give_back(raw: RawTerminal) -> None:
    # The shell is in the foreground by now: not ignored, SIGTTOU would stop us here.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    termios.tcsetattr(raw.fd, termios.TCSADRAIN, raw.saved)


def _copy(context: WorkerContext, route: splice.Route, *, ends_with_supervisor: bool) -> bool:
    """Return True at end of file, False when the supervisor is gone."""
    poller = select.poll()
    poller.register(route.source_fd, select.POLLIN)
    poller.register(route.sink_fd, 0)  # no event but POLLERR and POLLHUP: nobody reads any more
    if ends_with_supervisor:
        poller.register(context.report_wfd, 0)
    if route.staging is not None:
        splice.empty_staging(route, route.staging, context)
    while True:
        ready = dict(poller.poll())
        if context.report_wfd in ready:
            return False
        if ready.get(route.sink_fd, 0) & (select.POLLERR | select.POLLHUP):
            raise splice.CopyError(OSError(errno.EPIPE, os.strerror(errno.EPIPE)), "sink")
        match _move_once(context, route):
            case _Moved.TO_THE_END:
                return True
            case _Moved.SINK_IS_FULL:
                # Only the sink is waited for: a source that hung up would be ready all the time.
                poller.unregister(route.source_fd)
                poller.modify(route.sink_fd, select.POLLOUT)
            case _Moved.SOME:
                poller.register(route.source_fd, select.POLLIN)
                poller.modify(route.sink_fd, 0)


class _Moved(Enum):
    SOME = 1
    SINK_IS_FULL = 2
    TO_THE_END = 3


def _move_once(context: WorkerContext, route: splice.Route) -> _Moved:
    try:
        if route.staging is None:
            moved = os.splice(
                route.source_fd, route.sink_fd, splice.SPLICE_BYTES, flags=os.SPLICE_F_NONBLOCK
            )
        else:
            moved = splice.fill_staging(route, route.staging, context)
    except BlockingIOError:
        return _Moved.SINK_IS_FULL if _is_readable(route.source_fd) else _Moved.SOME
    except OSError as error:
        raise splice.CopyError(error, "") from error
    if moved == 0:
        return _Moved.TO_THE_END
    if route.staging is None:
        context.add_copied(moved)
    else:
        splice.empty_staging(route, route.staging, context)
    return _Moved.SOME


def _is_readable(source_fd: int) -> bool:
    poller = select.poll()
    poller.register(source_fd, select.POLLIN)
    return bool(poller.poll(0))
