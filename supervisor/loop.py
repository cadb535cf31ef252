"""The one place where the supervisor waits: descriptors and deadlines, one thread.

No asyncio: its import alone costs 40 ms and 10 MB. No threads: PR_SET_PDEATHSIG follows the
thread that forked (prctl(2)). Nothing here polls; with no deadline set the wait has no end.
"""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Callback = Callable[[], None]

_LONGEST_DELAY_S = 1e9
_LONGEST_SELECT_S = 86400.0
"""epoll_wait(2) takes an int of milliseconds, 24 days; a longer wait is looked at once a day."""


class Loop:
    """Calls back when a watched descriptor is readable or a deadline has passed."""

    def __init__(self) -> None:
        """Start with nothing to wait for. Owns its epoll descriptor until `close`."""
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._deadlines_ns: dict[str, tuple[int, Callback]] = {}

    def watch(self, fd: int, callback: Callback) -> None:
        """Call `callback` whenever `fd` can be read, or is at end of file. `fd` is borrowed.

        The descriptor has to be non-blocking: an event may be stale when it is served.
        """
        self._epoll.register(fd, select.EPOLLIN)
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """Stop watching `fd`. Has to come before its close(2)."""
        del self._callbacks[fd]
        self._epoll.unregister(fd)

    def call_after(self, name: str, delay_s: float, callback: Callback) -> None:
        """Call `callback` once, `delay_s` from now (monotonic), in place of an earlier `name`."""
        self._deadlines_ns[name] = (
            time.monotonic_ns() + int(min(delay_s, _LONGEST_DELAY_S) * 1e9),
            callback,
        )

    def cancel(self, name: str) -> None:
        """Forget the deadline `name`, if there is one."""
        self._deadlines_ns.pop(name, None)

    def run_until(self, is_over: Callable[[], bool]) -> None:
        """Serve events until `is_over` says so; it is asked after each round.

        Of what is ready at the same time the one comes first that has been watched longest.
        """
        while not is_over():
            ready = {fd for fd, _events in self._epoll.poll(self._next_timeout_s())}
            for fd, callback in [*self._callbacks.items()] if ready else ():
                # An earlier callback of this round may have ended the watch.
                if fd in ready and self._callbacks.get(fd) is callback:
                    callback()
            self._serve_deadlines()

    def close(self) -> None:
        """Close the epoll descriptor."""
        self._epoll.close()

    def _next_timeout_s(self) -> float | None:
        if not self._deadlines_ns:
            return None
        first_ns = min(deadline_ns for deadline_ns, _callback in self._deadlines_ns.values())
        return min(max(0, first_ns - time.monotonic_ns()) / 1e9, _LONGEST_SELECT_S)

    def _serve_deadlines(self) -> None:
        now_ns = time.monotonic_ns()
        due = [(at_ns, name) for name, (at_ns, _) in self._deadlines_ns.items() if at_ns <= now_ns]
        for _at_ns, name in sorted(due):
            entry = self._deadlines_ns.get(name)
            # An earlier callback of this round may have cancelled it or put it off.
            if entry is not None and entry[0] <= now_ns:
                del self._deadlines_ns[name]
                entry[1]()
