"""Opens the client's side of the streams, which process.json names.

stdin comes first, because it never waits: a client that opens its stdin before its stdout then does
not block in open(2). stdout and stderr follow, each fifo as soon as it has a reader. One limit of
15 s covers them all, as in the 2016 shim. After that the client may unlink the names.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from functools import partial

from supervisor.children.reader_wait import ReaderWait
from supervisor.io.client_stdio import Stdio, second_sinks
from supervisor.linux import fds
from supervisor.linux.errors import ShimError, UsageError, reason
from supervisor.sinks.spec import SinkKind, SinkSpec, parse_sink
from supervisor.state.trusted_file import open_log_file, open_typed
from workers.copy import fifo_wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from supervisor.linux.event_loop import Loop
    from supervisor.linux.reaper import Reaper
    from supervisor.oci.process_json import ProcessConfig

READER_WAIT_S = 15.0

ATTACH, ATTACH_KEPT_OPEN = "attach", "attach,keep-open"
"""Settings of a stdin that attach clients write to, see `io.attach.packet_clients`. With the first,
end of file of one client's input closes stdin for all."""


class StdioOpener:
    """Opens the streams, one after the other, and calls back once."""

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        *,
        container_id: str,
        bundle: str,
        title: str,
        null_fd: int,
        dir_fd: int | None = None,
        is_typed: bool = False,
        reader_wait_s: float | None = READER_WAIT_S,
    ) -> None:
        """Borrow everything.

        `title` names the waiting child in ps(1). Relative paths start at `dir_fd`, the state
        directory. `is_typed`: a user typed the paths. They are walked like those of log files (see
        `supervisor.state.trust`), and a file is appended to. An engine names its own fifos: the
        2016 protocol opens them as they are, and writes a file from offset 0. `reader_wait_s`: the
        limit for all readers of fifos together; None for no limit.
        """
        self._loop = loop
        self._reaper = reaper
        self._container_id = container_id
        self._bundle = bundle
        self._title = title
        self._null_fd = null_fd
        self._dir_fd = dir_fd
        self._is_typed = is_typed
        self._reader_wait_s = reader_wait_s
        self._limit = loop.timer(self._give_up)
        self._stdio = Stdio()
        self._wanted: list[tuple[str, SinkSpec]] = []
        self._waiting: ReaderWait | None = None
        self._waits: list[ReaderWait] = []
        self._on_end: Callable[[Stdio | ShimError], None] = lambda _end: None

    def begin(
        self,
        record: ProcessConfig,
        on_end: Callable[[Stdio | ShimError], None],
        *,
        is_stdin_awaited: bool = False,
    ) -> None:
        """Open what `record` names. `on_end` gets the streams and owns them, or gets the error.

        `is_stdin_awaited`: a stdin fifo stays unopened until `Stdio.open_stdin`.
        """
        self._on_end = on_end
        if self._reader_wait_s is not None:
            self._limit.start(self._reader_wait_s)
        try:
            self._wanted = [("stdout", parse_sink(record.stdout))]
            if not record.terminal:
                self._wanted.append(("stderr", parse_sink(record.stderr)))
            self._open_stdin(record.stdin, is_awaited=is_stdin_awaited)
            self._open_line_sinks(second_sinks(record), is_console=record.terminal)
        except ShimError as error:
            self._fail(error)
        else:
            self._open_next()

    def cancel(self) -> None:
        """Stop waiting and close what is open. `on_end` is not called any more."""
        self._limit.cancel()
        if self._waiting is not None:
            self._waiting.end()
            self._waiting = None
        self._stdio.close()

    @property
    def is_idle(self) -> bool:
        """Whether every child that waited for a reader has been reaped."""
        return all(wait.is_reaped for wait in self._waits)

    def _open_stdin(self, path: str, *, is_awaited: bool) -> None:
        if path in ("", "null", os.devnull):
            return
        if path == "passthrough":
            self._stdio.stdin = _duplicate(0)
            return
        if path in (ATTACH, ATTACH_KEPT_OPEN):
            # No byte passes through it: closing it is how `close_stdin` ends the stream.
            self._stdio.stdin, self._stdio.stdin_closer = fds.pipe(mmap.PAGESIZE)
            return
        with_path = _open_path(path, self._dir_fd)
        if fds.is_fifo(with_path.fileno()):
            self._stdio.unopened_stdin = with_path
            if not is_awaited:
                self._open_stdin_fifo(path)
            return
        try:
            self._stdio.stdin = _reopen(with_path, path, os.O_RDONLY)
        finally:
            with_path.close()

    def _open_stdin_fifo(self, path: str) -> None:
        try:
            self._stdio.open_stdin()
        except OSError as error:
            raise ShimError(f"open {path}: {reason(error)}") from error

    def _open_line_sinks(self, second: Mapping[str, SinkSpec], *, is_console: bool) -> None:
        """Open all line sinks, which never wait for a reader."""
        wanted = {name: sink for name, sink in self._wanted if sink.has_line_sink} | dict(second)
        if not wanted:
            return
        from supervisor.sinks.open import open_sinks

        for _name, sink in self._wanted:
            _refuse_a_second_rule(sink, [other for _, other in self._wanted])
        self._wanted = [(name, sink) for name, sink in self._wanted if sink.is_descriptor]
        for name, sink in wanted.items():
            self._stdio.names[name] = str(sink)
            is_engines = sink.kind is SinkKind.K8S_FILE  # conmon's front end has opened it
            if not sink.is_descriptor and sink.path and not is_engines:
                # The workers open it later. An error in the path fails the start here.
                open_log_file(sink.path).close()
        if wanted.get("stdout") == wanted.get("stderr") and wanted["stdout"].kind is SinkKind.FILE:
            self._stdio.stderr_joins_stdout = True
            del wanted["stderr"]
        self._stdio.line_sinks = open_sinks(
            wanted, self._container_id, self._bundle, is_console=is_console
        )

    def _open_next(self) -> None:
        """Open the remaining sinks, until a fifo has no reader yet."""
        while self._wanted:
            name, sink = self._wanted.pop(0)
            try:
                is_open = self._open_sink(name, sink)
            except ShimError as error:
                self._fail(error)
                return
            if not is_open:
                return
        self._limit.cancel()
        if _is_same_file(self._stdio.sinks):
            self._stdio.stderr_joins_stdout = True
            self._stdio.sinks.pop("stderr").close()
            if "stderr" in self._stdio.line_sinks:
                self._stdio.line_sinks.pop("stderr").close()
        self._on_end(self._stdio)

    def _open_sink(self, name: str, sink: SinkSpec) -> bool:
        """Open a sink. Return False if a child waits for its reader now."""
        self._stdio.names[name] = str(sink)
        if sink.kind is SinkKind.NULL:
            return True
        if sink.kind is SinkKind.PASSTHROUGH:
            self._stdio.passthrough.add(name)
            self._stdio.sinks[name] = _duplicate({"stdout": 1, "stderr": 2}[name])
            return True
        if sink.kind is SinkKind.FILE:
            self._stdio.sinks[name] = open_log_file(sink.path)
            self._stdio.reopeners[name] = partial(open_log_file, sink.path)
            return True
        with_path = self._open_sink_path(sink.path)
        if not fds.is_fifo(with_path.fileno()):
            try:
                opened = _reopen(with_path, sink.path, os.O_WRONLY)
            finally:
                with_path.close()
            if self._is_typed and stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                os.lseek(opened.fileno(), 0, os.SEEK_END)
            self._stdio.sinks[name] = opened
            return True
        try:
            probe = _reopen(with_path, sink.path, os.O_WRONLY | os.O_NONBLOCK)
        except _NoReaderError:
            self._wait_for_reader(name, sink.path, with_path)
            return False
        except ShimError:
            with_path.close()
            raise
        # The probe is closed last: a reader must not read end of file in between.
        try:
            self._take_fifo(name, sink.path, with_path)
        finally:
            with_path.close()
            probe.close()
        return True

    def _open_sink_path(self, path: str) -> fds.Fd:
        return open_typed(path) if self._is_typed else _open_path(path, self._dir_fd)

    def _take_fifo(self, name: str, path: str, with_path: fds.Fd) -> None:
        sink_fd = _reopen(with_path, path, os.O_RDWR)
        fds.grow_pipe(sink_fd.fileno())
        self._stdio.sinks[name] = sink_fd

    def _give_up(self) -> None:
        path = self._waiting.path if self._waiting is not None else "stdio"
        self._fail(
            ShimError(
                f"containerd-shim: opening {path} failed: context deadline exceeded: "
                f"no reader came within {self._reader_wait_s:.0f} s"
            )
        )

    def _fail(self, error: ShimError) -> None:
        self.cancel()
        self._on_end(error)

    def _wait_for_reader(self, name: str, path: str, with_path: fds.Fd) -> None:
        def on_reader() -> None:
            self._take_fifo(name, path, with_path)

        def on_end(error: ShimError | None) -> None:
            self._waiting = None
            if error is not None:
                self._fail(error)
            else:
                self._open_next()

        work = partial(fifo_wait.wait_for_reader, self._title, null_fd=self._null_fd)
        wait = ReaderWait(self._loop, self._reaper, path, with_path, work, on_reader, on_end)
        self._waiting = wait
        self._waits.append(wait)
        wait.begin()


