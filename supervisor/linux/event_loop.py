"""The one place where the supervisor waits: descriptors and deadlines, one thread.

No asyncio: its import alone costs 40 ms and 10 MB. No threads: PR_SET_PDEATHSIG follows the
thread that forked (prctl(2)). Nothing here polls; with no deadline set the wait has no end.

What a callback may break: one that carries a feature's name breaks that feature. It is off from
then on, its descriptors and deadlines are forgotten, and `on_failed` says so. Features are what a
container goes on without: its notify socket, those who listen, the window's size, a look at the
workers. A callback without a name is the supervisor's own: signals, children, the runtime, the
streams, the end. Its exception ends `run_until`; `supervisor.cli.foreground` decides what follows.
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
"""epoll_wait(2) takes an int of milliseconds, 24 days; a longer wait is looked at once a day."""


class Timer:
    """A deadline that belongs to the object that made it; see `Loop.timer`.

    Timers have no names: those of two containers in one loop cannot replace each other.
    """

    def __init__(self, loop: Loop, callback: Callback, feature: str) -> None:
        """Borrow the loop."""
        self.loop = loop
        self.callback = callback
        self.feature = feature
        self.at_ns = 0

    @property
    def is_running(self) -> bool:
        """Whether the callback is still to come."""
        return self in self.loop.timers

    def start(self, delay_s: float) -> None:
        """Call back once, `delay_s` from now (monotonic). A running timer starts over."""
        self.cancel()
        if self.feature not in self.loop.off:
            self.at_ns = time.monotonic_ns() + int(min(delay_s, _LONGEST_DELAY_S) * 1e9)
            self.loop.timers[self] = None

    def cancel(self) -> None:
        """Stop the timer, if it is running."""
        self.loop.timers.pop(self, None)


class Loop:
    """Calls back when a watched descriptor is readable or a timer has run out.

    Attributes:
        epoll: Shared with each part, like the next two.
        watches: By descriptor: what to call, of which feature, of which part.
        timers: Those that run, in the order of their starts.
        off: The features that have failed.
    """

    def __init__(
        self,
        on_failed: Callable[[str, Exception], None] | None = None,
        *,
        part_of: Loop | None = None,
    ) -> None:
        """Start with nothing to wait for. Owns its epoll descriptor until `close`.

        `on_failed` gets the feature that has failed, and how; without it that is raised. With
        `part_of` it is that very loop, for one container: its features fail by themselves.
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
        """Call `callback` whenever `fd` can be read, or is at end of file. `fd` is borrowed.

        The descriptor must be non-blocking: an event may be stale when it is served. Without
        `is_read` only the hang-up of both directions, or an error, is an event.
        """
        if feature not in self.off:
            self.epoll.register(fd, select.EPOLLIN if is_read else 0)
            self.watches[fd] = (callback, feature, self)

    def forget(self, fd: int) -> None:
        """Stop watching `fd`. Has to come before its close(2).

        Raises:
            KeyError: It is not watched, and no feature that has failed can have watched it.
        """
        if fd in self.watches or not self.off:
            del self.watches[fd]
            self.epoll.unregister(fd)

    def timer(self, callback: Callback, *, feature: str = "") -> Timer:
        """Return a timer that calls `callback`; it does not run before its `start`."""
        return Timer(self, callback, feature)

    def guarded(self, feature: str, callback: Callable[P, None]) -> Callable[P, None]:
        """Return `callback` as a part of a feature, for one that others than the loop call."""

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
        """Call back; an exception ends the feature, or without a feature the wait."""
        try:
            callback()
        except Exception as error:
            self._fail(feature, error)

    def run_until(self, is_over: Callable[[], bool]) -> None:
        """Serve events until `is_over` says so; it is asked after each round.

        Of what is ready at the same time the one comes first that has been watched longest.
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
        """Close the epoll descriptor; of a part nothing."""
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
            # An earlier callback of this round may have cancelled it or put it off.
            if timer.is_running and timer.at_ns <= now_ns:
                timer.cancel()
                timer.loop.serve(timer.callback, timer.feature)
