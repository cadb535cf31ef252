"""Reads, counts and discards the rest of an output that was given up."""

from __future__ import annotations

import os

from workers.common import fd_state
from workers.copy.route import CHUNK_BYTES
from workers.process import report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.copy.route import Route
    from workers.process.context import WorkerContext

_MOST_BYTES = 4 << 20
"""More than fits between a container and its sink. Beyond it another process still writes."""


def count(context: WorkerContext, route: Route) -> report.Report:
    """Read the content of the staging pipe and of the source. Return the report with the count.

    A copy with a line buffer counts in `workers.lines.drop` instead.
    """
    left_bytes = left_lines = 0
    for fd in (*(route.staging or ())[:1], route.source_fd):
        while left_bytes < _MOST_BYTES and fd_state.is_readable(fd):
            try:
                content = os.read(fd, CHUNK_BYTES)
            except OSError:  # EIO: no process has the console open
                break
            if not content:
                break
            left_bytes += len(content)
            left_lines += content.count(b"\n")
    context.set_in_flight(0)
    return report.Report(
        context.stream, context.copied_bytes, left_bytes=left_bytes, left_lines=left_lines
    )
