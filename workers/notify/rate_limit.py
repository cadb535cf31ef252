"""Rate limit of a container's messages to the service manager: a token bucket, and merging.

PID 1 of the machine reads each message, so a container may cause 20 at once and 10 per second. The
worker merges messages that arrive faster: it keeps the last value of each name, and sends it with
the next token. It keeps the order of state changes. Without READY=1 before STOPPING=1 the unit
would have failed. Without RELOADING=1 before READY=1 systemd would wait for the end of a reload.
"""

from __future__ import annotations

from workers.notify.words import NOTHING, Words

AT_ONCE = 20
A_SECOND = 10.0
READ_AT_ONCE, READ_A_SECOND = 64, 320.0
REST_S = 0.1
"""Limit for datagrams that are not sent at once: reading them costs CPU time outside the container.
Above it the worker reads nothing for REST_S. A container that fills the socket's queue waits."""


class Bucket:
    """A token bucket: `at_once` tokens at first and at most, `a_second` more per second."""

    def __init__(self, at_once: int, a_second: float, now_s: float) -> None:
        """Start with a full bucket. All times are in seconds, monotonic."""
        self._most, self._a_second = float(at_once), a_second
        self._tokens, self._at_s = self._most, now_s

    def take(self, now_s: float) -> bool:
        """Take a token. Return False if there is none."""
        self._fill(now_s)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until there is a token."""
        self._fill(now_s)
        return max(0.0, 1 - self._tokens) / self._a_second

    def _fill(self, now_s: float) -> None:
        self._tokens = min(self._most, self._tokens + (now_s - self._at_s) * self._a_second)
        self._at_s = now_s


def merge(messages: list[Words], words: Words) -> list[Words]:
    """Return at most four messages that replace `messages` followed by `words`. Pure."""
    everything = [*messages, words]
    changes = [
        Words(state=each.state, monotonic_usec=each.monotonic_usec)
        for each in everything
        if each.state
    ]
    *first, last = _compact(changes) or [NOTHING]
    for each in everything:
        last = _over(last, each)
    return [each for each in (*first, last) if each != NOTHING]


def _compact(changes: list[Words]) -> list[Words]:
    """Return the last change to each state and the first READY=1, in their order."""
    changes = [
        each
        for each, after in zip(changes, [*changes[1:], NOTHING], strict=False)
        if each.state != after.state
    ]
    last = {each.state: index for index, each in enumerate(changes)}
    ready = [index for index, each in enumerate(changes) if each.state == "READY"]
    return [changes[index] for index in sorted({*last.values(), *ready[:1]})]


def _over(older: Words, newer: Words) -> Words:
    """Return `older` with the values of `newer`, except its state. WATCHDOG=trigger stays."""
    said = {
        name: value
        for name, value in newer._asdict().items()
        if name not in ("state", "monotonic_usec") and value not in (None, "")
    }
    if newer.status is not None:
        said["status"] = newer.status
    if older.watchdog == "trigger":
        said["watchdog"] = "trigger"
    return older._replace(**said)
