"""The worker of stdout, of stderr or of the console's output: from the container to its sink."""

from __future__ import annotations

from workers.copy import discard, splice
from workers.process import report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.process.context import WorkerContext


def work(context: WorkerContext, route: splice.Route) -> None:
    """Copy until the container has closed its side, then report. Never raises `CopyError`."""
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
        context.send_and_keep(report.Report(context.stream, context.copied_bytes))
