"""The copy workers of one container: forking them, forking them again, and closing after them.

A `Stream` owns both descriptors of one copy for as long as the container lives, so a worker is
only a pair of hands: when it dies without its completion record another one is forked on the same
descriptors and goes on where the kernel stands. A worker counts as gone when both its pipe is
at end of file and it has been reaped.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

from supervisor import fds, spawn, waitstatus
from supervisor.errors import ShimError
from workers import engines, output, report, stdin
from workers.desk import Desk
from workers.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from supervisor.deposit import Parcel
    from supervisor.log import Log
    from supervisor.loop import Loop
    from supervisor.outlets import Outlet
    from supervisor.reaper import Reaper

_KEPT = (
    "slot",
    "pid",
    "is_over",
    "is_hung_up",
    "deaths",
    "deaths_without_progress",
    "errors_in_a_row",
    "copied_bytes_at_fork",
)
"""What `Stream.pack` says of a stream as it is."""

_DEATHS_WITHOUT_PAUSE = 8
_SHORTEST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 5.0
_LONGEST_PAUSE_IN_DRAIN_S = 0.25


class Mend(enum.Enum):
    """What to do when a worker reports an error."""

    RETRY = "fork another one after a pause"
    HANG_UP = "close the container's side, which then gets EPIPE, as in a shell pipeline"
    DISCARD = "read on and throw away"


def mend(stream: str, failed: report.Report, *, has_outlet: bool = False) -> Mend:
    """Choose by what failed. Pure.

    A reader that is gone for good (EPIPE, a hung-up terminal's EIO) is passed on to the container,
    which closes its own pipe; a console cannot be closed without a SIGHUP to the container, so
    its output is thrown away. Everything else (ENOSPC, EDQUOT, ...) may get better: nothing is
    dropped, the container waits when its pipe is full. So may a disk, and a journald that is gone:
    with `has_outlet` there is no reader.
    """
    if has_outlet:
        return Mend.RETRY
    if stream == "stdin":
        return Mend.HANG_UP
    is_reader_gone = failed.errno in (errno.EPIPE, errno.ECONNRESET) or (
        failed.errno == errno.EIO and failed.side != "source"
    )
    if not is_reader_gone:
        return Mend.RETRY
    return Mend.DISCARD if stream == "console" else Mend.HANG_UP


def pause_s(deaths_without_progress: int) -> float:
    """Return how long to wait before the next fork: none for the first eight deaths. Pure."""
    excess = deaths_without_progress - _DEATHS_WITHOUT_PAUSE
    if excess <= 0:
        return 0.0
    return float(min(_SHORTEST_PAUSE_S * 2 ** min(excess - 1, 10), _LONGEST_PAUSE_S))


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
        outlet: Outlet | None = None,
        reopen: Callable[[], fds.Fd] | None = None,
        setting: str = "",
        packed: Mapping[str, Any] | None = None,
        scratch: tuple[fds.Fd, fds.Fd] | None = None,
    ) -> None:
        """Own `source` and `sink`, and a scratch pipe unless both of them are pipes.

        `is_passthrough`: the sink is a descriptor that we were started with, and others have too.
        `outlet`, borrowed, is there in the place of `sink`, which is /dev/null then.
        `reopen` opens a file's name anew, for a sink that is one; it may raise `ShimError`.
        `setting`, "stdout" or "stderr", says where it goes.
        `packed` and `scratch`: go on with a stream of an earlier supervisor, see `pack`.
        """
        self.name = name
        self.source = source
        self.sink = sink
        self.sink_name = sink_name
        self.is_passthrough = is_passthrough
        self.outlet = outlet
        self.reopen = reopen
        self.setting = setting
        self.scratch = scratch
        self.slot = -1
        self.pid = 0
        self.watch: _Watch | None = None
        self.is_reaped = False
        self.is_over = False
        self.is_given_up = False
        self.is_hung_up = False
        self.deaths = 0
        self.deaths_without_progress = 0
        self.errors_in_a_row = 0
        self.failed_forks = 0
        self.copied_bytes_at_fork = 0
        if packed is not None:
            self.capacity_bytes: int = packed["capacity_bytes"]
            for name in _KEPT:
                setattr(self, name, packed[name])
            return
        if not (fds.is_fifo(source.fileno()) and fds.is_fifo(sink.fileno())):
            self.scratch = fds.pipe()
        # Asked now, while the pipe is ours alone: see `has_pending`.
        self.capacity_bytes = fds.capacity_bytes(source.fileno())
        if outlet is not None:
            self.capacity_bytes += outlet.held_bytes

    def pack(self, parcel: Parcel) -> dict[str, Any]:
        """Return what a successor needs; the outlet is packed elsewhere.

        A worker that is half gone is left out: another one sees what it has seen.
        """
        has_worker = self.watch is not None and self.watch.is_untouched
        return {
            "name": self.name,
            "setting": self.setting,
            "source": parcel.add(self.source.fileno()),
            "sink": parcel.add(self.sink.fileno()),
            "scratch": [parcel.add(end.fileno()) for end in self.scratch or ()],
            "report": parcel.add(self.watch.fileno()) if self.watch and has_worker else -1,
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
    def is_input(self) -> bool:
        """Whether it runs towards the container."""
        return self.name == "stdin"

    @property
    def route(self) -> engines.Route:
        """What the worker is handed."""
        scratch = self.scratch
        return engines.Route(
            self.source.fileno(),
            self.sink.fileno(),
            None if scratch is None else (scratch[0].fileno(), scratch[1].fileno()),
            source_is_console=self.name == "console",
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
            return self.outlet.has_room()
        return fds.is_writable(self.sink.fileno())

    def unread_bytes(self) -> int:
        """Return what would be gone from the client's fifo if we closed it now.

        0 for a sink that keeps what it is given: a file, a pipe of our caller's, a fifo that a
        client has open. A fifo forgets its bytes with its last opener (fifo(7)).
        """
        if self.is_passthrough or not self.sink.is_open or not fds.is_fifo(self.sink.fileno()):
            return 0
        return 0 if fds.has_reader(self.sink.fileno()) else fds.pending_bytes(self.sink.fileno())

    def finish(self) -> None:
        """Close the container's side: its input ends, or there is no more output to come.

        The client's side stays open until the container is gone: a client that comes back
        late finds end of file then, and not a fifo without a writer, where it would hang.
        """
        self.is_over = True
        (self.sink if self.is_input else self.source).close()
        if not self.is_input and not self.is_passthrough and fds.is_fifo(self.sink.fileno()):
            # Nobody writes any more: keep only the write end, so that a client can be told apart
            # from ourselves. The new one is open before the old one goes.
            try:
                write_only = fds.reopen(self.sink.fileno(), os.O_WRONLY)
            except OSError:  # EMFILE: who has read how much of it will not be known
                return
            self.sink.close()
            self.sink = write_only

    def close(self) -> None:
        """Close everything."""
        self.is_over = True
        for owner in (self.source, self.sink, *(self.scratch or ())):
            owner.close()


class Crew:
    """All streams of one container. Owns the streams and the ledger."""

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
        held: tuple[int, ...] = (),
        ledger: fds.Fd | None = None,
    ) -> None:
        """Borrow loop, reaper, log and /dev/null; `on_stream_over` follows each stream's end.

        `on_change` follows when a stream has other descriptors than before. `held`: what the
        workers keep open for whoever comes after us. `ledger`: that of an earlier crew.
        """
        self._loop = loop
        self._reaper = reaper
        self._log = log
        self._title = title
        self._null_fd = null_fd
        self._on_stream_over = on_stream_over
        self._on_change = on_change
        self._held = held
        self._ledger = Ledger(fd=-1 if ledger is None else ledger.take())
        self._leaving: set[int] = set()
        self._is_closing = False
        self._longest_pause_s = _LONGEST_PAUSE_S
        self.streams: list[Stream] = []
        self.raw_terminal: stdin.RawTerminal | None = None

    def add(self, stream: Stream) -> None:
        """Take a stream; its worker is forked by `start`."""
        stream.slot = len(self.streams)
        self.streams.append(stream)

    @property
    def outputs(self) -> list[Stream]:
        """The streams that run from the container."""
        return [stream for stream in self.streams if not stream.is_input]

    @property
    def has_workers(self) -> bool:
        """Whether a worker has still to be reaped."""
        return bool(self._leaving) or any(stream.pid for stream in self.streams)

    def copied_bytes(self, stream: Stream) -> int:
        """Return what the stream has moved so far."""
        return self._ledger.copied_bytes(stream.slot)

    def transit_bytes(self, stream: Stream) -> int:
        """Return what its worker has taken and not delivered."""
        return self._ledger.transit_bytes(stream.slot)

    def start(self) -> None:
        """Fork the worker of each stream."""
        for stream in self.streams:
            self._fork(stream)

    def pack(self, parcel: Parcel) -> dict[str, Any]:
        """Return what a successor's crew needs."""
        return {
            "ledger": parcel.add(self._ledger.fd),
            "streams": [stream.pack(parcel) for stream in self.streams],
        }

    @property
    def is_settled(self) -> bool:
        """Whether this is a moment for `pack`, if the workers are to live on."""
        return all(stream.is_settled for stream in self.streams)

    def go_on(self, stream: Stream, report_rfd: fds.Fd, *, is_parent: bool) -> None:
        """Take a stream of an earlier supervisor, and its worker, if it has one.

        Without `is_parent` the worker is not our child, and `renew` has to follow.
        """
        self.streams.append(stream)
        if stream.pid and is_parent:
            stream.watch = _Watch(self, stream, report_rfd)
        else:
            stream.pid = 0
            report_rfd.close()

    def renew(self, predecessors: Sequence[fds.Fd] = ()) -> None:
        """Have a worker of this supervisor's own code for each stream.

        `predecessors`: pidfds of workers that are not our children, which are ended.
        """
        for stream in self.streams:
            if stream.is_over:
                continue
            if not stream.pid:
                self._fork(stream, tuple(each.fileno() for each in predecessors))
            elif stream.is_interruptible:
                self._dismiss(stream)
        # Now that others hold what they have held: see `held`.
        for each in predecessors:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(each.fileno(), signal.SIGKILL)
            each.close()

    def hurry(self) -> None:
        """End every pause now, and keep later ones short: the container is dead, and waits."""
        self._longest_pause_s = _LONGEST_PAUSE_IN_DRAIN_S
        for stream in self.streams:
            if not stream.pid and not stream.is_over:
                self._loop.cancel(self._timer(stream))
                self._fork(stream)

    def unread_bytes(self, stream: Stream) -> int:
        """Return what of `copied_bytes` would be gone with us: it lies in a fifo without a client.

        0 while the copy goes on: we have the fifo open for reading ourselves.
        """
        return stream.unread_bytes() if stream.is_over else 0

    def could_move(self, stream: Stream) -> bool:
        """Say whether a living worker has something to move and room to move it to."""
        return (
            bool(stream.pid)
            and (stream.has_pending() or self.transit_bytes(stream) > 0)
            and stream.has_room()
        )

    def kill_worker(self, stream: Stream) -> None:
        """Kill the stream's worker; another one follows."""
        self._kill(stream)

    def hang_up(self, stream: Stream) -> None:
        """Take no more from the container's side, and `finish` the stream.

        To an outlet, what was taken is written first, by a worker that sees end of file: a line
        that was not at its end is one now.
        """
        if stream.outlet is None:
            self.give_up(stream)
            return
        stream.is_hung_up = True
        self._put_null_at(stream.source)
        self._dismiss(stream)

    def reopen(self) -> None:
        """Open every log file anew by its name, which is another file's by now."""
        for stream in self.outputs:
            if stream.is_over or stream.is_hung_up:
                continue
            if stream.reopen is not None:
                try:
                    fresh = stream.reopen()
                except ShimError as error:
                    self._log.warning(f"{stream.name}: {error}; the old file is written on")
                    continue
                stream.sink.close()
                stream.sink = fresh
                self._on_change()
                self._dismiss(stream)
            elif stream.outlet is not None and stream.outlet.is_file:
                with contextlib.suppress(OSError):  # the next worker will say it
                    stream.outlet.renew()
                self._on_change()
                self._dismiss(stream)  # the next worker opens the name

    def _dismiss(self, stream: Stream) -> None:
        """Have another worker in the place of this one, which has done nothing wrong.

        The other is there first, and waits: what both hold is held at every instant.
        """
        self._loop.cancel(self._timer(stream))
        if stream.watch is None or stream.is_reaped:
            if not stream.pid:
                self._fork(stream)
            return  # or it is half gone, and what follows is decided when it is gone
        old_pid, old_watch, stream.watch = stream.pid, stream.watch, None
        try:
            pidfd = fds.Fd(os.pidfd_open(old_pid))
        except OSError:  # EMFILE
            pidfd = fds.Fd(-1)
        if not pidfd.is_open or not self._fork(stream, (pidfd.fileno(),)):
            stream.pid, stream.watch = old_pid, old_watch
            delay_s = _LONGEST_PAUSE_S / 10
            self._loop.call_after(self._timer(stream), delay_s, partial(self._dismiss, stream))
        else:
            old_watch.abandon()
            self._leaving.add(old_pid)
            self._reaper.expect(old_pid, lambda _termination: self._leaving.discard(old_pid))
            os.kill(old_pid, signal.SIGKILL)  # unreaped, so the pid is its own
        pidfd.close()

    def give_up(self, stream: Stream) -> None:
        """End one stream where it is: kill its worker, then `finish` it."""
        stream.is_given_up = stream.is_hung_up = True
        self._loop.cancel(self._timer(stream))
        if stream.pid:
            self._kill(stream)
        elif not stream.is_over:
            self._end(stream)

    def stop(self) -> None:
        """Kill every worker; harmless to the bytes. Wait until `has_workers` is over."""
        self._is_closing = True
        for stream in self.streams:
            self._loop.cancel(self._timer(stream))
            self._kill(stream)

    def close(self) -> None:
        """Close every descriptor: the clients see end of file."""
        for stream in self.streams:
            stream.close()
        self._ledger.close()

    def _kill(self, stream: Stream) -> None:
        # Reaped, but its pipe not yet read to the end: the pid may be somebody else's by now.
        if stream.pid and not stream.is_reaped:
            os.kill(stream.pid, signal.SIGKILL)

    def _timer(self, stream: Stream) -> str:
        return f"fork {stream.name}"

    def _fork(self, stream: Stream, predecessors: tuple[int, ...] = ()) -> bool:
        """Fork a worker; False if that has to be tried again later, which is seen to."""
        try:
            report_rfd, report_wfd = fds.pipe(report.MOST_BYTES)
        except OSError as error:  # EMFILE, ENFILE
            return self._fork_later(stream, error)
        os.set_blocking(report_rfd.fileno(), False)
        desk = Desk(
            stream=stream.name,
            title=f"{self._title} [{stream.name}]",
            ledger=self._ledger,
            slot=stream.slot,
            report_wfd=report_wfd.fileno(),
            null_fd=self._null_fd,
            held=() if stream.is_input else self._held,
            predecessors=predecessors,
        )
        stream.copied_bytes_at_fork = self.copied_bytes(stream)
        try:
            stream.pid = spawn.fork_worker(self._work(stream, desk))
            stream.is_reaped = False
        except OSError as error:  # EAGAIN, ENOMEM: the pids or the memory of our cgroup
            report_rfd.close()
            return self._fork_later(stream, error)
        finally:
            report_wfd.close()  # the worker's is the only one now: its death is our end of file
        stream.watch = _Watch(self, stream, report_rfd)
        return True

    def _fork_later(self, stream: Stream, error: OSError) -> bool:
        stream.failed_forks += 1
        if stream.failed_forks & (stream.failed_forks - 1) == 0:  # a log that cannot fill a disk
            self._log.warning(
                f"{stream.name}: fork: {error.strerror}; trying again; "
                f"{stream.failed_forks} times so far"
            )
        self._loop.call_after(
            self._timer(stream), _LONGEST_PAUSE_S / 10, lambda: self._fork_if_wanted(stream)
        )
        return False

    def _fork_if_wanted(self, stream: Stream) -> None:
        if not stream.pid and not stream.is_over:
            self._fork(stream)

    def _work(self, stream: Stream, desk: Desk) -> Callable[[], None]:
        if stream.is_input:
            return partial(stdin.work, desk, stream.route, self.raw_terminal)
        if stream.outlet is not None:
            return partial(stream.outlet.work, desk, stream.route)
        return partial(output.work, desk, stream.route)

    # What a watch tells.

    def watch(self, pid: int, on_exit: Callable[[waitstatus.Termination], None]) -> None:
        """Have the reaper tell of one worker's end."""
        self._reaper.expect(pid, on_exit)

    @property
    def loop(self) -> Loop:
        """The loop that the watches use."""
        return self._loop

    def worker_is_gone(
        self, stream: Stream, termination: waitstatus.Termination, record: bytes
    ) -> None:
        """Decide what follows, now that the worker is reaped and its pipe is at end of file."""
        stream.pid = 0
        stream.watch = None
        if self._is_closing:
            return
        if stream.is_given_up:
            self._end(stream)
            return
        try:
            ended = report.decode(record)
        except report.ReportError as error:
            self._log.warning(f"{stream.name}: worker: {error}")
            ended = None
        if ended is None:
            self._replace(stream, termination)
        elif ended.errno == 0:
            self._end(stream)
        else:
            self._mend(stream, ended)

    def _replace(self, stream: Stream, termination: waitstatus.Termination) -> None:
        has_progress = self.copied_bytes(stream) != stream.copied_bytes_at_fork
        stream.deaths += 1
        stream.deaths_without_progress = 0 if has_progress else stream.deaths_without_progress + 1
        if stream.deaths & (stream.deaths - 1) == 0:  # 1, 2, 4, 8: a log that cannot fill a disk
            self._log.warning(
                f"{stream.name}: worker {termination}, replaced; {stream.deaths} so far"
            )
        self._fork_after(stream, pause_s(stream.deaths_without_progress))

    def _mend(self, stream: Stream, failed: report.Report) -> None:
        choice = mend(stream.name, failed, has_outlet=stream.outlet is not None)
        if stream.is_input and failed.errno == errno.EPIPE:
            self._end(stream)  # the container has closed its stdin, or is gone: its right
            return
        stream.errors_in_a_row += 1
        if self.copied_bytes(stream) != stream.copied_bytes_at_fork:
            stream.errors_in_a_row = 1
        if stream.errors_in_a_row == 1:
            target = f" {stream.sink_name}" if stream.sink_name else ""
            self._log.warning(
                f"{stream.name}{target}: {os.strerror(failed.errno)} ({failed.errno_name}) "
                f"after {self.copied_bytes(stream)} bytes; {choice.value}"
            )
        if choice is Mend.HANG_UP:
            self._end(stream)
        elif choice is Mend.DISCARD:
            self._put_null_at(stream.sink)
            self._on_change()
            self._fork(stream)
        else:
            if stream.outlet is not None:
                with contextlib.suppress(OSError):  # the next worker will say it again
                    stream.outlet.renew()
                self._on_change()
            self._fork_after(stream, pause_s(_DEATHS_WITHOUT_PAUSE + stream.errors_in_a_row))

    def _put_null_at(self, place: fds.Fd) -> None:
        """Close what is there and put /dev/null in its place, which no EMFILE can prevent."""
        os.dup2(self._null_fd, place.fileno(), inheritable=False)

    def _fork_after(self, stream: Stream, delay_s: float) -> None:
        if delay_s == 0.0:
            self._fork(stream)
        else:
            delay_s = min(delay_s, self._longest_pause_s)
            self._loop.call_after(
                self._timer(stream), delay_s, lambda: self._fork_if_wanted(stream)
            )

    def _end(self, stream: Stream) -> None:
        stream.finish()
        self._on_change()
        self._on_stream_over()


class _Watch:
    """Joins a worker's two ends. Owns the read end of its report pipe."""

    def __init__(self, crew: Crew, stream: Stream, report_rfd: fds.Fd) -> None:
        self._crew = crew
        self._stream = stream
        self._report_rfd = report_rfd
        self._record = b""
        self._termination: waitstatus.Termination | None = None
        crew.loop.watch(report_rfd.fileno(), self._on_readable)
        crew.watch(stream.pid, self._on_exit)

    def fileno(self) -> int:
        """Lend the report pipe's read end."""
        return self._report_rfd.fileno()

    def abandon(self) -> None:
        """Listen no more; somebody else expects the worker's end."""
        if self._report_rfd.is_open:
            self._crew.loop.forget(self._report_rfd.fileno())
            self._report_rfd.close()

    @property
    def is_untouched(self) -> bool:
        """Whether nothing has been heard of the worker so far."""
        return self._termination is None and self._report_rfd.is_open and not self._record

    def _on_readable(self) -> None:
        chunk = os.read(self._report_rfd.fileno(), report.MOST_BYTES + 1)
        self._record = (self._record + chunk)[: report.MOST_BYTES + 1]
        if not chunk:
            self._crew.loop.forget(self._report_rfd.fileno())
            self._report_rfd.close()
            self._tell_if_both()

    def _on_exit(self, termination: waitstatus.Termination) -> None:
        self._stream.is_reaped = True
        self._termination = termination
        self._tell_if_both()

    def _tell_if_both(self) -> None:
        if self._termination is not None and not self._report_rfd.is_open:
            self._crew.worker_is_gone(self._stream, self._termination, self._record)
