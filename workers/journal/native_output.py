"""The worker of stdout, of stderr or of the console's output whose sink is the journal."""

from __future__ import annotations

from workers.journal.native import JournalWriter
from workers.lines import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.copy import splice
    from workers.journal.native import Journal
    from workers.process.context import WorkerContext


def work(
    context: WorkerContext,
    route: splice.Route,
    journal: Journal,
    supervisor_pid: int,
) -> None:
    """Send records until the container has closed its side, stay until they are read, report.

    Never raises `CopyError`. The sink of `route` is not used, its staging pipe is.

    Args:
        context: As for every worker.
        route: The source and the staging pipe.
        journal: What the parent has made, for this stream alone.
        supervisor_pid: Our parent, in whose name the records are sent.
    """
    context.enter((*route.source_fds, *journal.fds))
    run.work(context, route, journal.buffer, JournalWriter(journal, supervisor_pid))
