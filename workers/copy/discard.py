"""What is left of an output that was given up: counted, and gone."""

from __future__ import annotations

import os
import select

from workers.copy import splice
from workers.process import report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.process.context import WorkerContext

_MOST_BYTES = 4 << 20
"""More than is between a container and its sink: whoever goes on writing is another one."""


def count(context: WorkerContext, route: splice.Route) -> report.Report:
    """Take what the staging pipe and the source have; return the report that says how much.

    A copy whose bytes are in a line buffer has its own way, see `workers.lines.drop`.
    """
    left_bytes = left_lines = 0
    sources = (*(route.staging or ())[:1], route.source_fd)
    for fd in sources:
        readable = select.poll()
        readable.register(fd, select.POLLIN)
        while left_bytes < _MOST_BYTES and readable.poll(0):
            try:
                content = os.read(fd, splice.CHUNK_BYTES)
            except OSError:  # EIO: the console is nobody's any more
                break
            if not content:
                break
            left_bytes += len(content)
            left_lines += content.count(b"\n")
    context.set_in_flight(0)
    return report.Report(
        context.stream, context.copied_bytes, left_bytes=left_bytes, left_lines=left_lines
    )
