"""The pauses of a batching worker: the test sees them and ends them."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from supervisor.linux import fds
from tests.harness import waiting
from workers.copy.batching import Batching
from workers.copy.route import Route
from workers.process import isolate

if TYPE_CHECKING:
    import pytest


class Pauses:
    """Each worker forked from now on reports its pause, and waits for the test to end it.

    The clock of the worker stands still, so every move follows the last at once. Owns pipes until
    `close`.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._said = fds.pipe(4096)
        self._over = fds.pipe(4096)
        made = partial(Batching, fds.PIPE_BYTES, clock=lambda: 0.0, pause=self._pause)
        enter_worker = isolate.enter_worker
        monkeypatch.setattr(
            isolate,
            "enter_worker",
            lambda title, keep_fds, null_fd: enter_worker(title, (*keep_fds, *self._fds), null_fd),
        )
        monkeypatch.setattr(Route, "batching", lambda *_words: made())

    @property
    def _fds(self) -> tuple[int, ...]:
        """Descriptors that the worker keeps open."""
        return (self._said[1].fileno(), self._over[0].fileno())

    def _pause(self, _pause_s: float) -> None:
        os.write(self._said[1].fileno(), b"p")
        os.read(self._over[0].fileno(), 1)

    def wait(self) -> None:
        """Wait until the next pause has begun."""
        waiting.wait_readable(self._said[0].fileno())
        assert os.read(self._said[0].fileno(), 1) == b"p"

    @property
    def none_has_begun(self) -> bool:
        """Whether no pause has begun since the last `wait`."""
        return not waiting.is_readable(self._said[0].fileno())

    def end(self) -> None:
        """End this pause, or the next."""
        os.write(self._over[1].fileno(), b"e")

    def close(self) -> None:
        """Close the pipes."""
        for end in (*self._said, *self._over):
            end.close()
