"""The worker of stdin: from the client's fifo, file or terminal to the container.

Unlike an output's worker it must notice two events without a byte to copy: the container closes its
stdin, and the supervisor dies while the user's terminal is in raw mode. So it calls poll(2) before
splice(2), and never sleeps in splice(2) on a full pipe. It never batches small writes
(`workers.copy.batching`): the container waits for each of them, and a user may be typing.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import termios
from enum import Enum

from workers.common import fd_state
from workers.common.records import dataclass
from workers.copy import staging
from workers.copy.route import SPLICE_BYTES, CopyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from workers.copy.route import Route
    from workers.process.context import WorkerContext


@dataclass(frozen=True, slots=True)
class RawTerminal:
    """A terminal in raw mode, and the attributes that tcsetattr(3) restores."""

    fd: int
    saved: list[Any]


def work(context: WorkerContext, route: Route, raw: RawTerminal | None = None) -> None:
    """Copy until end of file or until the container stops reading, then report.

    With `raw` the worker also ends when the supervisor has died, and restores the terminal.
    """
    context.enter(route.fds if raw is None else (*route.fds, raw.fd))
    try:
        if not _copy(context, route, ends_with_supervisor=raw is not None) and raw is not None:
            _restore(raw)
    except CopyError as error:
        context.send(context.make_report(error.errno, error.side))
    else:
        context.send(context.make_report())


def _restore(raw: RawTerminal) -> None:
    # The shell is in the foreground by now: unless ignored, SIGTTOU would stop this process.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    termios.tcsetattr(raw.fd, termios.TCSADRAIN, raw.saved)


def _copy(context: WorkerContext, route: Route, *, ends_with_supervisor: bool) -> bool:
    """Copy. Return True at end of file, False when the supervisor has died."""
    poller = select.poll()
    poller.register(route.source_fd, select.POLLIN)
    poller.register(route.sink_fd, 0)  # only POLLERR and POLLHUP: the last reader has left
    if ends_with_supervisor:
        poller.register(context.report_wfd, 0)
    if route.staging is not None:
        staging.empty(route, route.staging, context)
    while True:
        ready = dict(poller.poll())
        if context.report_wfd in ready:
            return False
        if ready.get(route.sink_fd, 0) & (select.POLLERR | select.POLLHUP):
            raise CopyError(OSError(errno.EPIPE, os.strerror(errno.EPIPE)), "sink")
        match _move_once(context, route):
            case _Moved.TO_THE_END:
                return True
            case _Moved.SINK_IS_FULL:
                # Wait for the sink only: a source that hung up would be ready all the time.
                poller.unregister(route.source_fd)
                poller.modify(route.sink_fd, select.POLLOUT)
            case _Moved.SOME:
                poller.register(route.source_fd, select.POLLIN)
                poller.modify(route.sink_fd, 0)


class _Moved(Enum):
    SOME = 1
    SINK_IS_FULL = 2
    TO_THE_END = 3


def _move_once(context: WorkerContext, route: Route) -> _Moved:
    try:
        if route.staging is None:
            moved = os.splice(
                route.source_fd, route.sink_fd, SPLICE_BYTES, flags=os.SPLICE_F_NONBLOCK
            )
        else:
            moved = staging.fill(route, route.staging, context)
    except BlockingIOError:
        return _Moved.SINK_IS_FULL if fd_state.is_readable(route.source_fd) else _Moved.SOME
    except OSError as error:
        raise CopyError(error, "") from error
    if moved == 0:
        return _Moved.TO_THE_END
    if route.staging is None:
        context.add_copied(moved)
    else:
        staging.empty(route, route.staging, context)
    return _Moved.SOME
