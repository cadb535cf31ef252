"""A call of the runtime's create, exec or restore with the engine's own arguments."""

from __future__ import annotations

from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MOST_STDERR_BYTES = 8191
"""The most bytes of the runtime's stderr that an engine gets. Source: conmon(8)."""


def _do_nothing(_environment: dict[str, str]) -> None:
    pass


@dataclass(frozen=True, slots=True)
class EngineCall:
    """One call. The engine runs the runtime's other operations itself: start, kill and delete.

    The engine's clients leave when the process exits. So the supervisor does not wait for output
    that other processes of the container write later.

    Attributes:
        argv: Gets the path of the console socket, or None; returns the argv of the call.
        pid_file: Absolute path of the file to which the runtime writes the pid.
        environment: All variables of the runtime.
        prepare: Called in the child with these variables, before the runtime is executed.
        stdio: The runtime's descriptors 0, 1 and 2, lent; None for pipes.
    """

    argv: Callable[[str | None], list[str]]
    pid_file: str
    environment: Mapping[str, str]
    prepare: Callable[[dict[str, str]], None] = _do_nothing
    stdio: tuple[int, int, int] | None = None
