"""The worker of stdout, of stderr or of the console's output whose sink is the journal."""

from __future__ import annotations

from workers.journal.native_writer import JournalWriter
from workers.lines import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.copy.route import Route
    from workers.journal.native import Journal
    from workers.process.context import WorkerContext


def work(context: WorkerContext, route: Route, journal: Journal, supervisor_pid: int) -> None:
    """Send records until the container has closed its side, wait until they are read, report.

    Never raises `CopyError`. Does not use the sink of `route`, but its staging pipe.

    Args:
        context: The worker's context.
        route: The source and the staging pipe.
        journal: The journal of this stream, which the supervisor owns.
        supervisor_pid: The parent of the worker. The records carry its credentials.
    """
    context.enter((*route.source_fds, *journal.fds))
    run.work(context, route, journal.buffer, JournalWriter(journal, supervisor_pid))
