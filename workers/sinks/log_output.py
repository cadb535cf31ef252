"""The worker of stdout, of stderr or of the console's output whose sink is a `LogFile`."""

from __future__ import annotations

from workers.lines import run
from workers.sinks.log_writer import LogWriter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.copy.route import Route
    from workers.process.context import WorkerContext
    from workers.sinks.log_file import LogFile


def work(context: WorkerContext, route: Route, log: LogFile, stream: str) -> None:
    """Write `stream` to `log` until the container has closed its side, then report.

    Never raises `CopyError`. Does not use the sink of `route`, but its staging pipe.

    Args:
        context: The worker's context.
        route: The source and the staging pipe.
        log: Owned by the supervisor. All workers of the file share its memory.
        stream: The name in `log`, which may differ from the name in `context`.
    """
    context.enter((*route.source_fds, *log.fds))
    buffer = log.buffers[log.streams.index(stream)]
    run.work(context, route, buffer, LogWriter(log, stream))
