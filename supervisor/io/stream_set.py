"""All streams of one container and their workers, as the rest of the supervisor sees them.

`StreamCopy` has the workers of one stream, `restart_policy` decides what follows a failure.
"""

from __future__ import annotations

import contextlib
import os
import signal
from functools import partial

from supervisor.children import restart_policy
from supervisor.children.restart_policy import RestartPolicy
from supervisor.io.attach.branch import ATTACH_NAME, ATTACH_SUFFIX
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

    Many methods: it is all that the rest of the supervisor sees of this package, and
    most of them are one line.
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
        """Borrow loop, reaper, log and /dev/null.

        Args:
            loop: As everywhere.
            reaper: As everywhere.
            log: As everywhere.
            title: Prefix of the workers' process titles.
            null_fd: /dev/null, open for reading and writing.
            on_stream_over: Called when a stream was closed.
            on_change: Called when a stream has other descriptors than before.
            on_trouble: Called when a stream is worse or better off, see `trouble`.
            is_adoptable: Another supervisor can continue when this one is killed.
            counters: The shared memory of an earlier supervisor's counters; owned.
            dir_fd: The state directory, borrowed.
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
        """Take a stream; its worker is forked by `start`."""
        self._slots.append(StreamCopy(self._context, stream, len(self._slots)))
        if self.packet_clients is not None and not stream.name.endswith(ATTACH_SUFFIX):
            self.packet_clients.stream_added()

    @property
    def streams(self) -> list[Stream]:
        """All streams, in the order of their coming."""
        return [slot.stream for slot in self._slots]

    @property
    def outputs(self) -> list[Stream]:
        """The streams that run from the container."""
        return [stream for stream in self.streams if not stream.is_input]

    @property
    def trunks(self) -> list[Stream]:
        """The outputs that the container has itself, and that are not over."""
        return [
            stream
            for stream in self.outputs
            if not (stream.name.endswith(ATTACH_SUFFIX) or stream.is_closed)
        ]

    def branch_of(self, trunk: Stream) -> Stream | None:
        """Return the stream that the attach clients of an output hear, if it is a branch."""
        name = trunk.name + ATTACH_SUFFIX
        return next((stream for stream in self.streams if stream.name == name), None)

    @property
    def has_output_begun(self) -> bool:
        """Whether a byte of an output was taken."""
        return any(
            self._counters.has_begun(slot.number)
            for slot in self._slots
            if not slot.stream.is_input
        )

    def null_stream(self, name: str, source: fds.Fd, sink: Sink) -> Stream:
        """Add the stream of a branch, whose descriptor of a sink is /dev/null; return it."""
        null = fds.Fd(os.dup(self._context.null_fd))
        stream = Stream(name, source, null, sink_name=ATTACH_NAME, line_sink=sink, setting=name)
        self.add(stream)
        return stream

    def slot(self, stream: Stream) -> StreamCopy:
        """Return the slot of a stream."""
        return next(slot for slot in self._slots if slot.stream is stream)

    @property
    def raw_terminal(self) -> RawTerminal | None:
        """The person's terminal, which the worker of stdin gives back if we die."""
        return self._context.raw_terminal

    @raw_terminal.setter
    def raw_terminal(self, terminal: RawTerminal | None) -> None:
        self._context.raw_terminal = terminal

    @property
    def has_workers(self) -> bool:
        """Whether a worker has still to be reaped."""
        return any(slot.has_processes for slot in self._slots)

    @property
    def counters_fd(self) -> int:
        """The memory that each worker has mapped, from its fork to its end; borrowed."""
        return self._counters.fd

    def copied_bytes(self, stream: Stream) -> int:
        """Return what the stream has copied so far."""
        return self.slot(stream).copied_bytes

    def in_flight_bytes(self, stream: Stream) -> int:
        """Return what its worker has taken and not delivered."""
        return self.slot(stream).in_flight_bytes

    def drops(self, stream: Stream) -> Drops:
        """Return what a policy, or giving the stream up, has cost so far."""
        return self.slot(stream).drops

    def deaths(self, stream: Stream) -> int:
        """Return how many workers of the stream have died."""
        return self.slot(stream).history.deaths

    def trouble(self, stream: Stream) -> str:
        """Return why nothing of the stream moves, or only to an old file; empty if all is well."""
        return self.slot(stream).current_trouble or self._stream_log.refusal(stream)

    def unread_bytes(self, stream: Stream) -> int:
        """Return what of `copied_bytes` would be gone with us: it lies in a fifo without a client.

        0 while the copy goes on: we have the fifo open for reading ourselves.
        """
        return stream.unread_bytes() if stream.is_closed else 0

    # The workers.

    def start(self, *, but: Stream | None = None) -> None:
        """Have a worker for each stream except `but` from its first byte on."""
        for slot in self._slots:
            if slot.stream is not but:
                slot.start()

    def end_pauses(self) -> None:
        """End every pause now, and keep later ones short: the container is dead, and waits."""
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
        """Reopen every log file whose name is another file's by now."""
        self._reopener.reopen()

    def renew_files(self) -> None:
        """Rotate or replace every k8s-file now; `reopen` has the workers open the new ones.

        Raises:
            OSError: A directory does not exist.
        """
        for stream in self.outputs:
            if stream.line_sink is not None:
                stream.line_sink.renew_file()

    def serve_packets(self, line_sinks: dict[str, Sink]) -> PacketClients:
        """Return the owner of SEQPACKET clients; `line_sinks` has the sinks of all streams."""
        if self.packet_clients is None:
            from supervisor.io.attach.packet_clients import (
                PacketClients,  # few front ends have them
            )

            clients = PacketClients(self._context.loop, self._context.log, self, line_sinks)
            self._context.before_first_byte = clients.accept_pending
            self.packet_clients = clients
        return self.packet_clients

    def changed(self) -> None:
        """Tell that the next supervisor would miss something."""
        self._context.on_change()

    def attach(self, setting: str, fifo: str) -> None:
        """Let the reader of `fifo` hear the stream of this setting from now on."""
        live = [slot for slot in self._slots if slot.stream.is_live_output]
        slot = next((each for each in live if each.stream.setting == setting), None)
        if self.attach_clients.add(slot.stream if slot else None, fifo) and slot is not None:
            self._context.on_change()
            slot.replace()

    def _on_client_left(self, stream: Stream) -> None:
        self._context.on_change()
        if stream.is_live_output:
            self.slot(stream).replace()

    def _on_stream_closed(self, _stream: Stream) -> None:
        self._context.on_change()
        self._on_stream_over()

    def stop(self) -> None:
        """Kill every worker; harmless to the bytes. Wait until `has_workers` is over."""
        self._context.is_closing = True
        self._reopener.stop()
        for slot in self._slots:
            slot.stop()

    def close(self) -> None:
        """Close every descriptor: the clients see end of file."""
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
        """Whether this is a moment for `snapshot`, if the workers are to live on."""
        return not self._context.leftover_workers and all(slot.is_settled for slot in self._slots)

    def restore_stream(
        self, stream: Stream, packed: Mapping[str, Any], report_rfd: fds.Fd, *, is_parent: bool
    ) -> None:
        """Take a stream of an earlier supervisor, and its worker, if it has one.

        Without `is_parent` the worker is no child of this process, and `renew` has to follow.
        """
        slot = StreamCopy(self._context, stream, packed["number"])
        self._slots.append(slot)
        slot.restore(packed, report_rfd, is_parent=is_parent)

    def restore(self, packed: Mapping[str, Any]) -> None:
        """Take the rest of what `snapshot` has returned, behind the streams."""
        self._stream_log.restore(packed["stream_log"])
        self._reopener.is_pending = packed["is_to_reopen"]

    def renew(self, predecessors: Sequence[fds.Fd] = ()) -> None:
        """Have a worker of this supervisor's own code for each stream.

        `predecessors`: pidfds of workers that are not our children. They are killed.
        """
        # First: each worker that is forked from here on waits for their end.
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