class _NoReaderError(ShimError):
    """ENXIO: the fifo has no reader yet."""


def _open_path(path: str, dir_fd: int | None) -> fds.Fd:
    try:
        return fds.Fd(os.open(path, os.O_PATH | os.O_CLOEXEC, dir_fd=dir_fd))
    except OSError as error:
        raise ShimError(f"stat {path}: {reason(error)}") from error


def _reopen(with_path: fds.Fd, path: str, flags: int) -> fds.Fd:
    """Open the file that the O_PATH descriptor `with_path` refers to, whatever its name is now."""
    try:
        return fds.reopen(with_path.fileno(), flags)
    except OSError as error:
        if error.errno == errno.ENXIO and fds.is_fifo(with_path.fileno()):
            raise _NoReaderError(path) from error
        raise ShimError(f"open {path}: {reason(error)}") from error


def _refuse_a_second_rule(sink: SinkSpec, others: list[SinkSpec]) -> None:
    """Refuse a log file that both streams write in different ways: they would overwrite it."""
    for other in others:
        if (
            sink.has_line_sink
            and not other.has_line_sink
            and sink.path
            and other.path
            and os.path.realpath(sink.path) == os.path.realpath(other.path)
        ):
            raise UsageError(f"{sink.path}: stdout and stderr ask for different log files in it")


def _duplicate(fd: int) -> fds.Fd:
    return fds.Fd(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))


def _is_same_file(sinks: dict[str, fds.Fd]) -> bool:
    if len(sinks) < 2:
        return False
    first, second = (sink.fileno() for sink in sinks.values())
    return stat.S_ISREG(os.fstat(first).st_mode) and fds.is_same_file(first, second)
