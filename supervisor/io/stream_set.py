"""All streams of one container and their workers: the interface of this package.

`StreamCopy` has the workers of one stream. `restart_policy` decides what follows a failure.
"""

from __future__ import annotations

import contextlib
import os
import signal
from functools import partial

from supervisor.children import restart_policy
from supervisor.children.restart_policy import RestartPolicy
from supervisor.io.attach.branch import ATTACH_NAME, ATTACH_SUFFIX, is_branch, trunk_of
from supervisor.io.attach.hub import AttachHub
from supervisor.io.reopen import LogReopener
from supervisor.io.slot_context import SlotContext
from supervisor.io.stream import Stream
from supervisor.io.stream_copy import StreamCopy
from supervisor.io.stream_log import StreamLog
from supervisor.io.stuck import StuckDetector
from supervisor.linux import fds
from workers.process.counters import StreamCounters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from supervisor.io.attach.packet_clients import PacketClients
    from supervisor.linux.event_loop import Loop
    from supervisor.linux.reaper import Reaper
    from supervisor.sinks.sink import Drops, Sink
    from supervisor.state.fd_store import FdWriter
    from supervisor.state.log import Log
    from workers.copy.stdin import RawTerminal


class StreamSet:
    """All streams of one container. Owns the streams, their workers and their counters.

    It has many methods, because the other packages use no other class of this package for the
    streams. Most of them are one line.
    """

    SNAPSHOT = (
        "_slots", "_counters", "_stream_log", "attach_clients", "_reopener", "packet_clients"
    )  # fmt: skip
    TRANSIENT = (
        "_context",
        "_on_stream_over",
        "stuck",
    )

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        log: Log,
        *,
        title: str,
        null_fd: int,
        on_stream_over: Callable[[], None],
        on_change: Callable[[], None] = lambda: None,
        on_trouble: Callable[[], None] = lambda: None,
        is_adoptable: bool = False,
        counters: fds.Fd | None = None,
        dir_fd: int | None = None,
    ) -> None:
        """Borrow everything but `counters`.

        Args:
            loop: Watches sources and report pipes.
            reaper: Reaps the workers.
            log: Gets failures and lost bytes.
            title: Prefix of the workers' process titles.
            null_fd: /dev/null, open for reading and writing.
            on_stream_over: Called when a stream was closed.
            on_change: Called when the descriptors of a stream have changed.
            on_trouble: Called when `trouble` of a stream may have changed.
            is_adoptable: Another supervisor can adopt the container when this one is killed.
            counters: The shared memory of an earlier supervisor's counters; owned.
            dir_fd: The state directory.
        """
        self._on_stream_over = on_stream_over
        self._counters = StreamCounters(fd=-1 if counters is None else counters.take())
        self._stream_log = StreamLog(log, on_trouble)
        self.attach_clients = AttachHub(loop, log, self._counters, self._on_client_left, dir_fd)
        self._context = SlotContext(
            loop,
            reaper,
            log,
            self._stream_log,
            self.attach_clients,
            self._counters,
            title=title,
            null_fd=null_fd,
            is_adoptable=is_adoptable,
            on_change=on_change,
            on_closed=self._on_stream_closed,
        )
        self._slots: list[StreamCopy] = []
        self.packet_clients: PacketClients | None = None
        self._reopener = LogReopener(loop, self._slots, self._stream_log, on_change)
        self.stuck = StuckDetector(self._slots, log)

    # The streams.

    def add(self, stream: Stream) -> None:
        """Own a stream. `start` forks its worker."""
        self._slots.append(StreamCopy(self._context, stream, len(self._slots)))
        if self.packet_clients is not None and not is_branch(stream.name):
            self.packet_clients.stream_added()

    @property
    def streams(self) -> list[Stream]:
        """All streams, in the order of `add`."""
        return [slot.stream for slot in self._slots]

    @property
    def outputs(self) -> list[Stream]:
        """The streams that carry output."""
        return [stream for stream in self.streams if not stream.is_input]

    @property
    def trunks(self) -> list[Stream]:
        """The open outputs of the container itself, without branches."""
        return [
            stream for stream in self.outputs if not (is_branch(stream.name) or stream.is_closed)
        ]

    def branches_of(self, trunk: Stream) -> list[Stream]:
        """Return the streams that copy the branches of an output."""
        return [
            stream
            for stream in self.streams
            if is_branch(stream.name) and trunk_of(stream.name) == trunk.name
        ]

    def attach_branch_of(self, trunk: Stream) -> Stream | None:
        """Return the stream that copies an output to its attach clients; None without one."""
        name = trunk.name + ATTACH_SUFFIX
        return next((stream for stream in self.streams if stream.name == name), None)

    @property
    def has_output_begun(self) -> bool:
        """Whether a worker of an output was ever forked."""
        return any(
            self._counters.has_begun(slot.number)
            for slot in self._slots
            if not slot.stream.is_input
        )

    def null_stream(
        self, name: str, source: fds.Fd, sink: Sink, sink_name: str = ATTACH_NAME
    ) -> Stream:
        """Add and return the stream of a branch: `sink` takes its bytes.

        Raises:
            OSError: EMFILE.
        """
        null = fds.Fd(os.dup(self._context.null_fd))
        stream = Stream(name, source, null, sink_name=sink_name, line_sink=sink, setting=name)
        self.add(stream)
        return stream

    def slot(self, stream: Stream) -> StreamCopy:
        """Return the slot of a stream."""
        return next(slot for slot in self._slots if slot.stream is stream)

    @property
    def raw_terminal(self) -> RawTerminal | None:
        """The user's terminal, which the worker of stdin restores if the supervisor dies."""
        return self._context.raw_terminal

    @raw_terminal.setter
    def raw_terminal(self, terminal: RawTerminal | None) -> None:
        self._context.raw_terminal = terminal

    @property
    def has_workers(self) -> bool:
        """Whether a worker was not reaped yet."""
        return any(slot.has_processes for slot in self._slots)

    @property
    def counters_fd(self) -> int:
        """The memfd of the counters, which each worker maps until it exits; borrowed."""
        return self._counters.fd

    def copied_bytes(self, stream: Stream) -> int:
        """Return how many bytes the stream has copied."""
        return self.slot(stream).copied_bytes

    def in_flight_bytes(self, stream: Stream) -> int:
        """Return how many bytes its worker has read and not written yet."""
        return self.slot(stream).in_flight_bytes

    def drops(self, stream: Stream) -> Drops:
        """Return the bytes and lines that a drop policy, or giving the stream up, has lost."""
        return self.slot(stream).drops

    def deaths(self, stream: Stream) -> int:
        """Return how many workers of the stream have died."""
        return self.slot(stream).history.deaths

    def trouble(self, stream: Stream) -> str:
        """Return why the stream copies nothing, or writes an old file; "" without trouble."""
        return self.slot(stream).current_trouble or self._stream_log.refusal(stream)

    def unread_bytes(self, stream: Stream) -> int:
        """Return the bytes in a fifo without a client, which are lost when the supervisor exits.

        0 while the stream is open: the supervisor then has the fifo open for reading itself.
        """
        return stream.unread_bytes() if stream.is_closed else 0

    # The workers.

    def start(self, *, but: Stream | None = None) -> None:
        """Fork a worker for each stream except `but`, when its first byte arrives."""
        for slot in self._slots:
            if slot.stream is not but:
                slot.start()

    def end_pauses(self) -> None:
        """End every pause, and keep later ones short: the container is dead, its exit waits."""
        self._context.policy = RestartPolicy(restart_policy.LONGEST_PAUSE_IN_DRAIN_S)
        for slot in self._slots:
            slot.end_pauses()

    def look_for_client(self, stream: Stream) -> None:
        """See `StreamCopy.look_for_client`."""
        self.slot(stream).look_for_client()

    def hang_up(self, stream: Stream) -> None:
        """See `StreamCopy.hang_up`."""
        self.slot(stream).hang_up()

    def give_up(self, stream: Stream) -> None:
        """See `StreamCopy.give_up`."""
        self.slot(stream).give_up()

    def is_worker_stuck(self, stream: Stream, for_s: float) -> bool:
        """See `StuckDetector.is_stuck`."""
        return self.stuck.is_stuck(self.slot(stream), for_s)

    def kill_stuck_worker(self, stream: Stream) -> None:
        """See `StuckDetector.kill`."""
        self.stuck.kill(self.slot(stream))

    def reopen(self) -> None:
        """See `LogReopener.reopen`."""
        self._reopener.reopen()

    def renew_files(self) -> None:
        """Rotate or replace every log file in k8s-file format. `reopen` then replaces the workers.

        Raises:
            OSError: ENOENT: the directory of a log file does not exist.
        """
        for stream in self.outputs:
            if stream.line_sink is not None:
                stream.line_sink.renew_file()

    def serve_packets(self, line_sinks: dict[str, Sink]) -> PacketClients:
        """Return the owner of SEQPACKET clients, which the first call makes.

        `line_sinks`: the sinks of all streams, borrowed; those of branches are added to it.
        """
        if self.packet_clients is None:
            from supervisor.io.attach.packet_clients import (
                PacketClients,  # only conmon's front end has such clients
            )

            clients = PacketClients(self._context.loop, self._context.log, self, line_sinks)
            self._context.before_first_byte = clients.accept_pending
            self.packet_clients = clients
        return self.packet_clients

    def changed(self) -> None:
        """Tell the owner that the published fd store is out of date."""
        self._context.on_change()

    def attach(self, setting: str, fifo: str) -> None:
        """Copy the stream of this setting to the reader of `fifo` from now on."""
        live = [slot for slot in self._slots if slot.stream.is_live_output]
        slot = next((each for each in live if each.stream.setting == setting), None)
        if self.attach_clients.add(slot.stream if slot else None, fifo) and slot is not None:
            self._context.on_change()
            slot.replace()

    def close_read_fifos(self) -> None:
        """Close the fifo of each closed output whose client is there."""
        for stream in self.outputs:
            stream.close_fifo_if_read()

    def _on_client_left(self, stream: Stream) -> None:
        self._context.on_change()
        if stream.is_live_output:
            self.slot(stream).replace()

    def _on_stream_closed(self, _stream: Stream) -> None:
        self._context.on_change()
        self._on_stream_over()

    def stop(self) -> None:
        """Kill every worker, which loses no byte. The caller waits until `has_workers` is false."""
        self._context.is_closing = True
        self._reopener.stop()
        for slot in self._slots:
            slot.stop()

    def close(self) -> None:
        """Close every descriptor. The clients read end of file."""
        self.attach_clients.close()
        if self.packet_clients is not None:
            self.packet_clients.close()
        for slot in self._slots:
            slot.stream.close()
        for each in self._context.leftover_workers:
            each.close()
        self._counters.close()

    # Handing over.

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return what the next supervisor needs."""
        return {
            "counters": fd_writer.add(self._counters.fd),
            "streams": [slot.snapshot(fd_writer) for slot in self._slots],
            "stream_log": self._stream_log.snapshot(),
            "attach_clients": self.attach_clients.snapshot(fd_writer),
            "is_to_reopen": self._reopener.is_pending,
            "packet_clients": self.packet_clients and self.packet_clients.snapshot(fd_writer),
        }

    @property
    def is_settled(self) -> bool:
        """Whether `snapshot` may be taken now with the workers staying alive."""
        return not self._context.leftover_workers and all(slot.is_settled for slot in self._slots)

    def restore_stream(
        self, stream: Stream, packed: Mapping[str, Any], report_rfd: fds.Fd, *, is_parent: bool
    ) -> None:
        """Own a stream of an earlier supervisor, and its worker, if it has one.

        Without `is_parent` the worker is no child of this process. The caller then calls `renew`.
        """
        slot = StreamCopy(self._context, stream, packed["number"])
        self._slots.append(slot)
        slot.restore(packed, report_rfd, is_parent=is_parent)

    def restore(self, packed: Mapping[str, Any]) -> None:
        """Restore the rest of a snapshot. Called after `restore_stream` for each stream."""
        self._stream_log.restore(packed["stream_log"])
        self._reopener.is_pending = packed["is_to_reopen"]

    def renew(self, predecessors: Sequence[fds.Fd] = ()) -> None:
        """Replace each stream's worker by a worker of this supervisor's code.

        `predecessors`: pidfds, owned, of workers that are not children of this process. They get
        SIGKILL.
        """
        # First, because each worker that is forked below waits for their exit.
        leftover = self._context.leftover_workers
        leftover.extend(predecessors)
        for each in predecessors:
            self._context.loop.watch(each.fileno(), partial(self._on_leftover_gone, each))
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(each.fileno(), signal.SIGKILL)
        if self._reopener.is_pending:
            self._reopener.reopen_now()
        for slot in self._slots:
            slot.renew()

    def _on_leftover_gone(self, pidfd: fds.Fd) -> None:
        self._context.loop.forget(pidfd.fileno())
        self._context.leftover_workers.remove(pidfd)
        pidfd.close()
