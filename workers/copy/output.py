"""The worker of stdout, of stderr or of the console's output: from the container to its sink."""

from __future__ import annotations

from workers.copy import discard, splice
from workers.copy.route import CopyError
from workers.process.linger import wait_until_read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.copy.route import Route
    from workers.process.context import WorkerContext


def work(context: WorkerContext, route: Route, *, lingers: bool = False) -> None:
    """Copy until the container has closed its side, then report. Never raises `CopyError`.

    `lingers`: the sink is a socket, and the worker waits until the peer has read everything.
    """
    context.enter(route.fds)
    if context.is_to_count:
        context.send_last(discard.count(context, route))
        return
    try:
        splice.copy(route, context)
    except CopyError as error:
        context.send_last(context.make_report(error.errno, error.side))
    else:
        if lingers:
            wait_until_read(route.sink_fd)
        context.send_last(context.make_report())
