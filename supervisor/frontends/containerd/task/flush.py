"""Waiting until the output of a dead process is delivered, boundedly.

containerd 1.6 clients close their fifos as soon as Wait is answered: so the output comes first. The
end of file is not waited for, since a process that outlives this one may hold the pipe. The
supervisor itself never reads the pipe: see `Stream.has_pending`.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.io.stream import Stream
    from supervisor.io.stream_set import StreamSet
    from supervisor.linux.event_loop import Loop

LIMIT_S = 2.0
STALLED_S = 0.2
_FIRST_LOOK_S = 0.001
_LAST_LOOK_S = 0.05


class Flush:
    """One wait. Borrows loop and streams; `on_end` is called once, maybe at once."""

    def __init__(
        self, loop: Loop, stream_set: StreamSet, on_end: Callable[[], None], *, stalled_s: float
    ) -> None:
        """Begin. Without progress for `stalled_s` the wait is over."""
        self._stream_set = stream_set
        self._on_end = on_end
        self._stalled_s = stalled_s
        self._timer = loop.timer(self._look)
        self._look_s = _FIRST_LOOK_S
        self._ends_at_s = time.monotonic() + LIMIT_S
        self._moved_at_s = time.monotonic()
        self._copied: list[int] = []
        self._look()

    def _look(self) -> None:
        outputs = self._stream_set.outputs
        copied = [self._stream_set.copied_bytes(each) for each in outputs]
        now_s = time.monotonic()
        if copied != self._copied:
            self._copied, self._moved_at_s = copied, now_s
        is_too_late = now_s >= min(self._ends_at_s, self._moved_at_s + self._stalled_s)
        if is_too_late or not any(self._is_pending(each) for each in outputs):
            self._on_end()
            return
        self._timer.start(self._look_s)
        self._look_s = min(2 * self._look_s, _LAST_LOOK_S)

    def _is_pending(self, stream: Stream) -> bool:
        if stream.is_closed:
            return False
        # The kernel delivers a terminal's output later; its hang-up comes behind the output.
        if stream.name == "console":
            return True
        return stream.has_pending() or self._stream_set.in_flight_bytes(stream) > 0
