"""From a worker's seat to its report, for every sink that is given records."""

from __future__ import annotations

import errno

from workers.copy import splice
from workers.lines import copy, drop
from workers.lines.buffer import BLOCK
from workers.process import report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.lines.buffer import LineBuffer
    from workers.process.context import WorkerContext


def work(
    context: WorkerContext, route: splice.Route, buffer: LineBuffer, sink: drop.StallableSink
) -> None:
    """Copy until the container has closed its side, then report. Raises nothing.

    EAGAIN of the sink says that it takes everything again after some was dropped.
    """
    failed, side = 0, ""
    try:
        if buffer.policy == BLOCK and not context.is_to_count:
            sink.open()
            copy.copy(context, route, buffer, sink)
        elif not drop.copy(context, route, buffer, sink):
            failed, side = errno.EAGAIN, "sink"
        sink.close()
    except splice.CopyError as error:
        failed, side = error.errno, error.side
    except OSError as error:
        failed, side = error.errno or 0, "sink"
    context.send_and_keep(report.Report(context.stream, context.copied_bytes, failed, side))
