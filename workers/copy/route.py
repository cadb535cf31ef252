"""The descriptors of one copy, the interface for its progress, and its error."""

from __future__ import annotations

import os

from workers.common.records import dataclass
from workers.copy.batching import SMALL_BYTES, Batching

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Progress(Protocol):
        """Receives the progress of a copy, see `workers.process.counters`."""

        def add_copied(self, copied_bytes: int) -> None:
            """Count bytes that have reached the sink."""

        def set_in_flight(self, in_flight_bytes: int) -> None:
            """Set how many bytes are between source and sink."""

        @property
        def is_teed(self) -> bool:
            """Whether the content of the staging pipe was teed to the attach clients."""

        def set_teed(self, *, is_teed: bool) -> None:
            """Set `is_teed`."""

        def add_skipped(self, client: int, skipped_bytes: int) -> None:
            """Count bytes for which an attach client had no room."""

        def unteed_bytes(self, branch: int) -> int:
            """Return how many bytes at the end of the staging pipe were not teed to a branch."""

        def set_unteed_bytes(self, branch: int, count: int) -> None:
            """Set `unteed_bytes`."""


SPLICE_BYTES = 1 << 20
CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class BranchPipes:
    """The pipes of one branch, see `workers.copy.branch`.

    Attributes:
        number: Index of the branch in its stream.
        tee_pipe: Read and write end of a pipe that only the worker of the stream uses.
        out_wfd: Write end of the pipe that the branch's own worker reads.
    """

    number: int
    tee_pipe: tuple[int, int]
    out_wfd: int


@dataclass(frozen=True, slots=True)
class Route:
    """Descriptors of one copy, all borrowed.

    Attributes:
        source_fd: The descriptor that the worker reads.
        sink_fd: The descriptor that the worker writes.
        staging: Read and write end of the supervisor's pipe. None where source and sink are pipes
            and no client is attached.
        source_is_console: EIO from the source is end of file: no process has the terminal open
            (pty(7)).
        sink_is_log: The sink is a file that grows at its end. Other processes may have it open.
        attach_clients: Number and pipe of each client. A client loses bytes if its pipe is full.
        branches: Each gets every byte, and the copy waits for it.
        tee: tee(2), for clients and branches.
        capacity_bytes: Size of the source pipe; 0 if the source is no pipe. The supervisor passes
            it: F_GETPIPE_SZ takes the pipe's lock, and a worker that waits for it cannot be killed.
    """

    source_fd: int
    sink_fd: int
    staging: tuple[int, int] | None = None
    source_is_console: bool = False
    sink_is_log: bool = False
    attach_clients: tuple[tuple[int, int], ...] = ()
    branches: tuple[BranchPipes, ...] = ()
    tee: Callable[[int, int, int], int] | None = None
    capacity_bytes: int = 0

    @property
    def fds(self) -> tuple[int, ...]:
        """Every descriptor that the copy needs."""
        return (self.source_fd, self.sink_fd, *self.source_fds[1:])

    @property
    def source_fds(self) -> tuple[int, ...]:
        """Every descriptor that the copy needs, without the sink."""
        branches = (fd for each in self.branches for fd in (*each.tee_pipe, each.out_wfd))
        clients = (fd for _number, fd in self.attach_clients)
        return (self.source_fd, *(self.staging or ()), *clients, *branches)

    def batching(self, most_bytes: int = SPLICE_BYTES, small_bytes: int = SMALL_BYTES) -> Batching:
        """Return the batching of a copy that moves `most_bytes` at once.

        A console on either side gets no pauses, because a user types there. stdin gets none,
        either (`workers.copy.stdin`), because the container waits for each byte.
        """
        is_console = self.source_is_console or os.isatty(self.sink_fd)
        capacity_bytes = 0 if is_console else min(self.capacity_bytes, most_bytes)
        return Batching(capacity_bytes, small_bytes=small_bytes)


class CopyError(Exception):
    """The copy cannot continue. `errno` is the kernel's, `side` is "source", "sink" or ""."""

    def __init__(self, error: OSError, side: str) -> None:
        """Keep the errno for the report."""
        super().__init__(error.strerror)
        self.errno = error.errno or 0
        self.side = side
