"""Sinks that are more than a descriptor, log files and the journal: the parent's side.

Imported only when a setting asks for one: what they need takes 35 ms to import.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from typing import NamedTuple

from supervisor.linux import fds
from supervisor.linux.errors import ShimError, UntrustedError, UsageError, reason
from supervisor.oci.bundle import read_annotations
from supervisor.sinks.spec import SinkKind
from supervisor.state import trust
from workers.common.records import asdict, replace
from workers.journal import native_output, stream_output
from workers.journal.fields import PRIORITIES, Origin, field_name
from workers.journal.native import Journal
from workers.journal.socket import JOURNAL_SOCKET
from workers.journal.stream import STREAM_SOCKET, JournalStream, header, unit_of
from workers.lines.buffer import BLOCK
from workers.process.counters import MOST_BYTES
from workers.sinks import buffered_fd, log_output
from workers.sinks.buffered_fd import Buffered
from workers.sinks.cri_format import CriFormat, PlainFormat
from workers.sinks.log_file import LogFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Protocol

    from supervisor.sinks.spec import SinkSpec
    from supervisor.state.fd_store import FdReader, FdWriter
    from workers.copy.splice import Route
    from workers.lines.buffer import LineBuffer
    from workers.process.context import WorkerContext

    class Sink(Protocol):
        """What the workers of one stream write to, one after the other."""

        @property
        def policy(self) -> str:
            """What becomes of what it does not take: "block", "drop-new", "drop-old"."""

        def drops(self) -> Drops:
            """Return what was dropped so far."""

        @property
        def held_bytes(self) -> int:
            """What a line may have that is neither in the container's pipe nor in the sink."""

        @property
        def is_file(self) -> bool:
            """Whether a worker begins by opening the file of a name."""

        def has_room(self, sink_fd: int) -> bool:
            """Say whether a worker that writes now would not have to wait."""

        def work(self, context: WorkerContext, route: Route) -> None:
            """Be a worker, to its report; in the child."""

        def renew(self) -> None:
            """Make the sink fit for use again after a worker has reported an error.

            Raises:
                OSError: It is not there yet.
                UntrustedError: What is there by its name is not believed.
            """

        def pack(self, fd_writer: FdWriter) -> dict[str, Any]:
            """Return what `open_outlets` of a successor is given for this stream."""

        def close(self) -> None:
            """Close everything; a second call does nothing."""


_PIECE_BYTES = 32 << 10
"""Of a longer line, pieces may come into different files of a rotation."""

_LONGEST_ANNOTATION = 1024
"""Characters: each record has it."""


class Came(NamedTuple):
    """What was packed of each stream's outlet, and the descriptors that belong to it."""

    packed: Mapping[str, dict[str, Any]]
    contents: FdReader


class Drops(NamedTuple):
    """What a policy has cost so far: bytes, and ends of lines among them."""

    bytes: int
    lines: int


def open_outlets(
    wanted: Mapping[str, SinkSpec],
    container_id: str,
    bundle: str,
    *,
    is_console: bool,
    came: Came | None = None,
) -> dict[str, Sink]:
    """Open what is wanted of each stream, "stdout" and "stderr"; the caller owns the outlets.

    Streams with the same log file share it. `came`: what an earlier supervisor has packed of the
    same outlets; nothing is opened then.

    Raises:
        BundleError: Annotations are asked for, and config.json cannot be read.
        ShimError: A file cannot be opened; there is no journald.
        UsageError: Two different sinks for one file.
    """
    opened: dict[str, Sink] = {}
    who = Origin(container_id, name=container_id, epoch=os.urandom(16).hex())
    try:
        for name, sink in wanted.items():
            if name in opened:
                continue
            left = {} if came is None else came.packed[name]
            kept = () if came is None else tuple(came.contents.take(n).take() for n in left["fds"])
            if sink.kind is SinkKind.JOURNAL:
                origin = _unpacked(left["origin"]) if left else _described(who, sink, bundle)
                opened[name] = _open_journal(name, sink, origin, kept, is_console=is_console)
            elif sink.kind is SinkKind.JOURNAL_STREAM:
                opened[name] = _open_journal_stream(name, sink, container_id, kept)
            elif sink.is_descriptor:
                opened[name] = _BufferedSink(_make_buffered(name, sink, kept))
            else:
                names = [name for name, other in wanted.items() if _is_same_file(sink, other)]
                opened.update(_open_log(names, sink, kept))
    except BaseException:
        for outlet in opened.values():
            outlet.close()
        raise
    return opened


def _is_same_file(sink: SinkSpec, other: SinkSpec) -> bool:
    if not other.path or os.path.realpath(sink.path) != os.path.realpath(other.path):
        return False
    if replace(sink, path="") != replace(other, path=""):
        raise UsageError(f"{sink.path}: stdout and stderr ask for different log files in it")
    return True


