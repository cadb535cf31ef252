"""One container as a service of systemd: readiness, status line, time-outs, watchdog.

Each phase of the end asks systemd for the time that it may take. So the unit's TimeoutStopSec= need
not match the grace period. A drain that makes progress asks again.

The event loop feeds the watchdog, so a supervisor that hangs does not. Each time it looks for stuck
workers: a worker stopped by SIGSTOP, for example, is killed and replaced. No byte is lost.
"""

from __future__ import annotations

import math
import time
from enum import Enum

from supervisor import __version__
from supervisor.container.lifecycle import State
from supervisor.container.stop import KILL_OVERDUE_S
from supervisor.io.drain import STALLED_S
from supervisor.oci.invoke import CALL_LIMIT_S, CANCEL_LIMIT_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from supervisor.container.stop import Stopper
    from supervisor.io.stream import Stream
    from supervisor.io.stream_set import StreamSet
    from supervisor.linux.event_loop import Loop
    from supervisor.sinks.sink import Drops
    from supervisor.state.log import Log
    from supervisor.systemd.notify import Notifier
    from workers.notify.words import Words

MARGIN_S = 10.0
"""Added to each phase: a busy machine is slower."""

_REFRESH_S = 5.0
_AT_MOST_EVERY_S = 0.5
_ASK_AGAIN_S = 1.0
_LIMIT_S = {
    State.ABORTING: CANCEL_LIMIT_S,
    State.STOP_DEFERRED: CANCEL_LIMIT_S,
    State.KILLING: CALL_LIMIT_S + KILL_OVERDUE_S,
    State.KILLING_REST: CALL_LIMIT_S,
    State.CLEANING: 2 * CALL_LIMIT_S,
    State.DRAINING: STALLED_S,
    State.DELETING: CALL_LIMIT_S,
}


class Source(Enum):
    """Who reports readiness, or feeds the watchdog."""

    SUPERVISOR = "supervisor"
    CONTAINER = "container"


