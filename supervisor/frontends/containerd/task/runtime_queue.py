"""The runtime calls of one container, one after the other."""

from __future__ import annotations

from supervisor.linux.errors import ShimError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    OnEnd = Callable[[str], None]


class RuntimeQueue:
    """Runs calls in their order: the next one begins when the one before has ended."""

    def __init__(self) -> None:
        """Nothing runs."""
        self._waiting: list[tuple[Callable[[OnEnd], None], OnEnd]] = []
        self._when_idle: list[Callable[[], None]] = []
        self._is_busy = False

    @property
    def is_idle(self) -> bool:
        """Whether no call runs or waits."""
        return not self._is_busy and not self._waiting

    def run(self, call: Callable[[OnEnd], None], on_end: OnEnd) -> None:
        """Run `call` in its turn; `on_end` gets "" or why it has failed."""
        self._waiting.append((call, on_end))
        self._next()

    def when_idle(self, callback: Callable[[], None]) -> None:
        """Call back once when no call runs or waits; maybe at once."""
        self._when_idle.append(callback)
        self._next()

    def _next(self) -> None:
        if self._is_busy:
            return
        if not self._waiting:
            while self._when_idle:
                self._when_idle.pop(0)()
            return
        self._is_busy = True
        call, on_end = self._waiting.pop(0)

        def ended(error: str) -> None:
            self._is_busy = False
            on_end(error)
            self._next()

        try:
            call(ended)
        except (ShimError, OSError, ValueError) as error:  # else no later call would have its turn
            ended(str(error))
