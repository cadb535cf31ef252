"""The worker of stdout, of stderr or of the console's output whose sink is a journal stream."""

from __future__ import annotations

from workers.common.records import replace
from workers.copy import discard, splice
from workers.process import report
from workers.process.linger import wait_until_read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.journal.stream import JournalStream
    from workers.process.context import WorkerContext


def work(context: WorkerContext, route: splice.Route, stream: JournalStream) -> None:
    """Copy until the container has closed its side, stay until it is read, then report.

    journald looks up who has sent what when it reads it. Never raises `CopyError`. The sink of
    `route` is not used.
    """
    route = replace(route, sink_fd=stream.socket.fileno())
    context.enter(route.fds)
    if context.is_to_count:
        context.send_and_keep(discard.count(context, route))
        return
    try:
        splice.copy(route, context)
    except splice.CopyError as error:
        context.send_and_keep(
            report.Report(context.stream, context.copied_bytes, error.errno, error.side)
        )
    else:
        wait_until_read(route.sink_fd)
        context.send_and_keep(report.Report(context.stream, context.copied_bytes))
