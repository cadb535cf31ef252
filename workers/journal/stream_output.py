"""The worker of stdout, of stderr or of the console's output whose sink is a journal stream."""

from __future__ import annotations

from workers.common.records import replace
from workers.copy import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.copy.route import Route
    from workers.journal.stream import JournalStream
    from workers.process.context import WorkerContext


def work(context: WorkerContext, route: Route, stream: JournalStream) -> None:
    """Copy until the container has closed its side, wait until journald has read it, then report.

    journald looks up the sender when it reads. Never raises `CopyError`. Does not use the sink of
    `route`.
    """
    output.work(context, replace(route, sink_fd=stream.socket.fileno()), lingers=True)