class ServiceStatus:
    """Reports one container to the service manager. Borrows everything.

    Many attributes: what was reported last is beside what it is compared with.
    """

    SNAPSHOT = ("_words", "_is_ready", "_watchdog_source")
    TRANSIENT = (
        "_notifier",
        "_loop",
        "_stream_set",
        "_log",
        "_stopper",
        "_readiness_source",  # comes from the request
        "_next_status",  # the next supervisor reports at once
        "_next_sign_of_life",
        "_state",
        "_text",
        "_asked_at_s",
        "_shown",
        "_looked_at_s",
    )

    def __init__(
        self,
        notifier: Notifier,
        loop: Loop,
        stream_set: StreamSet,
        log: Log,
        stopper: Stopper,
        *,
        has_notify_proxy: bool,
        packed: Mapping[str, Any] | None = None,
    ) -> None:
        """Feed the watchdog, if the unit has one. Report nothing else before `ready` or `entered`.

        Args:
            notifier: Sends the messages.
            loop: Has the timers.
            stream_set: The streams, for the status line.
            log: The container's.
            stopper: Has the grace period, which a client's stop may change.
            has_notify_proxy: The container reports its own readiness.
            packed: What `snapshot` of an earlier supervisor returned.
        """
        self._notifier = notifier
        self._loop = loop
        self._next_status = loop.timer(self._refresh)
        self._next_sign_of_life = loop.timer(self._give_sign_of_life)
        self._stream_set = stream_set
        self._log = log
        self._stopper = stopper
        self._state = State.OPENING
        self._text = ""
        self._asked_at_s = 0.0
        self._readiness_source = Source.CONTAINER if has_notify_proxy else Source.SUPERVISOR
        self._watchdog_source = Source.SUPERVISOR
        self._words = ""
        self._is_ready = False
        if packed is not None:
            self._words, self._is_ready = packed["words"], packed["is_ready"]
            self._watchdog_source = Source(packed["watchdog_source"])
        self._shown: list[tuple[int, Drops]] = []
        self._looked_at_s = -math.inf
        if notifier.watchdog_s:
            self._give_sign_of_life()

    def snapshot(self) -> dict[str, Any]:
        """Return what the next supervisor needs."""
        return {
            "words": self._words,
            "is_ready": self._is_ready,
            "watchdog_source": self._watchdog_source.value,
        }

    @property
    def has_manager(self) -> bool:
        """Whether there is a service manager."""
        return self._notifier.has_manager

    def reloading(self) -> None:
        """Report that a reload begins."""
        if self._is_ready:
            self._notifier.reloading()

    def running(self, state: State, text: str, *, is_started: bool) -> None:
        """Report that the container runs: after a reload, or after an adoption.

        `is_started`: its program runs. The earlier supervisor may have been killed before it told.
        """
        self._state, self._text = state, text
        is_ours = self._readiness_source is Source.SUPERVISOR
        self._is_ready |= is_started and is_ours and not self._is_ending(state)
        if self._is_ready:
            self._notifier.ready(self._line())
        else:
            self._notifier.status(self._line())
        self._refresh_later()

    def ready(self) -> None:
        """Report that the container's process runs, unless the container reports that itself."""
        is_containers = self._readiness_source is Source.CONTAINER
        if is_containers or self._is_ending(self._state):  # no READY=1 after STOPPING=1
            self._notifier.status(self._line())
        else:
            self._is_ready = True
            self._notifier.ready(self._line())
        self._refresh_later()

    def note(self, words: Words) -> bool:
        """Note the container's own messages; return whether a successor has to know."""
        before = self.snapshot()
        # From its first WATCHDOG=1 on only the container feeds the watchdog: the supervisor's
        # messages would hide that the container hangs.
        self._is_ready |= words.state == "READY"
        if words.watchdog == "1":
            self._watchdog_source = Source.CONTAINER
        if words.status is not None:
            self._words = words.status
        return self.snapshot() != before

    def forward(self, words: Words) -> None:
        """Pass on the container's own messages. Its STATUS= becomes a part of the status line."""
        self._notifier.forward(words.lines(), words.status, self._line)

    def entered(self, state: State, text: str) -> None:
        """Report the new state in words, and ask for the time that it may take."""
        if not self._notifier.has_manager:
            return
        if self._is_ending(state) and not self._is_ending(self._state):
            self._notifier.stopping()
        self._state, self._text = state, text
        self._ask_for_time()
        self._notifier.status(self._line())

    def look(self) -> None:
        """Report the status line now, or after 0.5 s if it was reported just now.

        A container whose workers die again and again must not flood systemd.
        """
        if not self._text or not self._notifier.has_manager:
            return
        too_soon_s = self._looked_at_s + _AT_MOST_EVERY_S - time.monotonic()
        if too_soon_s > 0:
            self._next_status.start(too_soon_s)
        else:
            self._refresh()

    def _refresh_later(self) -> None:
        if self._notifier.has_manager:
            self._shown = self._moved()
            self._next_status.start(_REFRESH_S)

    def _refresh(self) -> None:
        """Report now, and again as long as bytes move: a silent container causes no wake-up."""
        self._looked_at_s = time.monotonic()
        self._notifier.status(self._line())
        if self._moved() != self._shown:
            self._refresh_later()

    def _moved(self) -> list[tuple[int, Drops]]:
        return [
            (self._stream_set.copied_bytes(each), self._stream_set.drops(each))
            for each in self._stream_set.outputs
        ]

    def ask_for_more_time(self) -> None:
        """Ask for more time: the phase makes progress."""
        if time.monotonic() - self._asked_at_s >= _ASK_AGAIN_S:
            self._ask_for_time()

    def _ask_for_time(self) -> None:
        if self._is_ending(self._state):
            if self._state is State.STOPPING:
                limit_s = self._stopper.timeout_s + CALL_LIMIT_S
            else:
                limit_s = _LIMIT_S[self._state]
            self._asked_at_s = time.monotonic()
            self._notifier.extend_timeout(limit_s + MARGIN_S)

    @staticmethod
    def _is_ending(state: State) -> bool:
        return state is State.STOPPING or state in _LIMIT_S

    def _give_sign_of_life(self) -> None:
        if self._watchdog_source is Source.SUPERVISOR:
            self._notifier.alive()
        self._next_sign_of_life.start(self._notifier.watchdog_s)
        self._loop.guarded("look at the workers", self._replace_the_stuck)()
        self._loop.guarded("status", self.look)()

    def _replace_the_stuck(self) -> None:
        self._stream_set.stuck.kill_stuck(self._notifier.watchdog_s)

    def _line(self) -> str:
        stream_set = self._stream_set
        moved = [self._movement(stream) for stream in stream_set.outputs]
        deaths = sum(stream_set.deaths(stream) for stream in stream_set.streams)
        text = f"{self._text}: {self._words}" if self._words else self._text
        return ", ".join([text, *moved, f"respawned {deaths}", f"forkshim {__version__}"])

    def _movement(self, stream: Stream) -> str:
        text = f"{stream.name} {size(self._stream_set.copied_bytes(stream))}"
        drops = self._stream_set.drops(stream)
        if drops.bytes:
            text += f" + {size(drops.bytes)} in {drops.lines} lines dropped"
        trouble = self._stream_set.trouble(stream)
        return f"{text} ({trouble})" if trouble else text


def size(count: int) -> str:
    """Return a number of bytes in words: 0 B, 1023 B, 1.0 KiB, 12.3 GiB. Pure."""
    if count < 1024:
        return f"{count} B"
    number = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        number /= 1024
        if number < 1023.95:
            return f"{number:.1f} {unit}"
    return f"{number / 1024:.1f} TiB"
