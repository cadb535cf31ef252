"""What every worker is handed before the fork: its name, its slot, its way to report."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers import isolate, report

if TYPE_CHECKING:
    from collections.abc import Iterable

    from workers.ledger import Ledger


@dataclass(slots=True)
class Desk:
    """One worker's place. Every descriptor is borrowed from the parent across the fork.

    Attributes:
        stream: "stdin", "stdout", "stderr" or "console", as the report names it.
        title: As ps(1) shows the worker.
        slot: The stream's count in `ledger`.
        report_wfd: The only write end of the report pipe once the parent has closed its own, so
            that this worker's death is the parent's end of file.
        null_fd: /dev/null, open for reading and writing.
        copied_bytes: By this worker; the ledger has the stream's total.
    """

    stream: str
    title: str
    ledger: Ledger
    slot: int
    report_wfd: int
    null_fd: int
    copied_bytes: int = 0

    def sit_down(self, keep_fds: Iterable[int]) -> None:
        """Become the worker: see `isolate.become`."""
        isolate.become(self.title, (*keep_fds, self.report_wfd), self.null_fd)

    def moved(self, copied_bytes: int) -> None:
        """Count bytes that have reached the sink."""
        self.copied_bytes += copied_bytes
        self.ledger.add(self.slot, copied_bytes)

    def in_transit(self, transit_bytes: int) -> None:
        """Note what is between source and sink."""
        self.ledger.set_transit(self.slot, transit_bytes)

    def send(self, record: report.Report) -> None:
        """Write the completion record. A parent that is gone is told nothing."""
        try:
            os.write(self.report_wfd, report.encode(record))
        except BrokenPipeError:
            return
