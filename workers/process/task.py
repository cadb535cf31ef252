"""The tasks of a worker."""

from __future__ import annotations

import time
from enum import Enum

from workers.common.records import dataclass


class TaskKind(Enum):
    """What the worker does with its stream.

    DROP_UNTIL and WAIT_UNTIL write nothing to a failed sink until a given time. DROP_UNTIL reads on
    and drops by the policy of the stream. WAIT_UNTIL does nothing. After that time both copy.
    COUNT_REST reads and counts the rest of a stream that was given up, and writes nothing.
    """

    COPY = "copy"
    DROP_UNTIL = "drop until"
    WAIT_UNTIL = "wait until"
    COUNT_REST = "count the rest"


@dataclass(frozen=True, slots=True)
class Task:
    """The task of one worker. `until_s`: monotonic time, the same in supervisor and worker."""

    kind: TaskKind
    until_s: float = 0.0

    def remaining_s(self) -> float:
        """Return for how many seconds the worker writes nothing to the sink."""
        return max(0.0, self.until_s - time.monotonic())


COPY = Task(TaskKind.COPY)
COUNT_REST = Task(TaskKind.COUNT_REST)
