"""Batching of small writes: when a worker pauses before the next move, and for how long.

A container that writes 80 bytes at a time wakes its worker for 80 bytes, and a wake-up costs the
same for any size. So when small moves follow each other at once, the worker pauses for a
millisecond, and then takes everything that has arrived. The pause comes *after* bytes were
delivered and holds none back. The first write after a silence passes at once. A worker that is
killed in its pause holds no bytes. For the supervisor the source stays readable, that is pending.

The worker measures whether a pause pays. A process that answers questions over its stdout writes
once and waits for the next question. A pause gathers nothing there, and the worker tries the next
pause much later: one of a thousand answers waits for a millisecond. For large moves the worker
halves the pause: a full pipe makes its writer wait.

This module uses no descriptor.

Rejected: to wait before each move until FIONREAD passes a threshold. It delays the first write of
each burst and costs one more system call for all others. The size of the last move tells as much.

Rejected: poll(2) instead of the sleep, to notice end of file a millisecond earlier. A pipe that was
ever polled wakes its readers at each write (poll_usage in the kernel's fs/pipe.c).

Rejected: read(2) and write(2) for small moves. A killed worker would lose bytes.
"""

from __future__ import annotations

import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_PAUSE_S = 0.001
SHORTEST_PAUSE_S = LONGEST_PAUSE_S / 8
"""The kernel adds 50 us to each pause (PR_SET_TIMERSLACK, prctl(2)): shorter ones gain nothing."""

QUICK_S = 0.00025
"""A longer gap between two moves ends a burst: below 4000 writes a second a pause of a millisecond
saves too little."""

SMALL_BYTES = 4096
"""A move of whole pages needs no batching."""

LEAST_RUN, LONGEST_RUN = 8, 1024
"""How many small moves in close succession are a burst: at first, and where pauses do not pay."""

PAYS_FROM = 4
"""A pause pays if it joins at least this many moves into one."""


class Batching:
    """Watches the moves of one source, and sleeps after some of them."""

    def __init__(
        self,
        capacity_bytes: int,
        *,
        small_bytes: int = SMALL_BYTES,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Begin without pauses.

        Args:
            capacity_bytes: The most bytes of one move, or the pipe's size if that is less; 0 for a
                source that never gets a pause.
            small_bytes: A move of this size or more is not small.
            clock: Seconds, monotonic.
            pause: Sleeps for a number of seconds.
        """
        # write(2) fills the last page of a pipe first, so two neighbouring pages hold more than
        # one page together. So a full pipe holds at least half of its capacity.
        self._full_bytes = capacity_bytes // 2
        self._small_bytes = small_bytes if capacity_bytes else 0
        self._clock = clock
        self._pause = pause
        self._pause_s = LONGEST_PAUSE_S
        self._is_pausing = False
        self._run = self._run_bytes = 0
        self._burst_run = LEAST_RUN
        self._has_new = False
        self._waits_since_s = clock()
        self.seen_below_bytes = self._small_bytes
        """A caller may skip `record` for larger moves: two calls per 64 KiB of bulk cost time."""

    def record(self, count: int) -> None:
        """Record a move of `count` bytes, right after it."""
        if count >= self.seen_below_bytes:
            return
        self._has_new = True
        if self._clock() - self._waits_since_s > QUICK_S:
            self._stop_pausing()
        elif self._is_pausing:
            self._judge(count)
        else:
            self._run += 1
            self._run_bytes += count
            if self._run >= self._burst_run:
                self._is_pausing = True
                self.seen_below_bytes = sys.maxsize

    def pause_when_due(self) -> None:
        """Pause in a burst. Called when everything is delivered, before the caller waits."""
        if not self._has_new:
            return
        self._has_new = False
        if self._is_pausing:
            self._pause(self._pause_s)
        self._waits_since_s = self._clock()

    def _judge(self, count: int) -> None:
        """Decide from the bytes that the last pause gathered whether another pause follows."""
        pays = count * self._run >= PAYS_FROM * self._run_bytes
        if count >= self._full_bytes:  # the writer may have waited
            pays = self._pause_s > SHORTEST_PAUSE_S
            self._pause_s = max(self._pause_s / 2, SHORTEST_PAUSE_S)
            self._stop_pausing()
        elif not pays:
            self._stop_pausing()
        elif count < self._full_bytes // 4:
            self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
        burst_run = self._burst_run // 2 if pays else self._burst_run * 2
        self._burst_run = min(max(burst_run, LEAST_RUN), LONGEST_RUN)

    def _stop_pausing(self) -> None:
        self._is_pausing = False
        self._run = self._run_bytes = 0
        self.seen_below_bytes = self._small_bytes
