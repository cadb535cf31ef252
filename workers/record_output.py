"""From a worker's seat to its report, for every sink that is given records."""

from __future__ import annotations

import errno

from workers import dropping, engines, lines, report
from workers.line_buffer import BLOCK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.desk import Desk
    from workers.line_buffer import LineBuffer


def work(desk: Desk, route: engines.Route, buffer: LineBuffer, sink: dropping.PatientSink) -> None:
    """Copy until the container has closed its side, then report. Raises nothing.

    EAGAIN of the sink says that it takes everything again after some was dropped.
    """
    failed, side = 0, ""
    try:
        if buffer.policy == BLOCK and not desk.is_to_count:
            sink.open()
            lines.copy(desk, route, buffer, sink)
        elif not dropping.copy(desk, route, buffer, sink):
            failed, side = errno.EAGAIN, "sink"
        sink.close()
    except engines.CopyError as error:
        failed, side = error.errno, error.side
    except OSError as error:
        failed, side = error.errno or 0, "sink"
    desk.send_and_keep(report.Report(desk.stream, desk.copied_bytes, failed, side))