def _open_log(names: list[str], sink: SinkSpec, kept: tuple[int, ...]) -> dict[str, Sink]:
    # Of the directory only: a link in the place of the file is not followed, now or later.
    directory_path, file_name = os.path.split(sink.path)
    try:
        directory = fds.Fd(kept[0]) if kept else trust.open_directory(directory_path)
    except UntrustedError as error:
        raise ShimError(f"open {directory_path}: {error}") from error
    except OSError as error:
        raise ShimError(f"open {directory_path}: {reason(error)}") from error
    is_cri = sink.kind is SinkKind.CRI
    try:
        log = LogFile(
            directory.fileno(),
            file_name,
            {name: CriFormat(name) if is_cri else PlainFormat(_PIECE_BYTES) for name in names},
            max_bytes=sink.max_bytes,
            keep=sink.keep,
            policy=sink.policy,
            buffer_bytes=_buffer_bytes(sink),
            kept=kept[1:],
        )
    except OSError as error:  # EMFILE, ENOMEM
        directory.close()
        raise ShimError(f"shared memory for {sink.path}: {reason(error)}") from error
    site = _LogSite(log, directory, directory_path)
    return {name: _LogSink(site, name) for name in names}


def _described(who: Origin, sink: SinkSpec, bundle: str) -> Origin:
    extra = _annotation_fields(bundle, sink.annotations) if sink.annotations else ()
    return replace(who, tag=sink.tag, extra=extra)


def _unpacked(origin: dict[str, Any]) -> Origin:
    extra = tuple((name, value) for name, value in origin["extra"])
    return Origin(**{**origin, "extra": extra})


def _open_journal(
    stream: str, sink: SinkSpec, origin: Origin, kept: tuple[int, ...], *, is_console: bool
) -> Sink:
    try:
        journal = Journal(
            origin,
            stream,
            _priority(stream, sink),
            is_console=is_console,
            is_json=sink.is_json,
            is_joined=sink.is_joined,
            limit_bytes=sink.max_line_bytes,
            policy=sink.policy,
            buffer_bytes=_buffer_bytes(sink),
            kept=kept,
        )
    except OSError as error:
        raise ShimError(f"connect to {JOURNAL_SOCKET}: {reason(error)}") from error
    return _JournalSink(journal, origin)


def _annotation_fields(bundle: str, patterns: Iterable[str]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (field_name(name, "ANNOTATION_"), value[:_LONGEST_ANNOTATION])
        for name, value in read_annotations(bundle).items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    )


def _open_journal_stream(
    stream: str, sink: SinkSpec, container_id: str, kept: tuple[int, ...]
) -> Sink:
    try:
        with open("/proc/self/cgroup", "rb") as cgroups:
            unit = unit_of(cgroups.read())
    except OSError as error:
        raise ShimError(f"open /proc/self/cgroup: {reason(error)}") from error
    first = header(sink.tag or container_id, unit, _priority(stream, sink))
    is_patient = sink.policy == BLOCK
    try:
        to = JournalStream(first, is_patient=is_patient, fd=kept[0] if kept else -1)
    except OSError as error:
        raise ShimError(f"connect to {STREAM_SOCKET}: {reason(error)}") from error
    try:
        buffered = None if is_patient else _make_buffered(stream, sink, kept[1:])
    except ShimError:
        to.close()
        raise
    return _JournalStreamSink(to, buffered)


def _make_buffered(stream: str, sink: SinkSpec, kept: tuple[int, ...]) -> Buffered:
    try:
        return Buffered(stream, sink.policy, sink.buffer_bytes, kept)
    except OSError as error:  # EMFILE, ENOMEM
        raise ShimError(f"a buffer for {sink}: {reason(error)}") from error


def _buffer_bytes(sink: SinkSpec) -> int:
    return 0 if sink.policy == BLOCK else sink.buffer_bytes


def _drops(buffer: LineBuffer) -> Drops:
    state = buffer.read()
    return Drops(min(state.dropped_bytes, MOST_BYTES), min(state.dropped_lines, MOST_BYTES))


def _priority(stream: str, sink: SinkSpec) -> int:
    return PRIORITIES[stream] if sink.priority is None else sink.priority


def _check_file(name: str, dir_fd: int, path: str) -> None:
    try:
        attributes = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:  # it will be made
        return
    if not stat.S_ISREG(attributes.st_mode):
        raise UntrustedError(f"{path}/{name}: not a regular file")
    if attributes.st_nlink > 1:
        raise UntrustedError(f"{path}/{name}: not trusted: it has another name (a hard link)")


