"""A container writes or reads as fast as it can; the bench drains or feeds it.

All sides run the same container with runc; `tests.bench.streams` says how each is plumbed. The
clock runs from the word "go" to the last byte that we have read, or to the container's word that
it has read everything. CPU is that of those who copy: supervisor and workers, conmon, the copiers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench import streams
from tests.bench.case import Case, Setting, at_least, at_most

if TYPE_CHECKING:
    from collections.abc import Iterator


def cases(setting: Setting) -> Iterator[Case]:
    """Stdout and stdin by pipes."""
    scale = setting.scale
    much = f"{scale.bulk_bytes >> 20:,} MiB"
    wanted = [
        at_least(0.95, "MB/s", beside="bare pipe"),
        at_most(0.15, "CPU s/GB"),
        at_most(0.25, "CPU s/GB", beside="copier"),
        at_most(0.25, "CPU s/GB", beside="conmon"),
    ]
    output, feed = (
        streams.variants(setting, script, scale.bulk_bytes, conmon_much=scale.slow_bytes)
        for script in (streams.OUTPUT, streams.INPUT)
    )
    yield Case("bulk-stdout", f"{much} of stdout", output, wanted)
    yield Case("bulk-stdin", f"{much} of stdin", feed)
