"""The supervisor's side of the notify worker: forks it, reads its words, replaces it.

"Words" are sd_notify assignments (`READY=1`). The worker reads bytes that the container chooses, so
it may hang; see `workers.notify.reader`.
After a datagram has arrived, the supervisor checks the worker at an interval. It replaces a
worker that has received nothing between two checks although the socket is readable. While no
datagram arrives there is no check and no wake-up.

The kernel kills the worker when the supervisor dies. The next supervisor has the socket, and the
shared memory with the pending and the reported words.
"""

from __future__ import annotations

import os
import signal
from functools import partial

from supervisor.children import restart_policy
from supervisor.linux import fds, spawn
from workers.notify import reader, words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from supervisor.linux.event_loop import Loop
    from supervisor.linux.exit_status import Termination
    from supervisor.linux.reaper import Reaper
    from supervisor.state.fd_store import FdReader, FdWriter
    from supervisor.state.log import Log
    from supervisor.systemd.notify_proxy import NotifyProxy
    from workers.notify.words import Words

FEATURE = "notify"
CHECK_S = 2.0
_LAST_WORDS_S = 1.0
"""Limit for reading the remaining messages after the container has exited."""
_MOST_DYING = 4
"""Limit for killed workers that sleep in the kernel and do not die, on FUSE for example."""


class _Process:
    """A forked worker. Owns the pipes to it."""

    def __init__(self, pid: int, words_rfd: fds.Fd, until_wfd: fds.Fd) -> None:
        self.pid = pid
        self.words_rfd = words_rfd
        self.until_wfd = until_wfd
        self.is_reaped = pid == 0
        self.how = ""

    @property
    def is_gone(self) -> bool:
        """Whether the worker was reaped and its pipe was read to end of file."""
        return self.is_reaped and not self.words_rfd.is_open


