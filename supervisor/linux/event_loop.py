"""The event loop: the only place where the supervisor waits, for descriptors and deadlines.

No asyncio: its import alone costs 40 ms and 10 MB. No threads: PR_SET_PDEATHSIG follows the
thread that forked (prctl(2)). Nothing polls: without a deadline the wait has no limit.

A callback may raise. If it has the name of a feature, only that feature ends: the loop forgets its
descriptors and deadlines, and calls `on_failed`. A container can run on without its features: the
notify socket, attach clients, the window's size, the check of workers. A callback without a name is
essential: signals, children, the runtime, the streams, the exit. Its exception ends `run_until`,
and `supervisor.cli.foreground` decides what follows.
"""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ParamSpec

    Callback = Callable[[], None]
    P = ParamSpec("P")

_LONGEST_DELAY_S = 1e9
_LONGEST_SELECT_S = 86400.0
"""The longest wait in one call: epoll_wait(2) takes an int of milliseconds, at most 24 days."""


class Timer:
    """A deadline that belongs to the object that made it, see `Loop.timer`.

    Timers have no names, so timers of two containers in one loop cannot replace each other.
    """

    def __init__(self, loop: Loop, callback: Callback, feature: str) -> None:
        """Borrow the loop. Use `Loop.timer`."""
        self.loop = loop
        self.callback = callback
        self.feature = feature
        self.at_ns = 0

    @property
    def is_running(self) -> bool:
        """Whether the loop will call back."""
        return self in self.loop.timers

    def start(self, delay_s: float) -> None:
        """Call back once, `delay_s` seconds from now (monotonic). A running timer starts again."""
        self.cancel()
        if self.feature not in self.loop.off:
            self.at_ns = time.monotonic_ns() + int(min(delay_s, _LONGEST_DELAY_S) * 1e9)
            self.loop.timers[self] = None

    def cancel(self) -> None:
        """Stop the timer if it is running."""
        self.loop.timers.pop(self, None)


class Loop:
    """Calls back when a watched descriptor is readable or a timer has expired.

    Attributes:
        epoll: Shared with each part, as `watches` and `timers`.
        watches: By descriptor: the callback, its feature, its part of the loop.
        timers: The running timers, in the order of their starts.
        off: The features that have failed.
    """

    def __init__(
        self,
        on_failed: Callable[[str, Exception], None] | None = None,
        *,
        part_of: Loop | None = None,
    ) -> None:
        """Own an epoll descriptor until `close`.

        `on_failed` gets a feature that has failed, and its exception. Without it the exception is
        raised. With `part_of` this is a part of that loop, for one container: it has the same
        descriptors and timers, but its features fail separately.
        """
        self._is_part = part_of is not None
        self.epoll: select.epoll = part_of.epoll if part_of else select.epoll()
        self.watches: dict[int, tuple[Callback, str, Loop]] = part_of.watches if part_of else {}
        self.timers: dict[Timer, None] = part_of.timers if part_of else {}
        self._on_failed = on_failed
        self.off: set[str] = set()

    def watch(
        self, fd: int, callback: Callback, *, feature: str = "", is_read: bool = True
    ) -> None:
        """Call `callback` whenever `fd` is readable or at end of file. `fd` is borrowed.

        The descriptor must be non-blocking: an event may be stale when the loop serves it. Without
        `is_read` only EPOLLHUP and EPOLLERR are events.

        Raises:
            PermissionError: EPERM, epoll_ctl(2): a regular file or /dev/null.
        """
        if feature not in self.off:
            self.epoll.register(fd, select.EPOLLIN if is_read else 0)
            self.watches[fd] = (callback, feature, self)

    def forget(self, fd: int) -> None:
        """Stop watching `fd`. Called before its close(2).

        Raises:
            KeyError: It is not watched, and no failed feature can have watched it.
        """
        if fd in self.watches or not self.off:
            del self.watches[fd]
            self.epoll.unregister(fd)

    def timer(self, callback: Callback, *, feature: str = "") -> Timer:
        """Return a timer that calls `callback`. It does not run before its `start`."""
        return Timer(self, callback, feature)

    def guarded(self, feature: str, callback: Callable[P, None]) -> Callable[P, None]:
        """Return `callback` as a part of a feature, for a caller other than the loop."""

        def call(*args: P.args, **kwargs: P.kwargs) -> None:
            if feature not in self.off:
                try:
                    callback(*args, **kwargs)
                except Exception as error:
                    self._fail(feature, error)

        return call

    def _fail(self, feature: str, error: Exception) -> None:
        if not feature or self._on_failed is None:
            raise error
        self.off.add(feature)
        for fd in [fd for fd, (_, *whose) in self.watches.items() if whose == [feature, self]]:
            del self.watches[fd]
            self.epoll.unregister(fd)
        for timer in [each for each in self.timers if (each.feature, each.loop) == (feature, self)]:
            timer.cancel()
        self._on_failed(feature, error)

    def serve(self, callback: Callback, feature: str) -> None:
        """Call back. An exception ends the feature; without a feature it is raised."""
        try:
            callback()
        except Exception as error:
            self._fail(feature, error)

    def run_until(self, is_over: Callable[[], bool]) -> None:
        """Serve events until `is_over` returns True. It is called after each round.

        Of descriptors that are ready at the same time, the one that was watched first comes first.
        """
        while not is_over():
            ready = {fd for fd, _events in self.epoll.poll(self._next_timeout_s())}
            for fd, entry in [*self.watches.items()] if ready else ():
                # An earlier callback of this round may have ended the watch.
                if fd in ready and self.watches.get(fd) is entry:
                    callback, feature, part = entry
                    part.serve(callback, feature)
            self._serve_timers()

    def close(self) -> None:
        """Close the epoll descriptor. A part closes nothing."""
        if not self._is_part:
            self.epoll.close()

    def _next_timeout_s(self) -> float | None:
        if not self.timers:
            return None
        first_ns = min(timer.at_ns for timer in self.timers)
        return min(max(0, first_ns - time.monotonic_ns()) / 1e9, _LONGEST_SELECT_S)

    def _serve_timers(self) -> None:
        now_ns = time.monotonic_ns()
        due = [timer for timer in self.timers if timer.at_ns <= now_ns]
        for timer in sorted(due, key=lambda each: each.at_ns):
            # An earlier callback of this round may have cancelled or restarted it.
            if timer.is_running and timer.at_ns <= now_ns:
                timer.cancel()
                timer.loop.serve(timer.callback, timer.feature)
