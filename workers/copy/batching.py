"""When to let small writes gather before they are moved, and for how long. No descriptor here.

A container that writes 80 bytes at a time wakes its worker for 80 bytes, and what that costs has
nothing to do with 80. So a worker to which little comes again and again, one piece right after
the other, stays away for a millisecond, and takes at once what has come meanwhile. The pause comes
*after* bytes have been delivered and holds none: the first write after a silence passes at once, a
worker that is killed in its pause had nothing in hand, and to the supervisor the source is
readable, that is pending, all the while.

Whether a pause pays is measured, not assumed. Who answers questions over its stdout writes once
and waits for the next one: there a pause gathers nothing, and the next is tried much later, so
that of a thousand answers one waits for a millisecond. Where much comes the pause is halved: a
pipe that is full keeps its writer waiting.

Rejected: to wait before each move until FIONREAD passes a threshold. It delays the first write
of each burst and is one system call more for all others, and what the last move has brought
tells as much. The pipe's lock, which it takes, would be no argument: splice(2) of the empty pipe
takes the same one, so that a process of the container that sleeps with it keeps either waiting.

Rejected: poll(2) in the place of the sleep, to hear of the end of file a millisecond earlier. A
pipe that was ever polled wakes its readers at each write (poll_usage in the kernel's fs/pipe.c).

Rejected: read(2) and write(2) for what is small. A killed worker would lose it.
"""

from __future__ import annotations

import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_PAUSE_S = 0.001
SHORTEST_PAUSE_S = LONGEST_PAUSE_S / 8
"""The kernel adds 50 us to each (PR_SET_TIMERSLACK in prctl(2)): to go further down is no use."""

QUICK_S = 0.00025
"""What comes later than this after the last is no burst: below 4000 writes in a second a pause of a
millisecond would save too little to be worth the delay."""

SMALL_BYTES = 4096
"""What comes in whole pages has gathered by itself."""

LEAST_RUN, LONGEST_RUN = 8, 1024
"""So many small moves, each right after the other, are a burst: at first, and where pauses do not
pay."""

PAYS_FROM = 4
"""A pause pays that makes one move of so many."""


class Batching:
    """Sees the moves of one source, and sleeps after some of them."""

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
            capacity_bytes: What one move can bring, the pipe's size if that is less; 0 is for a
                source that is never left alone.
            small_bytes: So much in one move is no small write any more.
            clock: Seconds, monotonic.
            pause: Sleeps for so many seconds.
        """
        # Two neighbours of a pipe's pages hold more than one page, or write(2) would have put the
        # second's first bytes into the first: so this much is in a pipe that is full.
        self._full_bytes = capacity_bytes // 2
        self._small_bytes = small_bytes if capacity_bytes else 0
        self._clock = clock
        self._pause = pause
        self._pause_s = LONGEST_PAUSE_S
        self._is_pausing = False
        self._run = self._run_bytes = 0
        self._burst_run = LEAST_RUN
        self._has_come = False
        self._waits_since_s = clock()
        self.seen_below_bytes = self._small_bytes
        """A move of so much may go untold: two calls for each 64 KiB of bulk can be felt."""

    def record(self, count: int) -> None:
        """Note that `count` bytes have come, as soon as they have."""
        if count >= self.seen_below_bytes:
            return
        self._has_come = True
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
        """Pause, where it is time to: what came has been delivered, and more is waited for next."""
        if not self._has_come:
            return
        self._has_come = False
        if self._is_pausing:
            self._pause(self._pause_s)
        self._waits_since_s = self._clock()

    def _judge(self, count: int) -> None:
        """Decide by what a pause has gathered whether another one follows."""
        pays = count * self._run >= PAYS_FROM * self._run_bytes
        if count >= self._full_bytes:  # the writer may have had to wait
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
