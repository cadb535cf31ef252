"""The worker of stdout, of stderr or of the console's output: from the container to its sink."""

from __future__ import annotations

from workers.copy import discard, splice
from workers.process import report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.process.context import Desk


def work(desk: Desk, route: splice.Route) -> None:
    """Copy until the container has closed its side, then report. Never raises `CopyError`."""
    desk.sit_down(route.fds)
    if desk.is_to_count:
        desk.send_and_keep(discard.count(desk, route))
        return
    try:
        splice.copy(route, desk)
    except splice.CopyError as error:
        desk.send_and_keep(report.Report(desk.stream, desk.copied_bytes, error.errno, error.side))
    else:
        desk.send_and_keep(report.Report(desk.stream, desk.copied_bytes))