class _LogSite:
    """A log file and its directory, owned by all its streams together."""

    def __init__(self, log: LogFile, directory: fds.Fd, path: str) -> None:
        self.log = log
        self._directory = directory
        self._path = path

    def renew(self) -> None:
        """Go by the directory's name, which may be another directory's by now.

        Raises:
            OSError: It is not there.
            UntrustedError: Others could have put it there, or the file in it; see `trust`.
        """
        fresh = trust.open_directory(self._path)
        try:
            _check_file(self.log.name, fresh.fileno(), self._path)
        except UntrustedError:
            fresh.close()
            raise
        self._directory.close()
        self._directory = fresh
        self.log.dir_fd = fresh.fileno()

    def pack(self, fd_writer: FdWriter) -> dict[str, Any]:
        return {"fds": [fd_writer.add(fd) for fd in self.log.fds]}

    def close(self) -> None:
        self.log.close()
        self._directory.close()


class _LogSink:
    """One stream of a log file."""

    is_file = True

    def __init__(self, site: _LogSite, stream: str) -> None:
        self._site = site
        self._stream = stream

    @property
    def _buffer(self) -> LineBuffer:
        return self._site.log.buffers[self._site.log.streams.index(self._stream)]

    @property
    def policy(self) -> str:
        return self._buffer.policy

    def drops(self) -> Drops:
        return _drops(self._buffer)

    @property
    def held_bytes(self) -> int:
        return self._buffer.room_bytes

    def has_room(self, _sink_fd: int) -> bool:
        return True

    def work(self, context: WorkerContext, route: Route) -> None:
        log_output.work(context, route, self._site.log, self._stream)

    def renew(self) -> None:
        self._site.renew()  # the file itself is opened anew by each worker

    def pack(self, fd_writer: FdWriter) -> dict[str, Any]:
        return self._site.pack(fd_writer)

    def close(self) -> None:
        self._site.close()


class _JournalSink:
    """One stream in the journal."""

    is_file = False

    def __init__(self, journal: Journal, origin: Origin) -> None:
        self._journal = journal
        self._origin = origin
        self._supervisor_pid = os.getpid()

    @property
    def policy(self) -> str:
        return self._journal.buffer.policy

    def drops(self) -> Drops:
        return _drops(self._journal.buffer)

    @property
    def held_bytes(self) -> int:
        return self._journal.buffer.room_bytes

    def has_room(self, _sink_fd: int) -> bool:
        return fds.is_writable(self._journal.socket.fileno())

    def work(self, context: WorkerContext, route: Route) -> None:
        native_output.work(context, route, self._journal, self._supervisor_pid)

    def renew(self) -> None:
        self._journal.reconnect()

    def pack(self, fd_writer: FdWriter) -> dict[str, Any]:
        return {
            "fds": [fd_writer.add(fd) for fd in self._journal.fds],
            "origin": asdict(self._origin),
        }

    def close(self) -> None:
        self._journal.close()


class _JournalStreamSink:
    """One stream in the journal, of which journald makes the records."""

    is_file = False

    def __init__(self, stream: JournalStream, buffered: Buffered | None) -> None:
        self._stream = stream
        self._buffered = buffered

    @property
    def policy(self) -> str:
        return BLOCK if self._buffered is None else self._buffered.buffer.policy

    def drops(self) -> Drops:
        return Drops(0, 0) if self._buffered is None else _drops(self._buffered.buffer)

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

    def renew(self) -> None:
        self._stream.reconnect()

    def pack(self, fd_writer: FdWriter) -> dict[str, Any]:
        more = () if self._buffered is None else self._buffered.fds
        return {"fds": [fd_writer.add(fd) for fd in (self._stream.socket.fileno(), *more)]}

    def close(self) -> None:
        self._stream.close()
        if self._buffered is not None:
            self._buffered.close()


class _BufferedSink:
    """What stands before a descriptor, so that the container need not wait for it."""

    is_file = False

    def __init__(self, buffered: Buffered) -> None:
        self._buffered = buffered

    @property
    def policy(self) -> str:
        return self._buffered.buffer.policy

    def drops(self) -> Drops:
        return _drops(self._buffered.buffer)

    @property
    def held_bytes(self) -> int:
        return self._buffered.buffer.room_bytes

    def has_room(self, sink_fd: int) -> bool:
        return fds.is_writable(sink_fd)

    def work(self, context: WorkerContext, route: Route) -> None:
        buffered_fd.work(context, route, self._buffered, route.sink_fd)

    def renew(self) -> None:
        pass  # the stream has the descriptor, which is as good as it was

    def pack(self, fd_writer: FdWriter) -> dict[str, Any]:
        return {"fds": [fd_writer.add(fd) for fd in self._buffered.fds]}

    def close(self) -> None:
        self._buffered.close()
