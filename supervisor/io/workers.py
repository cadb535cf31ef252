"""The copy workers of one container: forking them, forking them again, and closing after them.

A `Stream` owns both descriptors of one copy for as long as the container lives, so a worker is
only a pair of hands: when it dies without its completion record another one is forked on the same
descriptors and goes on where the kernel stands.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import time
from functools import partial

from supervisor.children import restart_policy
from supervisor.children.fd_holder import FdHolder
from supervisor.children.restart_policy import Mend
from supervisor.io.attach import AttachClients
from supervisor.io.stream_log import StreamLog
from supervisor.io.worker_process import WorkerWatch
from supervisor.linux import exit_status, fds, spawn, syscalls
from supervisor.linux.errors import ShimError, UntrustedError
from workers.common.records import replace
from workers.copy import output, stdin
from workers.process import report
from workers.process.context import WorkerContext
from workers.process.counters import StreamCounters
from workers.process.orphan import OrphanedFifo
from workers.process.task import COPY, COUNT_REST, Task, TaskKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from supervisor.io.stream import Stream
    from supervisor.linux.event_loop import Loop, Timer
    from supervisor.linux.reaper import Reaper
    from supervisor.state.fd_store import FdWriter
    from supervisor.state.log import Log


_REOPEN_EVERY_S = 0.1


class StreamSet:
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
        on_trouble: Callable[[], None] = lambda: None,
        held: tuple[int, ...] = (),
        counters: fds.Fd | None = None,
        dir_fd: int | None = None,
    ) -> None:
        """Borrow loop, reaper, log and /dev/null; `on_stream_over` follows each stream's end.

        `on_change` follows when a stream has other descriptors than before, `on_trouble` when one
        is worse or better off, see `trouble`. `held`: what the workers keep open for whoever comes
        after us. `ledger`: that of an earlier crew.
        """
        self._loop = loop
        self._reaper = reaper
        self._log = log
        self._title = title
        self._null_fd = null_fd
        self._on_stream_over = on_stream_over
        self._on_change = on_change
        self._held = held
        self._counters = StreamCounters(fd=-1 if counters is None else counters.take())
        self._teller = StreamLog(log, self._counters, on_trouble)
        self.attach_clients = AttachClients(loop, log, self._counters, self._listener_left, dir_fd)
        self._timers: dict[Stream, Timer] = {}
        self._next_relief = loop.timer(self._relieve)
        self._next_reopen = loop.timer(self._reopen)
        self._leaving: dict[int, Stream] = {}
        self._predecessors: list[fds.Fd] = []
        self._is_closing = False
        self._fd_holder = FdHolder(loop, reaper, log, title=title, null_fd=null_fd, held=held)
        self._is_to_hold = False
        self._is_to_reopen = False
        self._reopened_at_s = -math.inf
        self._longest_pause_s = restart_policy.LONGEST_PAUSE_S
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
        return bool(self._leaving or self._fd_holder.pid) or any(
            stream.pid for stream in self.streams
        )

    def copied_bytes(self, stream: Stream) -> int:
        """Return what the stream has moved so far."""
        return self._counters.copied_bytes(stream.slot)

    def in_flight_bytes(self, stream: Stream) -> int:
        """Return what its worker has taken and not delivered."""
        return self._counters.in_flight_bytes(stream.slot)

    def start(self, *, but: Stream | None = None) -> None:
        """Fork the worker of each stream that has none, except for that of `but`."""
        for stream in self.streams:
            if stream is not but and not stream.pid and not stream.is_over:
                self._fork(stream)

    def pack(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return what a successor's crew needs."""
        return {
            "ledger": fd_writer.add(self._counters.fd),
            "streams": [stream.pack(fd_writer) for stream in self.streams],
            "listeners": self.attach_clients.pack(fd_writer),
            "keeper": self._fd_holder.pid,
            "is_to_reopen": self._is_to_reopen,
        }

    @property
    def is_settled(self) -> bool:
        """Whether this is a moment for `pack`, if the workers are to live on."""
        return not self._predecessors and all(stream.is_settled for stream in self.streams)

    def go_on(self, stream: Stream, report_rfd: fds.Fd, *, is_parent: bool) -> None:
        """Take a stream of an earlier supervisor, and its worker, if it has one.

        Without `is_parent` the worker is not our child, and `renew` has to follow.
        """
        self.streams.append(stream)
        if stream.pid and is_parent:
            self._watch(stream, report_rfd)
        else:
            stream.pid = 0
            report_rfd.close()

    def go_on_with(self, packed: Mapping[str, Any], *, is_parent: bool) -> None:
        """Take the rest of what `pack` has said, behind the streams."""
        self._is_to_hold = bool(self._held)
        self._is_to_reopen = packed["is_to_reopen"]
        self._fd_holder.go_on(packed["keeper"] if is_parent else 0)

    def renew(self, predecessors: Sequence[fds.Fd] = ()) -> None:
        """Have a worker of this supervisor's own code for each stream.

        `predecessors`: pidfds of workers that are not our children, which are ended.
        """
        # First: whoever is forked from here on waits for their end.
        self._predecessors = list(predecessors)
        for each in predecessors:
            self._loop.watch(each.fileno(), partial(self._predecessor_is_gone, each))
        if self._is_to_reopen:
            self._reopen()
        for stream in self.streams:
            if stream.is_over:
                continue
            if not stream.pid:
                self._fork(stream)
            elif stream.is_interruptible:
                self._dismiss(stream)
        self._relieve()

    def hold(self) -> None:
        """See from now on that somebody else has what is held: there is something in it."""
        self._is_to_hold = bool(self._held)
        self._keep_it()

    def let_go(self) -> None:
        """See to that no more: the container is dead, and its end written down."""
        self._is_to_hold = False

    def _keep_it(self) -> None:
        """Have a keeper where no worker will come any more."""
        if self._is_to_hold and all(stream.is_over for stream in self.streams):
            self._fd_holder.come()

    def _relieve(self) -> None:
        """End the predecessors, as soon as others hold what they hold."""
        if not self._predecessors:
            return
        living = [stream for stream in self.streams if not stream.is_over]
        is_held = any(stream.pid for stream in living) if living else self._fd_holder.come()
        if not is_held:
            self._next_relief.start(restart_policy.FORK_AGAIN_S)
            return
        for each in self._predecessors:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(each.fileno(), signal.SIGKILL)

    def _predecessor_is_gone(self, pidfd: fds.Fd) -> None:
        self._loop.forget(pidfd.fileno())
        self._predecessors.remove(pidfd)
        pidfd.close()

    def hurry(self) -> None:
        """End every pause now, and keep later ones short: the container is dead, and waits."""
        self._longest_pause_s = restart_policy.LONGEST_PAUSE_IN_DRAIN_S
        for stream in self.streams:
            if stream.is_over:
                continue
            if not stream.pid:
                self._cancel_later(stream)
                self._fork(stream)
            elif self._is_left_alone(stream):
                self._dismiss(stream)

    def trouble(self, stream: Stream) -> str:
        """Return why nothing of the stream moves, in a few words; empty if something does."""
        if stream.trouble and self._has_progress(stream):
            self._teller.moves_again(stream)
        return stream.trouble

    def _has_progress(self, stream: Stream) -> bool:
        """Say whether something was moved since the last fork."""
        return self.copied_bytes(stream) != stream.copied_bytes_at_fork

    def unread_bytes(self, stream: Stream) -> int:
        """Return what of `copied_bytes` would be gone with us: it lies in a fifo without a client.

        0 while the copy goes on: we have the fifo open for reading ourselves.
        """
        return stream.unread_bytes() if stream.is_over else 0

    def could_move(self, stream: Stream) -> bool:
        """Say whether a living worker has something to move and room to move it to."""
        return (
            bool(stream.pid)
            and not self._is_left_alone(stream)
            and (stream.has_pending() or self.in_flight_bytes(stream) > 0)
            and stream.has_room()
        )

    def _is_left_alone(self, stream: Stream) -> bool:
        """Say whether its worker may be waiting on purpose: the sink has failed lately."""
        return self._is_held(stream) or (stream.is_lossy and bool(self.trouble(stream)))

    def _is_held(self, stream: Stream) -> bool:
        return time.monotonic() < stream.held_until_s

    def kill_worker(self, stream: Stream) -> None:
        """Kill the stream's worker; another one follows."""
        self._kill(stream)

    def hang_up(self, stream: Stream) -> None:
        """Take no more from the container's side, and `finish` the stream.

        To an outlet, what was taken is written first, by a worker that sees end of file: a line
        that was not at its end is one now.
        """
        if stream.outlet is None:
            self._abandon(stream)
            return
        stream.is_hung_up = True
        self._put_null_at(stream.source)
        self._dismiss(stream)

    def reopen(self) -> None:
        """Open every log file anew by its name, where that is another file's by now.

        Not again at once, but a little later: whoever asks all the time would have a new worker
        each time, and no worker would get to its work.
        """
        too_soon_s = self._reopened_at_s + _REOPEN_EVERY_S - time.monotonic()
        if too_soon_s > 0:
            if not self._is_to_reopen:
                self._is_to_reopen = True
                self._on_change()  # a successor does it
            self._next_reopen.start(too_soon_s)
        else:
            self._reopen()

    def _reopen(self) -> None:
        self._is_to_reopen = False
        self._reopened_at_s = time.monotonic()
        for stream in self.outputs:
            if stream.is_over or stream.is_hung_up:
                continue
            if stream.reopen is not None:
                try:
                    fresh = stream.reopen()
                except ShimError as error:
                    self._teller.refused(stream, error)
                    continue
                stream.refusal = ""
                if os.path.samestat(os.fstat(fresh.fileno()), os.fstat(stream.sink.fileno())):
                    fresh.close()  # nothing was moved: what is being written goes on
                    continue
                stream.sink.close()
                stream.sink = fresh
                self._on_change()
                self._dismiss(stream)
            elif stream.outlet is not None and stream.outlet.is_file:
                if not self._renew(stream):
                    continue  # its worker has the old file
                self._on_change()
                self._dismiss(stream)  # the next worker opens the name

    def _renew(self, stream: Stream) -> bool:
        """Renew the outlet; False if what is there by its name is not believed, which is said."""
        try:
            if stream.outlet is not None:
                stream.outlet.renew()
        except UntrustedError as error:
            self._teller.refused(stream, error)
            return False
        except OSError:  # the next worker will say it
            pass
        stream.refusal = ""
        return True

    def attach(self, setting: str, fifo: str) -> None:
        """Let whoever reads `fifo` hear the stream of this setting from now on."""
        living = (each for each in self.outputs if not (each.is_over or each.is_hung_up))
        stream = next((each for each in living if each.setting == setting), None)
        if stream is not None and stream.staging is None:
            try:
                stream.staging = fds.pipe()
            except OSError as error:  # EMFILE
                self.attach_clients.reject(fifo, error)
                return
        if self.attach_clients.add(stream, fifo) and stream is not None:
            self._on_change()
            self._dismiss(stream)

    def _listener_left(self, stream: Stream) -> None:
        self._on_change()
        if not (stream.is_over or stream.is_hung_up):
            self._dismiss(stream)

    def _dismiss(self, stream: Stream, hold_s: float = 0.0) -> None:
        """Have another worker in the place of this one, which has done nothing wrong.

        The other is there first, and waits: what both hold is held at every instant.
        """
        self._cancel_later(stream)
        if stream.is_over:
            return
        if stream.watch is None or stream.is_reaped:
            if not stream.pid:
                self._fork(stream, hold_s=hold_s)
            return  # or it is half gone, and what follows is decided when it is gone
        old_pid, old_watch, stream.watch = stream.pid, stream.watch, None
        self._leaving[old_pid] = stream
        if not self._fork(stream, hold_s=hold_s):
            del self._leaving[old_pid]
            stream.pid, stream.watch = old_pid, old_watch
            again = partial(self._dismiss, stream, hold_s if math.isinf(hold_s) else 0.0)
            self._later(stream, restart_policy.FORK_AGAIN_S, again)
        else:
            old_watch.abandon()
            self._reaper.expect(old_pid, partial(self._has_left, old_pid))
            os.kill(old_pid, signal.SIGKILL)  # unreaped, so the pid is its own

    def _has_left(self, pid: int, _termination: exit_status.Termination) -> None:
        stream = self._leaving.pop(pid)
        # Not sooner: one that is being killed in splice(2) may still take what comes, unheard.
        if stream.watch is not None and stream not in self._leaving.values():
            self.attach_clients.accept(stream)

    def look_for_client(self, stream: Stream) -> None:
        """Go on with a stream only if somebody else has its fifo open, else give it up.

        Our workers have it open for both directions: so first there is none.
        """
        try:
            stream.write_only()
        except OSError:  # EMFILE: it is waited for
            return
        stream.is_client_looked_for = True
        if stream.pid:
            self._kill(stream)
        else:
            self._go_on_with_client(stream)

    def _go_on_with_client(self, stream: Stream) -> None:
        stream.is_client_looked_for = False
        if fds.has_reader(stream.sink.fileno()):
            self._fork(stream)
        else:
            stream.is_given_up = stream.is_hung_up = True
            self._fork(stream, hold_s=math.inf)

    def give_up(self, stream: Stream) -> None:
        """End one stream where it is: have another worker count what is left, `finish` it."""
        if stream.is_over:
            return
        stream.is_given_up = stream.is_hung_up = True
        self._dismiss(stream, math.inf)

    def _abandon(self, stream: Stream) -> None:
        """End one stream where it is: kill its worker, then `finish` it."""
        stream.is_given_up = stream.is_hung_up = True
        self._cancel_later(stream)
        if stream.pid:
            self._kill(stream)
        elif not stream.is_over:
            self._end(stream)

    def stop(self) -> None:
        """Kill every worker; harmless to the bytes. Wait until `has_workers` is over."""
        self._is_closing = True
        self._fd_holder.leave()
        self._next_reopen.cancel()
        self._next_relief.cancel()
        for stream in self.streams:
            self._cancel_later(stream)
            self._kill(stream)

    def close(self) -> None:
        """Close every descriptor: the clients see end of file."""
        self.attach_clients.close()
        for stream in self.streams:
            stream.close()
        for each in self._predecessors:
            each.close()
        self._counters.close()

    def _kill(self, stream: Stream) -> None:
        # Reaped, but its pipe not yet read to the end: the pid may be somebody else's by now.
        if stream.pid and not stream.is_reaped:
            os.kill(stream.pid, signal.SIGKILL)

    def _later(self, stream: Stream, delay_s: float, callback: Callable[[], None]) -> None:
        """Call back later, in the place of what was to be done about the stream before."""
        self._cancel_later(stream)
        timer = self._timers[stream] = self._loop.timer(callback)
        timer.start(delay_s)

    def _cancel_later(self, stream: Stream) -> None:
        timer = self._timers.pop(stream, None)
        if timer is not None:
            timer.cancel()

    def _fork(self, stream: Stream, *, hold_s: float = 0.0) -> bool:
        """Fork a worker; False if that has to be tried again later, which is seen to.

        It waits for the end of all before it, and leaves the sink alone for `hold_s`. That it is
        there meanwhile is of use: it holds what a successor of ours would need.
        """
        with contextlib.ExitStack() as stack:
            try:
                # All: the last one may have been told to go while it waited for the one before.
                leaving = [
                    stack.enter_context(contextlib.closing(fds.Fd(os.pidfd_open(pid))))
                    for pid, whose in self._leaving.items()  # unreaped, so each pid is its own
                    if whose is stream
                ]
                report_rfd = self._fork_behind([*leaving, *self._predecessors], stream, hold_s)
            except OSError as error:  # EMFILE, ENFILE; EAGAIN, ENOMEM: the limits of our cgroup
                return self._fork_later(stream, error)
        stream.held_until_s = time.monotonic() + hold_s
        stream.is_reaped = False
        self._watch(stream, report_rfd)
        stream.failed_forks = 0
        if stream not in self._leaving.values():
            self.attach_clients.accept(stream)
        return True

    def _fork_behind(self, predecessors: Sequence[fds.Fd], stream: Stream, hold_s: float) -> fds.Fd:
        """Fork it, and return the read end of its report pipe; the caller owns that."""
        report_rfd, report_wfd = fds.pipe(report.MOST_BYTES)
        os.set_blocking(report_rfd.fileno(), False)
        task = COPY
        if math.isinf(hold_s):
            task = COUNT_REST
        elif hold_s:
            kind = TaskKind.DROP_UNTIL if stream.is_lossy else TaskKind.WAIT_UNTIL
            task = Task(kind, time.monotonic() + hold_s)
        context = WorkerContext(
            stream=stream.name,
            title=f"{self._title} [{stream.name}]",
            counters=self._counters,
            slot=stream.slot,
            report_wfd=report_wfd.fileno(),
            null_fd=self._null_fd,
            held=self._held,
            predecessors=tuple(each.fileno() for each in predecessors),
            task=task,
            reported_dropped_bytes=stream.reported_dropped_bytes,
            orphaned_fifo=self._orphaned_fifo(stream),
        )
        stream.copied_bytes_at_fork = self.copied_bytes(stream)
        try:
            stream.pid = spawn.fork_worker(self._work(stream, context))
        except OSError:
            report_rfd.close()
            raise
        finally:
            report_wfd.close()  # the worker's is the only one now: its death is our end of file
        return report_rfd

    def _orphaned_fifo(self, stream: Stream) -> OrphanedFifo | None:
        """Return how its worker ends if we die and nobody can follow us, where it would not."""
        if self._held or not stream.has_own_fifo:
            return None
        return OrphanedFifo(stream.sink.fileno(), os.getpid(), syscalls.set_pdeathsig)

    def _fork_later(self, stream: Stream, error: OSError) -> bool:
        stream.failed_forks += 1
        self._teller.fork_failed(stream, error)
        again = partial(self._fork_if_wanted, stream)
        self._later(stream, restart_policy.FORK_AGAIN_S, again)
        return False

    def _fork_if_wanted(self, stream: Stream) -> None:
        if not stream.pid and not stream.is_over:
            self._fork(stream)

    def _work(self, stream: Stream, context: WorkerContext) -> Callable[[], None]:
        if stream.is_input:
            return partial(stdin.work, context, stream.route, self.raw_terminal)
        route = stream.route
        attach_clients = self.attach_clients.of(stream)
        if attach_clients:
            route = replace(route, attach_clients=attach_clients, tee=syscalls.tee)
        if stream.outlet is not None:
            return partial(stream.outlet.work, context, route)
        return partial(output.work, context, route)

    def _watch(self, stream: Stream, report_rfd: fds.Fd) -> None:
        stream.watch = WorkerWatch(
            self._loop,
            self._reaper,
            stream,
            report_rfd,
            on_report=self._on_report,
            on_gone=self._on_gone,
        )

    # What a watch tells.

    def _on_report(self, stream: Stream, record: bytes) -> None:
        """Send away a worker that has done what it could, once another one is in its place.

        Until then it keeps what a successor of ours would need; without that it goes by itself.
        Where nobody follows it is to be gone first: the client's fifo, which it has open, is looked
        at next.
        """
        ended = None
        with contextlib.suppress(report.ReportError):  # said when it is gone
            ended = report.decode(record)
        if ended is not None and not self._is_closing and self._is_followed(stream, ended):
            self._go_on_after(stream, ended)
        elif self._held:
            self._send_away(stream)

    def _send_away(self, stream: Stream) -> None:
        """End a worker that nobody follows, once somebody else holds what it holds."""
        others = (each for each in self.streams if each is not stream and not each.is_over)
        # Of those that come to their end together each is the last one but for the others.
        is_last = not any(each.watch and not each.watch.has_reported for each in others)
        if self._is_to_hold and is_last and not self._fd_holder.come():
            again = partial(self._send_away, stream)
            self._later(stream, restart_policy.FORK_AGAIN_S, again)
        else:
            self._kill(stream)

    def _on_gone(self, stream: Stream, termination: exit_status.Termination, record: bytes) -> None:
        """Decide what follows, now that the worker is reaped and its pipe is at end of file."""
        is_decided = stream.watch is not None and stream.watch.has_reported
        stream.pid = 0
        stream.watch = None
        if self._is_closing:
            return
        try:
            ended = report.decode(record)
        except report.ReportError as error:
            self._log.warning(f"{stream.name}: worker: {error}")
            ended = None
        if stream.is_given_up:
            if ended is not None:
                stream.left_bytes, stream.left_lines = ended.left_bytes, ended.left_lines
            self._end(stream)
        elif ended is None and stream.is_client_looked_for:
            self._go_on_with_client(stream)
        elif ended is None:
            self._replace(stream, termination)
        elif not self._is_followed(stream, ended):
            self._go_on_without(stream, ended)
        elif is_decided:
            self._fork(stream)  # it waited for a fork that was refused
        else:
            self._go_on_after(stream, ended)

    def _replace(self, stream: Stream, termination: exit_status.Termination) -> None:
        has_progress = self._has_progress(stream)
        stream.deaths += 1
        stream.deaths_without_progress = 0 if has_progress else stream.deaths_without_progress + 1
        stream.dies_at_rest = not has_progress and (stream.dies_at_rest or self._is_held(stream))
        self._teller.died(stream, termination)
        pause_s = min(restart_policy.pause_s(stream.deaths_without_progress), self._longest_pause_s)
        if pause_s and stream.dies_at_rest:  # a worker that waits would be one more to die
            self._later(stream, pause_s, partial(self._fork_if_wanted, stream))
        else:
            self._fork(stream, hold_s=pause_s)

    @staticmethod
    def _is_followed(stream: Stream, ended: report.Report) -> bool:
        """Say whether another worker goes on with the stream."""
        if stream.is_given_up or ended.errno == 0:
            return False
        return _choice(stream, ended) is not Mend.HANG_UP

    def _go_on_after(self, stream: Stream, failed: report.Report) -> None:
        """Have another worker go on, in place of the one that has failed, if that still lives."""
        if failed.errno == errno.EAGAIN and stream.is_lossy:
            stream.trouble = ""
            stream.errors_in_a_row = 0
            self._teller.dropped(stream)
            self._dismiss(stream)
            return
        stream.dies_at_rest = False
        self._note_failure(stream, failed)
        if _choice(stream, failed) is Mend.DISCARD:
            self._put_null_at(stream.sink)
            self._on_change()
            self._dismiss(stream)
        else:
            self._try_again(stream, os.strerror(failed.errno))

    def _go_on_without(self, stream: Stream, ended: report.Report) -> None:
        """End the stream. A container that has closed its stdin, or is gone, was in its right."""
        if ended.errno and not (stream.is_input and ended.errno == errno.EPIPE):
            self._note_failure(stream, ended)
        self._end(stream)

    def _note_failure(self, stream: Stream, failed: report.Report) -> None:
        is_first = stream.errors_in_a_row == 0 or self._has_progress(stream)
        stream.errors_in_a_row = 1 if is_first else stream.errors_in_a_row + 1
        if is_first:
            self._teller.failed(stream, failed, _choice(stream, failed))

    def _try_again(self, stream: Stream, why: str) -> None:
        if stream.outlet is not None:
            self._renew(stream)
            self._on_change()
        delay_s = min(
            restart_policy.pause_after_errors_s(stream.errors_in_a_row), self._longest_pause_s
        )
        self._dismiss(stream, delay_s)
        self._teller.in_trouble(stream, why)

    def _put_null_at(self, place: fds.Fd) -> None:
        """Close what is there and put /dev/null in its place, which no EMFILE can prevent."""
        os.dup2(self._null_fd, place.fileno(), inheritable=False)

    def _end(self, stream: Stream) -> None:
        self._cancel_later(stream)
        stream.trouble = ""
        self._teller.dropped(stream)
        self.attach_clients.end(stream)
        stream.finish()
        self._keep_it()  # if it was sent away before there was something to keep
        self._on_change()
        self._on_stream_over()


def _choice(stream: Stream, failed: report.Report) -> Mend:
    return restart_policy.mend(stream.name, failed, has_outlet=stream.outlet is not None)
