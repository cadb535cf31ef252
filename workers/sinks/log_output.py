"""The worker of stdout, of stderr or of the console's output whose sink is a `LogFile`."""

from __future__ import annotations

from workers.lines import run
from workers.sinks.log_file import LogWriter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.copy import splice
    from workers.process.context import WorkerContext
    from workers.sinks.log_file import LogFile


def work(context: WorkerContext, route: splice.Route, log: LogFile, stream: str) -> None:
    """Write `stream` into `log` until the container has closed its side, then report.

    Never raises `CopyError`. The sink of `route` is not used, its staging pipe is.

    Args:
        context: As for every worker.
        route: The source and the staging pipe.
        log: What the parent has made; its memory is shared by all workers of the file.
        stream: The name in `log`, which may not be the name in `context`.
    """
    context.enter((*route.source_fds, *log.fds))
    buffer = log.buffers[log.streams.index(stream)]
    run.work(context, route, buffer, LogWriter(log, stream))