class NotifyWorker:
    """Keeps a notify worker alive while the container lives. Borrows the notify proxy.

    It has many methods and attributes, because the worker's life and its words share one pipe.
    """

    feature = FEATURE

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        log: Log,
        notify_proxy: NotifyProxy,
        *,
        title: str,
        null_fd: int,
        on_words: Callable[[Words], None],
        on_change: Callable[[], None],
    ) -> None:
        """Borrow everything. Do nothing before `start`.

        Args:
            loop: Watches the pipe and the socket.
            reaper: Reaps the workers.
            log: Gets deaths, failed forks and merged messages.
            notify_proxy: Has the container's socket and the shared memory.
            title: The supervisor's process title.
            null_fd: /dev/null.
            on_words: Called with the words of each record.
            on_change: Called after each fork: the published fd store is out of date.
        """
        self._loop = loop
        self._reaper = reaper
        self._log = log
        self._notify_proxy = notify_proxy
        self._title = title
        self._null_fd = null_fd
        self._on_words = on_words
        self._on_change = on_change
        self._next_check = loop.timer(self._check, feature=FEATURE)
        self._next_fork = loop.timer(self._fork, feature=FEATURE)
        self._end_limit = loop.timer(self._end)
        self._process: _Process | None = None
        self._dying: list[_Process] = []
        self._is_over = False
        self._is_given_up = False
        self._is_watching = False
        self._on_end: Callable[[], None] | None = None
        self._deaths = self._deaths_in_a_row = self._failed_forks = 0
        self._seen_at_fork = self._seen_at_check = -1
        self._reported_merged = notify_proxy.memory.merged

    # From start to end.

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return the state for `restore`."""
        process = self._process
        if process is None:
            return {"pid": 0, "words": -1, "until": -1}
        return {
            "pid": process.pid,
            "words": fd_writer.add(process.words_rfd.fileno()),
            "until": fd_writer.add(process.until_wfd.fileno()),
        }

    def restore(self, packed: Mapping[str, Any], contents: FdReader, *, is_parent: bool) -> None:
        """Take over the worker of an earlier supervisor, with the unread words in its pipe."""
        words_rfd, until_wfd = contents.take(packed["words"]), contents.take(packed["until"])
        if words_rfd.is_open:
            self._process = _Process(packed["pid"] if is_parent else 0, words_rfd, until_wfd)

    def start(self) -> None:
        """Fork a worker; kill the one of an earlier supervisor, which has the earlier code."""
        if self._process is not None:
            self._follow(self._process)
            self._dismiss(self._process)
        self._fork()
        self._arm()

    def finish(self, on_end: Callable[[], None]) -> None:
        """Read the container's remaining messages for at most 1 s, then call `on_end` once."""
        self._is_over = True
        self._next_fork.cancel()
        if self._process is None:
            on_end()
            return
        self._on_end = on_end
        self._end_limit.start(_LAST_WORDS_S)
        self._process.until_wfd.close()  # the worker ends at this hang-up

    def stop(self) -> None:
        """Kill the worker; the caller waits until `is_gone`."""
        self._is_over = True
        self._report_merged()
        for timer in (self._next_check, self._next_fork, self._end_limit):
            timer.cancel()
        self._unwatch()
        if self._process is not None:
            self._dismiss(self._process)

    @property
    def is_gone(self) -> bool:
        """Whether every worker has been reaped."""
        return self._is_given_up or not (self._process or self._dying)

    def close(self) -> None:
        """Close every pipe; called after `stop`."""
        for each in self._dying:
            self._close(each)

    def give_up(self) -> None:
        """End the feature: the container's process gets ECONNREFUSED and does not block."""
        self._is_given_up = True
        self.stop()
        self._notify_proxy.close()
        self._end()

    def _end(self) -> None:
        self._end_limit.cancel()
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()

    # Workers.

    def _fork(self) -> None:
        if self._is_over or self._process is not None:
            return
        if sum(not each.is_reaped for each in self._dying) >= _MOST_DYING:
            self._next_fork.start(restart_policy.LONGEST_PAUSE_S)
            return
        try:
            process = self._make()
        except OSError as error:  # EMFILE, ENFILE; EAGAIN, ENOMEM: limits of the cgroup
            self._failed_forks += 1
            if restart_policy.is_logged(self._failed_forks):
                self._log.warning(
                    f"notify: fork: {error.strerror}; trying again in "
                    f"{restart_policy.FORK_AGAIN_S:g} s; failures: {self._failed_forks}"
                )
            self._next_fork.start(restart_policy.FORK_AGAIN_S)
            return
        self._failed_forks = 0
        self._process = process
        self._seen_at_fork = self._notify_proxy.memory.seen
        self._follow(process)
        self._on_change()

    def _make(self) -> _Process:
        words_rfd, words_wfd = fds.pipe(0)
        try:
            until_rfd, until_wfd = fds.pipe(0)
        except OSError:
            words_rfd.close()
            words_wfd.close()
            raise
        os.set_blocking(words_rfd.fileno(), False)
        place = reader.NotifyContext(
            title=f"{self._title} [notify]",
            socket=self._notify_proxy.socket,
            memory=self._notify_proxy.memory,
            words_wfd=words_wfd.fileno(),
            until_rfd=until_rfd.fileno(),
            null_fd=self._null_fd,
            cgroups=self._notify_proxy.cgroups,
        )
        try:
            pid = spawn.fork_worker(partial(reader.work, place), dies_with_parent=True)
        except OSError:
            words_rfd.close()
            until_wfd.close()
            raise
        finally:
            words_wfd.close()  # only the worker has it now: its death is end of file here
            until_rfd.close()
        return _Process(pid, words_rfd, until_wfd)

    def _follow(self, process: _Process) -> None:
        on_words = partial(self._on_readable, process)
        self._loop.watch(process.words_rfd.fileno(), on_words, feature=FEATURE)
        if process.pid:
            on_exit = self._loop.guarded(FEATURE, partial(self._on_exit, process))
            self._reaper.expect(process.pid, on_exit)

    def _dismiss(self, process: _Process) -> None:
        """Kill the worker. It returns to no user code, so the next worker may start at once."""
        self._process = None
        self._dying.append(process)
        self._kill(process)
        self._settle(process)

    def _kill(self, process: _Process) -> None:
        if not process.is_reaped:
            os.kill(process.pid, signal.SIGKILL)  # unreaped, so no other process has the pid

    def _on_readable(self, process: _Process) -> None:
        record = os.read(process.words_rfd.fileno(), reader.RECORD_BYTES)
        if len(record) == reader.RECORD_BYTES:
            self._report_merged()
            if self._is_watching:  # the worker has read the datagram before the loop saw it
                self._on_datagram()
            self._on_words(words.parse(record.rstrip(b"\0")))
            return
        self._close(process)  # end of file, or a partial record, which no worker writes
        self._kill(process)
        self._settle(process)

    def _on_exit(self, process: _Process, termination: Termination) -> None:
        process.is_reaped = True
        process.how = str(termination)
        self._settle(process)

    def _settle(self, process: _Process) -> None:
        """Close the pipes of a worker that is gone; replace it unless it was dismissed."""
        if not process.is_gone:
            return
        self._close(process)
        if process in self._dying:
            self._dying.remove(process)
        elif self._is_over:
            self._process = None
            self._end()
        else:
            self._process = None
            self._died(process.how)
            self._fork_after_a_death()

    def _died(self, how: str) -> None:
        self._deaths += 1
        has_progress = self._notify_proxy.memory.seen != self._seen_at_fork
        self._deaths_in_a_row = 0 if has_progress else self._deaths_in_a_row + 1
        if restart_policy.is_logged(self._deaths):
            self._log.warning(f"notify: worker {how}, replaced; deaths: {self._deaths}")

    def _fork_after_a_death(self) -> None:
        pause_s = restart_policy.pause_s(self._deaths_in_a_row)
        self._next_fork.start(pause_s)

    def _close(self, process: _Process) -> None:
        if process.words_rfd.is_open:
            self._loop.forget(process.words_rfd.fileno())
            process.words_rfd.close()
        process.until_wfd.close()

    # Whether the worker makes progress.

    def _arm(self) -> None:
        """Watch the socket until the next datagram, which starts the checks."""
        if not self._is_over and not self._is_watching:
            self._is_watching = True
            self._loop.watch(self._notify_proxy.socket.fileno(), self._on_datagram, feature=FEATURE)

    def _unwatch(self) -> None:
        if self._is_watching:
            self._is_watching = False
            self._loop.forget(self._notify_proxy.socket.fileno())

    def _on_datagram(self) -> None:
        self._unwatch()
        self._check_later()

    def _check_later(self) -> None:
        self._seen_at_check = self._notify_proxy.memory.seen
        self._next_check.start(CHECK_S)

    def _check(self) -> None:
        self._report_merged()
        memory, process = self._notify_proxy.memory, self._process
        if not memory.is_busy and not fds.is_readable(self._notify_proxy.socket.fileno()):
            self._arm()
            return
        if process is not None and memory.seen == self._seen_at_check:
            self._died(f"{process.pid} makes no progress, killed")
            self._dismiss(process)
            memory.abandoned()
            self._fork_after_a_death()
        self._check_later()

    def _report_merged(self) -> None:
        """Log the number of merged messages, each time it has doubled."""
        merged = self._notify_proxy.memory.merged if self._notify_proxy.is_open else 0
        if merged > 2 * self._reported_merged or (self._is_over and merged > self._reported_merged):
            self._reported_merged = merged
            self._log.warning(
                f"notify: {merged} messages of the container came faster than 10 a second; "
                "the last value of each word was forwarded"
            )
