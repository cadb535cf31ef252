"""The one place where the supervisor waits: descriptors and deadlines, one thread.

No asyncio: its import alone costs 40 ms and 10 MB. No threads: PR_SET_PDEATHSIG follows the
thread that forked (prctl(2)). Nothing here polls; with no deadline set the wait has no end.

What a callback may break: one that carries a feature's name breaks that feature. It is off from
then on, its descriptors and deadlines are forgotten, and `on_failed` says so. Features are what a
container goes on without: its notify socket, those who listen, the window's size, a look at the
workers. A callback without a name is the supervisor's own: signals, children, the runtime, the
streams, the end. Its exception ends `run_until`, and `supervisor.cli.foreground` what follows.
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

    def __init__(
        self, running: dict[Timer, None], off: set[str], callback: Callback, feature: str
    ) -> None:
        """Borrow the loop's running timers and the features that are off."""
        self._running = running
        self._off = off
        self.callback = callback
        self.feature = feature
        self.at_ns = 0

    @property
    def is_running(self) -> bool:
        """Whether the callback is still to come."""
        return self in self._running

    def start(self, delay_s: float) -> None:
        """Call back once, `delay_s` from now (monotonic). A running timer starts over."""
        self.cancel()
        if self.feature not in self._off:
            self.at_ns = time.monotonic_ns() + int(min(delay_s, _LONGEST_DELAY_S) * 1e9)
            self._running[self] = None

    def cancel(self) -> None:
        """Stop the timer, if it is running."""
        self._running.pop(self, None)


class Loop:
    """Calls back when a watched descriptor is readable or a deadline has passed."""

    def __init__(self, on_failed: Callable[[str, Exception], None] | None = None) -> None:
        """Start with nothing to wait for. Owns its epoll descriptor until `close`.

        `on_failed` is told which feature has failed, and how; without it that is raised.
        """
        self._epoll = select.epoll()
        self._on_failed = on_failed
        self._off: set[str] = set()
        self._callbacks: dict[int, tuple[Callback, str]] = {}
        self._timers: dict[Timer, None] = {}
        """Those that run, in the order of their starts."""

    def watch(self, fd: int, callback: Callback, *, feature: str = "") -> None:
        """Call `callback` whenever `fd` can be read, or is at end of file. `fd` is borrowed.

        The descriptor has to be non-blocking: an event may be stale when it is served.
        """
        if feature not in self._off:
            self._epoll.register(fd, select.EPOLLIN)
            self._callbacks[fd] = (callback, feature)

    def forget(self, fd: int) -> None:
        """Stop watching `fd`. Has to come before its close(2).

        Raises:
            KeyError: It is not watched, and no feature that has failed can have watched it.
        """
        if fd in self._callbacks or not self._off:
            del self._callbacks[fd]
            self._epoll.unregister(fd)

    def timer(self, callback: Callback, *, feature: str = "") -> Timer:
        """Return a timer that calls `callback`; it does not run before its `start`."""
        return Timer(self._timers, self._off, callback, feature)

    def guarded(self, feature: str, callback: Callable[P, None]) -> Callable[P, None]:
        """Return `callback` as a part of a feature, for one that others than the loop call."""

        def call(*args: P.args, **kwargs: P.kwargs) -> None:
            if feature not in self._off:
                try:
                    callback(*args, **kwargs)
                except Exception as error:
                    self._fail(feature, error)

        return call

    def _fail(self, feature: str, error: Exception) -> None:
        if not feature or self._on_failed is None:
            raise error
        self._off.add(feature)
        for fd in [fd for fd, (_, whose) in self._callbacks.items() if whose == feature]:
            del self._callbacks[fd]
            self._epoll.unregister(fd)
        for timer in [timer for timer in self._timers if timer.feature == feature]:
            timer.cancel()
        self._on_failed(feature, error)

    def _serve(self, callback: Callback, feature: str) -> None:
        try:
            callback()
        except Exception as error:
            self._fail(feature, error)

    def run_until(self, is_over: Callable[[], bool]) -> None:
        """Serve events until `is_over` says so; it is asked after each round.

        Of what is ready at the same time the one comes first that has been watched longest.
        """
        while not is_over():
            ready = {fd for fd, _events in self._epoll.poll(self._next_timeout_s())}
            for fd, entry in [*self._callbacks.items()] if ready else ():
                # An earlier callback of this round may have ended the watch.
                if fd in ready and self._callbacks.get(fd) is entry:
                    self._serve(*entry)
            self._serve_timers()

    def close(self) -> None:
        """Close the epoll descriptor."""
        self._epoll.close()

    def _next_timeout_s(self) -> float | None:
        if not self._timers:
            return None
        first_ns = min(timer.at_ns for timer in self._timers)
        return min(max(0, first_ns - time.monotonic_ns()) / 1e9, _LONGEST_SELECT_S)

    def _serve_timers(self) -> None:
        now_ns = time.monotonic_ns()
        due = [timer for timer in self._timers if timer.at_ns <= now_ns]
        for timer in sorted(due, key=lambda each: each.at_ns):
            # An earlier callback of this round may have cancelled it or put it off.
            if timer.is_running and timer.at_ns <= now_ns:
                timer.cancel()
                self._serve(timer.callback, timer.feature)
