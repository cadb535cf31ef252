"""The work of every worker whose sink takes records, from its context to its report."""

from __future__ import annotations

import errno

from workers.common.policy import BLOCK
from workers.copy.route import CopyError
from workers.lines import copy, drop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.copy.route import Route
    from workers.lines.buffer import LineBuffer
    from workers.lines.sink import RecordSink
    from workers.process.context import WorkerContext


def work(context: WorkerContext, route: Route, buffer: LineBuffer, sink: RecordSink) -> None:
    """Copy until the container has closed its side, then report. Raises no OSError or CopyError.

    EAGAIN of the sink reports that it accepts everything again after some bytes were dropped.
    """
    failed, side = 0, ""
    try:
        if buffer.policy == BLOCK and not context.is_to_count:
            sink.open()
            copy.copy(context, route, buffer, sink)
        elif not drop.copy(context, route, buffer, sink):
            failed, side = errno.EAGAIN, "sink"
        sink.close()
    except CopyError as error:
        failed, side = error.errno, error.side
    except OSError as error:
        failed, side = error.errno or 0, "sink"
    context.send_last(context.make_report(failed, side))
