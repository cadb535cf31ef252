"""How an engine wants the runtime's create, exec or restore to be called."""

from __future__ import annotations

from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MOST_WORDS_BYTES = 8191
"""So much of the runtime's stderr an engine gets to read. Source: conmon(8)."""


def _do_nothing(_environment: dict[str, str]) -> None:
    pass


@dataclass(frozen=True, slots=True)
class EngineCall:
    """One call. The engine runs the runtime's other operations itself: start, kill and delete.

    Its clients leave with the process: what others of the container write later is not waited for.

    Attributes:
        argv: Gets the path of the console socket, or None; returns the words of the call.
        pid_file: Absolute path of the file for the pid, which the runtime writes.
        environment: All variables of the runtime.
        prepare: Called in the child with these variables, before the runtime is executed.
        stdio: The runtime's descriptors 0, 1 and 2, lent; None for pipes.
    """

    argv: Callable[[str | None], list[str]]
    pid_file: str
    environment: Mapping[str, str]
    prepare: Callable[[dict[str, str]], None] = _do_nothing
    stdio: tuple[int, int, int] | None = None
