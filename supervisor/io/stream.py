"""One copy between a client and the container: its descriptors, what is known of its workers."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

from supervisor.linux import fds
from workers.copy import splice
from workers.lines.buffer import BLOCK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Protocol

    from supervisor.sinks.sink import Sink
    from supervisor.state.fd_store import FdWriter

    class Watch(Protocol):
        """What follows one worker: `supervisor.io.worker_process.WorkerWatch`."""

        @property
        def is_untouched(self) -> bool:
            """Whether nothing has been heard of the worker so far."""

        @property
        def has_reported(self) -> bool:
            """Whether its report was acted upon while it lived."""

        def fileno(self) -> int:
            """Lend the report pipe's read end."""

        def abandon(self) -> None:
            """Listen no more; somebody else expects the worker's end."""


_KEPT = (
    "slot",
    "pid",
    "is_over",
    "is_hung_up",
    "deaths",
    "deaths_without_progress",
    "errors_in_a_row",
    "copied_bytes_at_fork",
    "reported_dropped_bytes",
    "reported_dropped_lines",
)
"""What `Stream.pack` says of a stream as it is."""


class Stream:
    """One copy: its descriptors (owned), its worker, its history."""

    def __init__(
        self,
        name: str,
        source: fds.Fd,
        sink: fds.Fd,
        *,
        sink_name: str = "",
        is_passthrough: bool = False,
        outlet: Sink | None = None,
        reopen: Callable[[], fds.Fd] | None = None,
        setting: str = "",
        packed: Mapping[str, Any] | None = None,
        staging: tuple[fds.Fd, fds.Fd] | None = None,
    ) -> None:
        """Own `source` and `sink`, and a staging pipe unless both are pipes and there is no outlet.

        `is_passthrough`: the sink is a descriptor that we were started with, and others have too.
        `outlet`, borrowed, is there in the place of `sink`, which is /dev/null then.
        `reopen` opens a file's name anew, for a sink that is one; it may raise `ShimError`.
        `setting`, "stdout" or "stderr", says where it goes.
        `packed` and `staging`: go on with a stream of an earlier supervisor, see `pack`.
        """
        self.name = name
        self.source = source
        self.sink = sink
        self.sink_name = sink_name
        self.is_passthrough = is_passthrough
        self.outlet = outlet
        self.reopen = reopen
        self.setting = setting
        self.staging = staging
        self.slot = -1
        self.pid = 0
        self.watch: Watch | None = None
        self.is_reaped = False
        self.is_over = False
        self.is_given_up = False
        self.is_hung_up = False
        self.is_client_looked_for = False
        self.deaths = 0
        self.deaths_without_progress = 0
        self.errors_in_a_row = 0
        self.failed_forks = 0
        self.held_until_s = 0.0
        self.dies_at_rest = False
        self.copied_bytes_at_fork = 0
        self.trouble = ""
        self.refusal = ""
        self.left_bytes = 0
        self.left_lines = 0
        self.reported_dropped_bytes = 0
        self.reported_dropped_lines = 0
        if packed is not None:
            self.capacity_bytes: int = packed["capacity_bytes"]
            for name in _KEPT:
                setattr(self, name, packed[name])
            return
        if outlet is not None or not (fds.is_fifo(source.fileno()) and fds.is_fifo(sink.fileno())):
            self.staging = fds.pipe()
        # Asked now, while the pipe is ours alone: see `has_pending`.
        self.capacity_bytes = fds.capacity_bytes(source.fileno())
        if outlet is not None:
            self.capacity_bytes += outlet.held_bytes

    def pack(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return what a successor needs; the outlet is packed elsewhere.

        A worker that is half gone is left out: another one sees what it has seen.
        """
        has_worker = self.watch is not None and self.watch.is_untouched
        return {
            "name": self.name,
            "setting": self.setting,
            "source": fd_writer.add(self.source.fileno()),
            "sink": fd_writer.add(self.sink.fileno()),
            "staging": [fd_writer.add(end.fileno()) for end in self.staging or ()],
            "report": fd_writer.add(self.watch.fileno()) if self.watch and has_worker else -1,
            "capacity_bytes": self.capacity_bytes,
            **{name: getattr(self, name) for name in _KEPT},
            "pid": self.pid if has_worker else 0,
        }

    @property
    def is_settled(self) -> bool:
        """Whether its worker, if there is one, is neither half gone nor about to be."""
        return self.watch is None or self.watch.is_untouched

    @property
    def is_interruptible(self) -> bool:
        """Whether a worker that is killed loses nothing: it does not where splice(2) is refused."""
        if self.outlet is not None or self.is_over:
            return True
        return not fcntl.fcntl(self.sink.fileno(), fcntl.F_GETFL) & os.O_APPEND

    @property
    def drops(self) -> tuple[int, int]:
        """What a policy, or giving it up, has cost so far: bytes, ends of lines among them."""
        dropped, lines = (0, 0) if self.outlet is None else self.outlet.drops()
        return dropped + self.left_bytes, lines + self.left_lines

    @property
    def is_lossy(self) -> bool:
        """Whether a policy drops what the sink does not take."""
        return self.outlet is not None and self.outlet.policy != BLOCK

    @property
    def is_input(self) -> bool:
        """Whether it runs towards the container."""
        return self.name == "stdin"

    @property
    def route(self) -> splice.Route:
        """What the worker is handed."""
        staging = self.staging
        held_bytes = 0 if self.outlet is None else self.outlet.held_bytes
        return splice.Route(
            self.source.fileno(),
            self.sink.fileno(),
            None if staging is None else (staging[0].fileno(), staging[1].fileno()),
            source_is_console=self.name == "console",
            capacity_bytes=max(0, self.capacity_bytes - held_bytes),
            sink_is_log=self.reopen is not None,
        )

    def has_pending(self) -> bool:
        """Say whether the worker has something to do: data to take, or an end of file to report.

        It may not get to it: on a full sink splice(2) waits for room even at the source's end.

        By poll(2), which takes no lock. FIONREAD takes the pipe's: a process of the container that
        sleeps in splice(2) into its stdout holds that lock, and we would sleep with it.
        """
        return self.source.is_open and fds.is_readable(self.source.fileno())

    def has_room(self) -> bool:
        """Say whether what the worker has could be moved without waiting."""
        if self.outlet is not None:
            return self.outlet.has_room(self.sink.fileno())
        return fds.is_writable(self.sink.fileno())

    @property
    def has_own_fifo(self) -> bool:
        """Whether it goes into a fifo that we have opened ourselves, for both directions."""
        return (
            not (self.is_input or self.is_passthrough)
            and self.sink.is_open
            and fds.is_fifo(self.sink.fileno())
        )

    def write_only(self) -> None:
        """Be no reader of the client's fifo any more, so that a client can be told from ourselves.

        The new descriptor is open before the old one goes: no client sees the last writer go, and
        we are the reader without which open(2) would wait.

        Raises:
            OSError: EMFILE, ENFILE.
        """
        if fcntl.fcntl(self.sink.fileno(), fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
            return
        write_only = fds.reopen(self.sink.fileno(), os.O_WRONLY)
        self.sink.close()
        self.sink = write_only

    def unread_bytes(self) -> int:
        """Return what would be gone from the client's fifo if we closed it now.

        0 for a sink that keeps what it is given: a file, a pipe of our caller's, a fifo that a
        client has open. A fifo forgets its bytes with its last opener (fifo(7)).
        """
        if not self.has_own_fifo:
            return 0
        return 0 if fds.has_reader(self.sink.fileno()) else fds.pending_bytes(self.sink.fileno())

    def finish(self) -> None:
        """Close the container's side: its input ends, or there is no more output to come.

        The client's side stays open until the container is gone: a client that comes back
        late finds end of file then, and not a fifo without a writer, where it would hang.
        """
        self.is_over = True
        (self.sink if self.is_input else self.source).close()
        if self.has_own_fifo:  # nobody writes any more
            with suppress(OSError):  # EMFILE: who has read how much of it will not be known
                self.write_only()

    def close(self) -> None:
        """Close everything."""
        self.is_over = True
        for owner in (self.source, self.sink, *(self.staging or ())):
            owner.close()
