"""What a worker is forked for."""

from __future__ import annotations

import time
from enum import Enum
from typing import NamedTuple


class TaskKind(Enum):
    """What the worker does with its stream.

    DROP_UNTIL and WAIT_UNTIL leave a sink alone that has failed. Until their time has come, the
    first reads on and drops by the stream's policy, the second does nothing. Then both copy.
    COUNT_REST reads and counts what is left of a stream that was given up, and writes nothing.
    """

    COPY = "copy"
    DROP_UNTIL = "drop until"
    WAIT_UNTIL = "wait until"
    COUNT_REST = "count the rest"


class Task(NamedTuple):
    """One worker's task. `until_s` is monotonic time, which parent and worker share."""

    kind: TaskKind
    until_s: float = 0.0

    def remaining_s(self) -> float:
        """Return how long the sink is still left alone, in seconds."""
        return max(0.0, self.until_s - time.monotonic())


COPY = Task(TaskKind.COPY)
COUNT_REST = Task(TaskKind.COUNT_REST)
