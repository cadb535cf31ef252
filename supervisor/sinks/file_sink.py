"""A log file with rotation, `file:` and `cri:`, shared by the streams that name it."""

from __future__ import annotations

import os
import stat

from supervisor.linux import fds
from supervisor.linux.errors import MachineError, ShimError, UntrustedError, UsageError, reason
from supervisor.sinks.sink import Drops, buffer_bytes_of, drops_of
from supervisor.sinks.spec import SinkKind
from supervisor.state import trust
from workers.common.records import replace
from workers.sinks import log_output, rotation
from workers.sinks.cri_format import CriFormat, PlainFormat
from workers.sinks.log_file import LogFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from supervisor.sinks.sink import Sink
    from supervisor.sinks.spec import SinkSpec
    from supervisor.state.fd_store import FdWriter
    from workers.copy.route import Route
    from workers.lines.buffer import LineBuffer
    from workers.process.context import WorkerContext
    from workers.sinks.log_file import Format

_PIECE_BYTES = 32 << 10
"""The longest line that a rotation never divides between two files."""

_SMALL_FILE_BYTES, _SMALL_PIECE_BYTES = 64 << 10, 8 << 10
"""With a smaller `max-size` a k8s-file has pieces of conmon's size, which fit into 10 kB."""


def is_same_file(sink: SinkSpec, other: SinkSpec) -> bool:
    """Return whether two settings name the same log file.

    Raises:
        UsageError: They name the same file and differ in an option.
    """
    if not other.path or os.path.realpath(sink.path) != os.path.realpath(other.path):
        return False
    if replace(sink, path="") != replace(other, path=""):
        raise UsageError(f"{sink.path}: stdout and stderr ask for different log files in it")
    return True


def open_log(names: list[str], sink: SinkSpec, kept: tuple[int, ...]) -> dict[str, Sink]:
    """Open the log file that the streams `names` share.

    Args:
        names: The streams: "stdout", "stderr".
        sink: Their setting.
        kept: Descriptors of an earlier supervisor, owned; with them nothing is opened.

    Returns:
        A sink for each stream. Any of them closes the shared file; a second close does nothing.

    Raises:
        ShimError: The directory cannot be opened or is not trusted; EMFILE, ENOMEM.
    """
    # Only the directory is opened, so that a symbolic link in the file's place is never followed.
    # A path of conmon's command line may be a link, and may be in any directory.
    is_chosen = sink.kind is SinkKind.K8S_FILE
    path = os.path.realpath(sink.path) if is_chosen else sink.path
    directory_path, file_name = os.path.split(path)
    open_directory = _open_directory if is_chosen else trust.open_directory
    try:
        directory = fds.Fd(kept[0]) if kept else open_directory(directory_path)
    except UntrustedError as error:
        raise ShimError(f"open {directory_path}: {error}") from error
    except OSError as error:
        raise ShimError(f"open {directory_path}: {reason(error)}") from error
    try:
        log = LogFile(
            directory.fileno(),
            file_name,
            {name: _format(name, sink) for name in names},
            max_bytes=sink.max_bytes,
            keep=sink.keep,
            policy=sink.policy,
            buffer_bytes=buffer_bytes_of(sink),
            total_max_bytes=sink.total_bytes,
            is_synced=sink.is_synced,
            is_any_file=is_chosen,
            inherited=kept[1:],
        )
    except OSError as error:  # EMFILE, ENOMEM
        directory.close()
        raise MachineError(f"shared memory for {sink.path}: {reason(error)}") from error
    log_directory = _LogDirectory(log, directory, directory_path, is_chosen=is_chosen)
    return {name: _LogSink(log_directory, name) for name in names}


def _format(name: str, sink: SinkSpec) -> Format:
    if sink.kind is SinkKind.FILE:
        return PlainFormat(_PIECE_BYTES)
    if sink.kind is SinkKind.CRI:
        return CriFormat(name)
    is_small = 0 < sink.max_bytes < _SMALL_FILE_BYTES
    limit_bytes = _SMALL_PIECE_BYTES if is_small else CriFormat(name).limit_bytes
    return CriFormat(name, limit_bytes, is_local=True)


