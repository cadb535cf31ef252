"""One stream between a client and the container: its descriptors and its phase."""

from __future__ import annotations

import fcntl
import os
import signal
from contextlib import suppress
from enum import Enum

from supervisor.io.attach.branch import ATTACH_NAME, Branch
from supervisor.linux import fds, syscalls
from workers.common.policy import BLOCK
from workers.copy.route import Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from supervisor.sinks.sink import Sink
    from supervisor.state.fd_store import FdWriter
    from workers.copy.packet_stdin import PacketInput


_LEAVE_SIGNAL = signal.SIGUSR2
"""Source: `workers.copy.packet_hub`, which is loaded only for streams with attach clients."""


class StreamPhase(Enum):
    """How far the end of a stream has come.

    HANGING_UP: the supervisor takes no more from the container's side. With a line sink, a last
    worker writes the buffer. Without a line sink, the stream is closed once its worker is reaped.
    COUNTING_REST: the supervisor has given the stream up. A last worker counts what is left.
    """

    OPEN = "open"
    HANGING_UP = "hanging up"
    COUNTING_REST = "counting rest"
    CLOSED = "closed"


class Stream:
    """Owns the descriptors of one stream. Its `WorkerSlot` owns the workers."""

    SNAPSHOT_FDS = ("source", "sink", "staging", "branches")
    SNAPSHOT = ("name", "setting", "phase", "capacity_bytes")
    TRANSIENT = ("sink_name", "is_passthrough", "line_sink", "reopen", "packet_input")
    """Made from the settings again, see `supervisor.io.client_stdio`."""

    def __init__(
        self,
        name: str,
        source: fds.Fd,
        sink: fds.Fd,
        *,
        sink_name: str = "",
        is_passthrough: bool = False,
        line_sink: Sink | None = None,
        reopen: Callable[[], fds.Fd] | None = None,
        setting: str = "",
        packed: Mapping[str, Any] | None = None,
        staging: tuple[fds.Fd, fds.Fd] | None = None,
        branches: Sequence[Branch] = (),
        packet_input: PacketInput | None = None,
    ) -> None:
        """Own `source` and `sink`, and a staging pipe unless both are pipes without a line sink.

        Args:
            name: "stdin", "stdout", "stderr" or "console".
            source: The descriptor that the worker reads.
            sink: The descriptor that the worker writes.
            sink_name: For log lines.
            is_passthrough: The supervisor has inherited the sink, and other processes have it.
            line_sink: Borrowed. It takes the place of `sink`, which is /dev/null then.
            reopen: Opens the name of a log file again; it may raise `ShimError`.
            setting: "stdout" or "stderr": the client's setting that names the sink.
            packed: What `snapshot` of an earlier supervisor returned.
            staging: The staging pipe of that supervisor.
            branches: The branches of that supervisor; owned.
            packet_input: For a stdin that attach clients write to.
        """
        self.name = name
        self.source = source
        self.sink = sink
        self.sink_name = sink_name
        self.is_passthrough = is_passthrough
        self.line_sink = line_sink
        self.reopen = reopen
        self.setting = setting
        self.staging = staging
        self.branches = list(branches)
        self.packet_input = packet_input
        if packed is not None:
            self.phase = StreamPhase(packed["phase"])
            self.capacity_bytes: int = packed["capacity_bytes"]
            return
        self.phase = StreamPhase.OPEN
        if line_sink is not None or not (
            fds.is_fifo(source.fileno()) and fds.is_fifo(sink.fileno()) and packet_input is None
        ):
            self.staging = fds.pipe()
        # Before the container has the pipe: F_GETPIPE_SZ takes its lock, see `has_pending`.
        self.capacity_bytes = fds.capacity_bytes(source.fileno())
        if line_sink is not None:
            self.capacity_bytes += line_sink.held_bytes

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return what the next supervisor needs. The line sink is packed elsewhere."""
        return {
            "name": self.name,
            "setting": self.setting,
            "phase": self.phase.value,
            "capacity_bytes": self.capacity_bytes,
            "source": fd_writer.add(self.source.fileno()),
            "sink": fd_writer.add(self.sink.fileno()),
            "staging": [fd_writer.add(end.fileno()) for end in self.staging or ()],
            "branches": [branch.snapshot(fd_writer) for branch in self.branches],
        }

    @property
    def is_closed(self) -> bool:
        """Whether the container's side is closed."""
        return self.phase is StreamPhase.CLOSED

    @property
    def is_live_output(self) -> bool:
        """Whether the stream still takes the container's output."""
        return not self.is_input and self.phase is StreamPhase.OPEN

    @property
    def has_no_next_worker(self) -> bool:
        """Whether the stream is closed once its present worker is gone, whatever it reports."""
        return self.phase is StreamPhase.COUNTING_REST or (
            self.phase is StreamPhase.HANGING_UP and self.line_sink is None
        )

    @property
    def is_interruptible(self) -> bool:
        """Whether a killed worker loses no byte.

        It would where splice(2) is refused: a file with O_APPEND, where the worker holds bytes.
        """
        if self.line_sink is not None or self.is_closed:
            return True
        return not fcntl.fcntl(self.sink.fileno(), fcntl.F_GETFL) & os.O_APPEND

    @property
    def is_sink_deleted(self) -> bool:
        """Whether the file that the worker writes to has no name any more."""
        if self.line_sink is not None:
            return self.line_sink.is_deleted
        return os.fstat(self.sink.fileno()).st_nlink == 0

    @property
    def has_attach_sink(self) -> bool:
        """Whether the sink is a `supervisor.sinks.attach_sink`."""
        return self.line_sink is not None and self.sink_name == ATTACH_NAME

    @property
    def leave_signal(self) -> int:
        """The signal that asks a worker to exit; 0 where SIGKILL does no harm."""
        return _LEAVE_SIGNAL if self.has_attach_sink else 0

    @property
    def is_lossy(self) -> bool:
        """Whether a policy drops what the sink does not take."""
        return self.line_sink is not None and self.line_sink.policy != BLOCK

    @property
    def is_input(self) -> bool:
        """Whether the stream runs towards the container."""
        return self.name == "stdin"

    @property
    def route(self) -> Route:
        """What the worker gets: descriptors and how to copy between them."""
        staging = self.staging
        held_bytes = 0 if self.line_sink is None else self.line_sink.held_bytes
        branches = tuple(branch.pipes for branch in self.branches if branch.is_on)
        return Route(
            self.source.fileno(),
            self.sink.fileno(),
            None if staging is None else (staging[0].fileno(), staging[1].fileno()),
            source_is_console=self.name == "console",
            capacity_bytes=max(0, self.capacity_bytes - held_bytes),
            sink_is_log=self.reopen is not None,
            branches=branches,
            tee=syscalls.tee if branches else None,
        )

    def add_branch(self) -> tuple[Branch, fds.Fd]:
        """Make a branch. Return it, and the read end of its bytes, which the caller owns.

        Raises:
            OSError: EMFILE, ENFILE.
            ValueError: A killed worker would lose bytes, or the pipes are too small for a policy.
        """
        if not self.is_interruptible:
            raise ValueError(f"{self.sink_name} is open for appending")
        if self.staging is None:
            self.staging = fds.pipe()
        tee_pipe, (out_rfd, out_wfd) = fds.pipe(), fds.pipe()
        branch = Branch(len(self.branches), tee_pipe, out_wfd)
        sizes = [fds.capacity_bytes(end.fileno()) for end in (tee_pipe[1], self.staging[1])]
        if self.is_lossy and sizes[0] < sizes[1]:
            # What does not fit into a lossy stream's buffer goes back into the staging pipe.
            branch.close()
            out_rfd.close()
            raise ValueError("the kernel allows no more large pipes, see pipe-user-pages-soft")
        self.branches.append(branch)
        return branch, out_rfd

    def has_pending(self) -> bool:
        """Return whether the source has data or end of file for the worker.

        The worker may not get to it: with a full sink, splice(2) waits for room even at end of
        file.

        It calls poll(2), which takes no lock. FIONREAD takes the pipe's lock. A process of the
        container that sleeps in splice(2) into its stdout holds it, and would block the supervisor.
        """
        return self.source.is_open and fds.is_readable(self.source.fileno())

    def has_room(self) -> bool:
        """Return whether the worker could write without waiting."""
        if not all(branch.has_room() for branch in self.branches):
            return False
        if self.line_sink is not None:
            return self.line_sink.has_room(self.sink.fileno())
        return fds.is_writable(self.sink.fileno())

    @property
    def has_own_fifo(self) -> bool:
        """Whether the sink is a fifo that the supervisor has opened itself, with O_RDWR."""
        return (
            not (self.is_input or self.is_passthrough)
            and self.sink.is_open
            and fds.is_fifo(self.sink.fileno())
        )

    def write_only(self) -> None:
        """Stop being a reader of the client's fifo. Then every reader is a client.

        The new descriptor is opened before the old one is closed. So the client reads no end of
        file, and open(2) finds a reader and does not block.

        Raises:
            OSError: EMFILE, ENFILE.
        """
        if fcntl.fcntl(self.sink.fileno(), fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
            return
        write_only = fds.reopen(self.sink.fileno(), os.O_WRONLY)
        self.sink.close()
        self.sink = write_only

    def unread_bytes(self) -> int:
        """Return the bytes in the client's fifo that closing the sink would discard.

        0 for a sink that keeps its bytes: a file, an inherited pipe, a fifo that a client has open.
        A fifo loses its bytes when its last opener closes it, fifo(7).
        """
        if not self.has_own_fifo:
            return 0
        return 0 if fds.has_reader(self.sink.fileno()) else fds.pending_bytes(self.sink.fileno())

    def close_container_side(self) -> None:
        """Close the container's side: end its input, or take no more of its output.

        The client's side stays open until the container is deleted. A client that comes back late
        then reads end of file. In a fifo without a writer its open(2) would block.
        """
        self.phase = StreamPhase.CLOSED
        (self.sink if self.is_input else self.source).close()
        for branch in self.branches:
            branch.close()
        if self.has_own_fifo:  # the last worker has ended
            with suppress(OSError):  # EMFILE: `unread_bytes` is then 0 whatever the client reads
                self.write_only()

    def close_fifo_if_read(self) -> None:
        """Close the fifo of a closed output if a client has it open, which reads end of file."""
        if self.is_closed and self.has_own_fifo and fds.has_reader(self.sink.fileno()):
            self.sink.close()

    def close(self) -> None:
        """Close every descriptor."""
        self.phase = StreamPhase.CLOSED
        for owner in (self.source, self.sink, *(self.staging or ()), *self.branches):
            owner.close()
