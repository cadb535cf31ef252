"""A container writes to its terminal as fast as it can, as in `tests.bench.bulk`.

A reader of the kernel's terminal gets at most 4 KiB at a time, so no side is quick here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench import streams
from tests.bench.case import Case, Setting

if TYPE_CHECKING:
    from collections.abc import Iterator


def cases(setting: Setting) -> Iterator[Case]:
    """The console's output."""
    yield Case(
        "console",
        f"{setting.scale.slow_bytes >> 20:,} MiB from a terminal",
        streams.variants(setting, streams.OUTPUT, setting.scale.slow_bytes, terminal=True),
    )