def _open_directory(path: str) -> fds.Fd:
    return fds.Fd(os.open(path or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))


def _check_file(name: str, dir_fd: int, path: str) -> None:
    try:
        attributes = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:  # a worker creates it
        return
    if not stat.S_ISREG(attributes.st_mode):
        raise UntrustedError(f"{path}/{name}: not a regular file")
    if attributes.st_nlink > 1:
        raise UntrustedError(
            f"{path}/{name}: not trusted: the file has another name, too (a hard link)"
        )


class _LogDirectory:
    """A log file and its directory, shared by all streams that name it."""

    def __init__(self, log: LogFile, directory: fds.Fd, path: str, *, is_chosen: bool) -> None:
        self.log = log
        self._is_chosen = is_chosen
        self._directory = directory
        self._path = path

    def reopen(self) -> None:
        """Open the directory again by its path, which may lead to another directory now.

        Raises:
            OSError: The directory does not exist.
            UntrustedError: The directory or the file in it is not trusted, see `trust`.
        """
        if self._is_chosen:
            self._take(_open_directory(self._path))
            return
        fresh = trust.open_directory(self._path)
        try:
            _check_file(self.log.name, fresh.fileno(), self._path)
        except UntrustedError:
            fresh.close()
            raise
        self._take(fresh)

    def renew_file(self) -> None:
        """Rotate the file, or replace it by an empty file of its name: conmon's `ctl`, type 2.

        An engine that has renamed the file waits for the new one. An empty file is not replaced,
        because each of the streams that share the file calls this.

        Raises:
            OSError: The directory does not exist.
        """
        if not self._is_chosen:
            return
        dir_fd, name = self._directory.fileno(), self.log.name
        try:
            attributes = os.stat(name, dir_fd=dir_fd)
            if not stat.S_ISREG(attributes.st_mode) or attributes.st_size == 0:
                return
            if self.log.keep:
                rotation.rotate(dir_fd, name, self.log.keep)
        except FileNotFoundError:
            pass  # it was renamed already
        rotation.replace(dir_fd, name)

    def _take(self, fresh: fds.Fd) -> None:
        self._directory.close()
        self._directory = fresh
        self.log.dir_fd = fresh.fileno()

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        return {"fds": [fd_writer.add(fd) for fd in self.log.fds]}

    def close(self) -> None:
        self.log.close()
        self._directory.close()


class _LogSink:
    """A stream of a log file."""

    is_file = True

    def __init__(self, log_directory: _LogDirectory, stream: str) -> None:
        self._log_directory = log_directory
        self._stream = stream

    @property
    def _buffer(self) -> LineBuffer:
        return self._log_directory.log.buffers[self._log_directory.log.streams.index(self._stream)]

    @property
    def policy(self) -> str:
        return self._buffer.policy

    def drops(self) -> Drops:
        return drops_of(self._buffer)

    @property
    def held_bytes(self) -> int:
        return self._buffer.room_bytes

    @property
    def is_deleted(self) -> bool:
        fd = self._log_directory.log.fd_slot.peek()
        if fd is None:
            return False
        try:
            return os.fstat(fd).st_nlink == 0
        finally:
            os.close(fd)

    def has_room(self, _sink_fd: int) -> bool:
        return True

    def work(self, context: WorkerContext, route: Route) -> None:
        log_output.work(context, route, self._log_directory.log, self._stream)

    def reopen(self) -> None:
        self._log_directory.reopen()  # each worker opens the file itself

    def renew_file(self) -> None:
        """See `_LogDirectory.renew_file`."""
        self._log_directory.renew_file()

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        return self._log_directory.snapshot(fd_writer)

    def close(self) -> None:
        self._log_directory.close()
