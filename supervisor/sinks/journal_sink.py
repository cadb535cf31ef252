"""The sinks `journal` (native records) and `journal-stream` (lines)."""

from __future__ import annotations

import fnmatch
import os

from supervisor.linux import fds
from supervisor.linux.errors import ShimError, reason
from supervisor.oci.bundle import read_annotations
from supervisor.sinks.buffered_sink import make_buffered
from supervisor.sinks.sink import Drops, buffer_bytes_of, drops_of
from workers.common.policy import BLOCK
from workers.common.records import asdict
from workers.journal import native_output, stream_output
from workers.journal.fields import PRIORITIES, Origin, field_name
from workers.journal.native import Journal
from workers.journal.socket import JOURNAL_SOCKET
from workers.journal.stream import STREAM_SOCKET, JournalStream, header, unit_of
from workers.sinks import buffered_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from supervisor.sinks.sink import Sink
    from supervisor.sinks.spec import SinkSpec
    from supervisor.state.fd_store import FdWriter
    from workers.copy.route import Route
    from workers.process.context import WorkerContext
    from workers.sinks.buffered_fd import Buffered

_LONGEST_ANNOTATION = 1024
"""Limit for the value of an annotation, in characters: each record contains it."""


def open_journal(
    stream: str, sink: SinkSpec, origin: Origin, kept: tuple[int, ...], *, is_console: bool
) -> Sink:
    """Connect a stream to journald's native socket.

    Args:
        stream: "stdout", "stderr" or "console".
        sink: The setting.
        origin: The fields of each record.
        kept: Descriptors of an earlier supervisor, owned; with them nothing is opened.
        is_console: The stream is a console: carriage returns are removed.

    Raises:
        ShimError: journald does not run; EMFILE, ENOMEM.
    """
    try:
        journal = Journal(
            origin,
            stream,
            _priority(stream, sink),
            is_console=is_console,
            is_json=sink.is_json,
            is_joined=sink.is_joined,
            marks_partial=sink.marks_partial,
            reads_priority=sink.reads_priority,
            limit_bytes=sink.max_line_bytes,
            policy=sink.policy,
            buffer_bytes=buffer_bytes_of(sink),
            inherited=kept,
        )
    except OSError as error:
        raise ShimError(f"connect to {JOURNAL_SOCKET}: {reason(error)}") from error
    return _JournalSink(journal, origin)


def open_journal_stream(
    stream: str, sink: SinkSpec, container_id: str, kept: tuple[int, ...]
) -> Sink:
    """Connect a stream to journald's stream socket. Arguments and errors as `open_journal`."""
    try:
        with open("/proc/self/cgroup", "rb") as cgroups:
            unit = unit_of(cgroups.read())
    except OSError as error:
        raise ShimError(f"open /proc/self/cgroup: {reason(error)}") from error
    first = header(sink.tag or container_id, unit, _priority(stream, sink))
    is_blocking = sink.policy == BLOCK
    try:
        to = JournalStream(first, is_blocking=is_blocking, fd=kept[0] if kept else -1)
    except OSError as error:
        raise ShimError(f"connect to {STREAM_SOCKET}: {reason(error)}") from error
    try:
        buffered = None if is_blocking else make_buffered(stream, sink, kept[1:])
    except ShimError:
        to.close()
        raise
    return _JournalStreamSink(to, buffered)


def origin_of(container_id: str, epoch: str, sink: SinkSpec, bundle: str) -> Origin:
    """Return the origin of a stream: the fields that each of its records has.

    `epoch`: 32 hexadecimal digits, the same for the streams of one start.

    Raises:
        BundleError: The setting has annotations, and config.json cannot be read.
    """
    extra = _annotation_fields(bundle, sink.annotations) if sink.annotations else ()
    name = sink.name or container_id
    return Origin(container_id, name=name, epoch=epoch, tag=sink.tag, extra=(*extra, *sink.labels))


def unpacked(origin: dict[str, Any]) -> Origin:
    """Return the origin from a snapshot. The tuples of tuples became lists in JSON."""
    extra = tuple((name, value) for name, value in origin["extra"])
    return Origin(**{**origin, "extra": extra})


def _annotation_fields(bundle: str, patterns: Iterable[str]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (field_name(name, "ANNOTATION_"), value[:_LONGEST_ANNOTATION])
        for name, value in read_annotations(bundle).items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    )


def _priority(stream: str, sink: SinkSpec) -> int:
    return PRIORITIES[stream] if sink.priority is None else sink.priority


class _JournalSink:
    """A stream in the journal as native records."""

    is_file = False
    is_deleted = False

    def __init__(self, journal: Journal, origin: Origin) -> None:
        self._journal = journal
        self._origin = origin
        self._supervisor_pid = os.getpid()

    @property
    def policy(self) -> str:
        return self._journal.buffer.policy

    def drops(self) -> Drops:
        return drops_of(self._journal.buffer)

    @property
    def held_bytes(self) -> int:
        return self._journal.buffer.room_bytes

    def has_room(self, _sink_fd: int) -> bool:
        return fds.is_writable(self._journal.socket.fileno())

    def work(self, context: WorkerContext, route: Route) -> None:
        native_output.work(context, route, self._journal, self._supervisor_pid)

    def reopen(self) -> None:
        self._journal.reconnect()

    def renew_file(self) -> None:
        pass

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        return {
            "fds": [fd_writer.add(fd) for fd in self._journal.fds],
            "origin": asdict(self._origin),
        }

    def close(self) -> None:
        self._journal.close()


class _JournalStreamSink:
    """A stream in the journal as lines, of which journald makes records."""

    is_file = False
    is_deleted = False

    def __init__(self, stream: JournalStream, buffered: Buffered | None) -> None:
        self._stream = stream
        self._buffered = buffered

    @property
    def policy(self) -> str:
        return BLOCK if self._buffered is None else self._buffered.buffer.policy

    def drops(self) -> Drops:
        return Drops(0, 0) if self._buffered is None else drops_of(self._buffered.buffer)

    @property
    def held_bytes(self) -> int:
        return 0 if self._buffered is None else self._buffered.buffer.room_bytes

    def has_room(self, _sink_fd: int) -> bool:
        return fds.is_writable(self._stream.socket.fileno())

    def work(self, context: WorkerContext, route: Route) -> None:
        if self._buffered is None:
            stream_output.work(context, route, self._stream)
        else:
            socket_fd = self._stream.socket.fileno()
            buffered_fd.work(context, route, self._buffered, socket_fd, lingers=True)

    def reopen(self) -> None:
        self._stream.reconnect()

    def renew_file(self) -> None:
        pass

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        more = () if self._buffered is None else self._buffered.fds
        return {"fds": [fd_writer.add(fd) for fd in (self._stream.socket.fileno(), *more)]}

    def close(self) -> None:
        self._stream.close()
        if self._buffered is not None:
            self._buffered.close()
