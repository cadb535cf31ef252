"""The client's side of the streams: opening what process.json names, and who owns it.

stdin comes first, since it never waits: a client that opens its stdin before its stdout is then
not left in open(2). The outputs follow, stdout then stderr, each fifo as soon as it has a reader;
one limit of 15 s covers them all, as in the 2016 shim. After that the names may be unlinked.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from supervisor import fds, spawn
from supervisor.errors import ShimError, reason
from supervisor.sinks import Sink, SinkKind, parse_sink
from workers import fifo

if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.loop import Loop
    from supervisor.oci import ProcessRecord
    from supervisor.reaper import Reaper

READER_WAIT_S = 15.0
_LIMIT = "stdio reader"


@dataclass(slots=True)
class Stdio:
    """The client's side, opened. A missing stream is null: no pipe, no worker.

    Attributes:
        stdin: Where input comes from.
        stdin_closer: Our own write end of a stdin fifo: while it is open, a client may come back.
        sinks: By stream name, "stdout" and "stderr".
        names: What each is, for log lines.
        passthrough: The sinks that are a descriptor of our own caller.
        stderr_joins_stdout: Both are the same regular file. They then share one pipe and one
            worker: two file offsets would overwrite each other.
    """

    stdin: fds.Fd | None = None
    stdin_closer: fds.Fd | None = None
    sinks: dict[str, fds.Fd] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    passthrough: set[str] = field(default_factory=set)
    stderr_joins_stdout: bool = False

    def close(self) -> None:
        """Close whatever has not been taken."""
        for owner in (self.stdin, self.stdin_closer, *self.sinks.values()):
            if owner is not None:
                owner.close()


class StdioOpener:
    """Opens the streams one after the other and calls back once."""

    def __init__(self, loop: Loop, reaper: Reaper, *, title: str, null_fd: int) -> None:
        """Borrow the loop, the reaper and /dev/null. `title` names the waiting child in ps(1)."""
        self._loop = loop
        self._reaper = reaper
        self._title = title
        self._null_fd = null_fd
        self._stdio = Stdio()
        self._wanted: list[tuple[str, Sink]] = []
        self._waiting: _ReaderWait | None = None
        self._on_end: Callable[[Stdio | ShimError], None] = lambda _end: None

    def begin(self, record: ProcessRecord, on_end: Callable[[Stdio | ShimError], None]) -> None:
        """Open what `record` names; `on_end` gets the streams and their ownership, or the error."""
        self._on_end = on_end
        self._wanted = [("stdout", parse_sink(record.stdout))]
        if not record.terminal:
            self._wanted.append(("stderr", parse_sink(record.stderr)))
        self._loop.call_after(_LIMIT, READER_WAIT_S, self._give_up)
        try:
            self._open_stdin(record.stdin)
        except ShimError as error:
            self._fail(error)
        else:
            self._open_next()

    def cancel(self) -> None:
        """Stop waiting and close what is open; `on_end` is not called any more."""
        self._loop.cancel(_LIMIT)
        if self._waiting is not None:
            self._waiting.end()
            self._waiting = None
        self._stdio.close()

    def _open_stdin(self, path: str) -> None:
        if path in ("", "null", os.devnull):
            return
        if path == "passthrough":
            self._stdio.stdin = _duplicate(0)
            return
        with_path = _open_path(path)
        try:
            if not fds.is_fifo(with_path.fileno()):
                self._stdio.stdin = _reopen(with_path, path, os.O_RDONLY)
                return
            # Non-blocking only so that open(2) does not wait for a writer: we are that writer.
            self._stdio.stdin = _reopen(with_path, path, os.O_RDONLY | os.O_NONBLOCK)
            self._stdio.stdin_closer = _reopen(with_path, path, os.O_WRONLY)
            fds.grow_pipe(self._stdio.stdin.fileno())
            os.set_blocking(self._stdio.stdin.fileno(), True)
        finally:
            with_path.close()

    def _open_next(self) -> None:
        """Open sinks until one has to wait or none is left."""
        while self._wanted:
            name, sink = self._wanted.pop(0)
            try:
                is_open = self._open_sink(name, sink)
            except ShimError as error:
                self._fail(error)
                return
            if not is_open:
                return
        self._loop.cancel(_LIMIT)
        self._stdio.stderr_joins_stdout = _is_same_file(self._stdio.sinks)
        self._on_end(self._stdio)

    def _open_sink(self, name: str, sink: Sink) -> bool:
        """Return False when it is left to a child to wait for a reader."""
        self._stdio.names[name] = str(sink)
        if sink.kind is SinkKind.NULL:
            return True
        if sink.kind is SinkKind.PASSTHROUGH:
            self._stdio.passthrough.add(name)
            self._stdio.sinks[name] = _duplicate({"stdout": 1, "stderr": 2}[name])
            return True
        if sink.kind is SinkKind.FILE:
            self._stdio.sinks[name] = _open_file_at_end(sink.path)
            return True
        with_path = _open_path(sink.path)
        if not fds.is_fifo(with_path.fileno()):
            try:
                self._stdio.sinks[name] = _reopen(with_path, sink.path, os.O_WRONLY)
            finally:
                with_path.close()
            return True
        try:
            probe = _reopen(with_path, sink.path, os.O_WRONLY | os.O_NONBLOCK)
        except _NoReaderError:
            self._waiting = _ReaderWait(self, name, sink.path, with_path)
            return False
        except ShimError:
            with_path.close()
            raise
        # The probe is closed last: a reader must never see the last writer go.
        try:
            self._take_fifo(name, sink.path, with_path)
        finally:
            probe.close()
        return True

    def _take_fifo(self, name: str, path: str, with_path: fds.Fd) -> None:
        try:
            sink_fd = _reopen(with_path, path, os.O_RDWR)
        finally:
            with_path.close()
        fds.grow_pipe(sink_fd.fileno())
        self._stdio.sinks[name] = sink_fd

    def _give_up(self) -> None:
        path = self._waiting.path if self._waiting is not None else "stdio"
        self._fail(
            ShimError(
                f"containerd-shim: opening {path} failed: context deadline exceeded: "
                f"no reader came within {READER_WAIT_S:.0f} s"
            )
        )

    def _fail(self, error: ShimError) -> None:
        self.cancel()
        self._on_end(error)

    # What the wait for a reader needs of its opener.

    def start_waiter(self, path_fd: int, said_wfd: int, on_said: Callable[[], None]) -> int:
        """Fork the child that waits in open(2); returns its pid. The reaper has it."""
        pid = spawn.fork_worker(
            lambda: fifo.wait_for_reader(self._title, path_fd, said_wfd, self._null_fd),
            dies_with_us=True,
        )
        self._reaper.expect(pid, lambda _termination: on_said())
        return pid

    def watch(self, fd: int, callback: Callable[[], None]) -> Loop:
        """Watch `fd` in our loop and return the loop."""
        self._loop.watch(fd, callback)
        return self._loop

    def reader_has_come(self, name: str, path: str, with_path: fds.Fd) -> bool:
        """Take the fifo: it has a reader, and the waiting child still holds it open.

        Returns False if it cannot be opened; `on_end` has been told.
        """
        self._waiting = None
        try:
            self._take_fifo(name, path, with_path)
        except ShimError as error:
            self._fail(error)
            return False
        return True

    def go_on(self) -> None:
        """Open the next stream."""
        self._open_next()


class _ReaderWait:
    """A child that waits for the reader of one fifo. Owns the child, its pipe and `with_path`."""

    def __init__(self, opener: StdioOpener, name: str, path: str, with_path: fds.Fd) -> None:
        self.path = path
        self._opener = opener
        self._name = name
        self._with_path = with_path
        self._said_rfd, said_wfd = fds.pipe(4096)
        os.set_blocking(self._said_rfd.fileno(), False)
        self._is_over = False
        try:
            self._pid = opener.start_waiter(
                with_path.fileno(), said_wfd.fileno(), self._on_child_gone
            )
        finally:
            said_wfd.close()
        self._loop = opener.watch(self._said_rfd.fileno(), self._on_said)

    def _on_said(self) -> None:
        if not os.read(self._said_rfd.fileno(), 1):
            return  # the child has died: its end is told by the reaper
        with_path, self._with_path = self._with_path, fds.Fd(-1)
        is_taken = self._opener.reader_has_come(self._name, self.path, with_path)
        self.end()
        if is_taken:
            self._opener.go_on()

    def _on_child_gone(self) -> None:
        """Somebody killed the child: wait with another one."""
        if not self._is_over:
            with_path, self._with_path = self._with_path, fds.Fd(-1)
            self.end()
            self._opener._waiting = _ReaderWait(  # noqa: SLF001 -- its other half
                self._opener, self._name, self.path, with_path
            )

    def end(self) -> None:
        """Let the child go; the reaper collects it."""
        if self._is_over:
            return
        self._is_over = True
        self._loop.forget(self._said_rfd.fileno())
        self._said_rfd.close()
        self._with_path.close()
        try:
            os.kill(self._pid, signal.SIGKILL)  # not reaped before `_on_child_gone`: safe
        except ProcessLookupError:
            return


class _NoReaderError(ShimError):
    """ENXIO: the fifo has no reader yet."""


def _open_path(path: str) -> fds.Fd:
    try:
        return fds.Fd(os.open(path, os.O_PATH | os.O_CLOEXEC))
    except OSError as error:
        raise ShimError(f"stat {path}: {reason(error)}") from error


def _reopen(with_path: fds.Fd, path: str, flags: int) -> fds.Fd:
    """Open the very file that `with_path` holds, whatever its name is now."""
    try:
        return fds.reopen(with_path.fileno(), flags)
    except OSError as error:
        if error.errno == errno.ENXIO and fds.is_fifo(with_path.fileno()):
            raise _NoReaderError(path) from error
        raise ShimError(f"open {path}: {reason(error)}") from error


def _open_file_at_end(path: str) -> fds.Fd:
    """Open or create a regular file and stand at its end.

    Not O_APPEND: splice(2) refuses such files. The offset is shared with each worker that
    inherits the descriptor, so a successor goes on where its predecessor stopped.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        file = fds.Fd(os.open(path, flags, 0o640))
    except OSError as error:
        raise ShimError(f"open {path}: {reason(error)}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ShimError(f"open {path}: not a regular file")
    os.set_blocking(file.fileno(), True)
    os.lseek(file.fileno(), 0, os.SEEK_END)
    return file


def _duplicate(fd: int) -> fds.Fd:
    return fds.Fd(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))


def _is_same_file(sinks: dict[str, fds.Fd]) -> bool:
    if len(sinks) < 2:
        return False
    first, second = (os.fstat(sink.fileno()) for sink in sinks.values())
    return stat.S_ISREG(first.st_mode) and os.path.samestat(first, second)
