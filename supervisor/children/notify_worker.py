"""The supervisor's side of the notify worker: fork it, hear it, replace it.

The worker reads what a container chooses, so it may hang at any time, see `workers.notify.reader`.
When something has come, the supervisor looks again a little later. A worker that has taken nothing
off the socket between two looks, and has something to take off, is killed and replaced. While
nothing comes nobody looks.

The kernel kills the worker when the supervisor dies. Its successor finds the socket, what was noted
and what was told already.
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
LOOK_S = 2.0
_LAST_WORDS_S = 1.0
"""So long the end of a container waits at most for its last words, on a busy machine."""
_MOST_DYING = 4
"""Killed workers that sleep in the kernel and cannot die (a FUSE of the container's, say)."""


class _Hand:
    """One worker. Owns the pipes to it."""

    def __init__(self, pid: int, words_rfd: fds.Fd, until_wfd: fds.Fd) -> None:
        self.pid = pid
        self.words_rfd = words_rfd
        self.until_wfd = until_wfd
        self.is_reaped = pid == 0
        self.how = ""

    @property
    def is_gone(self) -> bool:
        """Whether it has ended, and all that it has told was heard."""
        return self.is_reaped and not self.words_rfd.is_open


class NotifyWorker:
    """Has one notify worker for as long as the container lives. Borrows the notify_proxy."""

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
        """Nothing happens before `start`. `on_change` follows when there is another worker."""
        self._loop = loop
        self._reaper = reaper
        self._log = log
        self._notify_proxy = notify_proxy
        self._title = title
        self._null_fd = null_fd
        self._on_words = on_words
        self._on_change = on_change
        self._next_look = loop.timer(self._look, feature=FEATURE)
        self._next_fork = loop.timer(self._fork, feature=FEATURE)
        self._end_limit = loop.timer(self._end)
        self._hand: _Hand | None = None
        self._dying: list[_Hand] = []
        self._is_over = False
        self._is_given_up = False
        self._is_watching = False
        self._on_end: Callable[[], None] | None = None
        self._deaths = self._deaths_in_a_row = self._failed_forks = 0
        self._seen_at_fork = self._seen_at_look = -1
        self._told_merged = notify_proxy.memory.merged

    # Life.

    def pack(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return what `go_on` needs."""
        hand = self._hand
        if hand is None:
            return {"pid": 0, "words": -1, "until": -1}
        return {
            "pid": hand.pid,
            "words": fd_writer.add(hand.words_rfd.fileno()),
            "until": fd_writer.add(hand.until_wfd.fileno()),
        }

    def go_on(self, packed: Mapping[str, Any], contents: FdReader, *, is_parent: bool) -> None:
        """Take over the worker of an earlier supervisor: what it has told is in its pipe."""
        words_rfd, until_wfd = contents.take(packed["words"]), contents.take(packed["until"])
        if words_rfd.is_open:
            self._hand = _Hand(packed["pid"] if is_parent else 0, words_rfd, until_wfd)

    def start(self) -> None:
        """Have a worker of this supervisor's own code."""
        if self._hand is not None:
            self._follow(self._hand)
            self._dismiss(self._hand)
        self._fork()
        self._arm()

    def finish(self, on_end: Callable[[], None]) -> None:
        """Hear the container's last words, boundedly; `on_end` follows once, maybe now."""
        self._is_over = True
        self._next_fork.cancel()
        if self._hand is None:
            on_end()
            return
        self._on_end = on_end
        self._end_limit.start(_LAST_WORDS_S)
        self._hand.until_wfd.close()  # its hang-up is the word

    def stop(self) -> None:
        """Have none any more; wait until `is_gone`."""
        self._is_over = True
        self._tell_merged()
        for timer in (self._next_look, self._next_fork, self._end_limit):
            timer.cancel()
        self._unwatch()
        if self._hand is not None:
            self._dismiss(self._hand)

    @property
    def is_gone(self) -> bool:
        """Whether each worker has been reaped."""
        return self._is_given_up or not (self._hand or self._dying)

    def close(self) -> None:
        """Close every pipe, after `stop`."""
        for each in self._dying:
            self._close(each)

    def give_up(self) -> None:
        """End the feature: the container's process gets ECONNREFUSED, and does not wait."""
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
        if self._is_over or self._hand is not None:
            return
        if sum(not each.is_reaped for each in self._dying) >= _MOST_DYING:
            self._next_fork.start(restart_policy.LONGEST_PAUSE_S)
            return
        try:
            hand = self._make()
        except OSError as error:  # EMFILE, ENFILE; EAGAIN, ENOMEM: the limits of our cgroup
            self._failed_forks += 1
            if restart_policy.is_logged(self._failed_forks):
                self._log.warning(
                    f"notify: fork: {error.strerror}; trying again; "
                    f"{self._failed_forks} times so far"
                )
            self._next_fork.start(restart_policy.FORK_AGAIN_S)
            return
        self._failed_forks = 0
        self._hand = hand
        self._seen_at_fork = self._notify_proxy.memory.seen
        self._follow(hand)
        self._on_change()

    def _make(self) -> _Hand:
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
            pid = spawn.fork_worker(partial(reader.work, place), dies_with_us=True)
        except OSError:
            words_rfd.close()
            until_wfd.close()
            raise
        finally:
            words_wfd.close()  # the worker's is the only one now: its death is our end of file
            until_rfd.close()
        return _Hand(pid, words_rfd, until_wfd)

    def _follow(self, hand: _Hand) -> None:
        on_words = partial(self._on_readable, hand)
        self._loop.watch(hand.words_rfd.fileno(), on_words, feature=FEATURE)
        if hand.pid:
            on_exit = self._loop.guarded(FEATURE, partial(self._on_exit, hand))
            self._reaper.expect(hand.pid, on_exit)

    def _dismiss(self, hand: _Hand) -> None:
        """Kill it. It runs no more, even where it takes a while to die: another one may come."""
        self._hand = None
        self._dying.append(hand)
        self._kill(hand)
        self._settle(hand)

    def _kill(self, hand: _Hand) -> None:
        if not hand.is_reaped:
            os.kill(hand.pid, signal.SIGKILL)  # unreaped, so the pid is its own

    def _on_readable(self, hand: _Hand) -> None:
        record = os.read(hand.words_rfd.fileno(), reader.RECORD_BYTES)
        if len(record) == reader.RECORD_BYTES:
            self._tell_merged()
            if self._is_watching:  # the worker was quicker than we: no event was seen
                self._on_datagram()
            self._on_words(words.parse(record.rstrip(b"\0")))
            return
        self._close(hand)  # end of file; or what no worker of ours writes
        self._kill(hand)
        self._settle(hand)

    def _on_exit(self, hand: _Hand, termination: Termination) -> None:
        hand.is_reaped = True
        hand.how = str(termination)
        self._settle(hand)

    def _settle(self, hand: _Hand) -> None:
        """Decide what follows, once nothing more comes of it."""
        if not hand.is_gone:
            return
        self._close(hand)
        if hand in self._dying:
            self._dying.remove(hand)
        elif self._is_over:
            self._hand = None
            self._end()
        else:
            self._hand = None
            self._died(hand.how)
            self._fork_after_a_death()

    def _died(self, how: str) -> None:
        self._deaths += 1
        has_progress = self._notify_proxy.memory.seen != self._seen_at_fork
        self._deaths_in_a_row = 0 if has_progress else self._deaths_in_a_row + 1
        if restart_policy.is_logged(self._deaths):
            self._log.warning(f"notify: worker {how}, replaced; {self._deaths} so far")

    def _fork_after_a_death(self) -> None:
        pause_s = restart_policy.pause_s(self._deaths_in_a_row)
        self._next_fork.start(pause_s)

    def _close(self, hand: _Hand) -> None:
        if hand.words_rfd.is_open:
            self._loop.forget(hand.words_rfd.fileno())
            hand.words_rfd.close()
        hand.until_wfd.close()

    # Whether it moves.

    def _arm(self) -> None:
        """Look when something comes; only the first of what comes is an event."""
        if not self._is_over and not self._is_watching:
            self._is_watching = True
            self._loop.watch(self._notify_proxy.socket.fileno(), self._on_datagram, feature=FEATURE)

    def _unwatch(self) -> None:
        if self._is_watching:
            self._is_watching = False
            self._loop.forget(self._notify_proxy.socket.fileno())

    def _on_datagram(self) -> None:
        self._unwatch()
        self._look_later()

    def _look_later(self) -> None:
        self._seen_at_look = self._notify_proxy.memory.seen
        self._next_look.start(LOOK_S)

    def _look(self) -> None:
        self._tell_merged()
        memory, hand = self._notify_proxy.memory, self._hand
        if not memory.is_busy and not fds.is_readable(self._notify_proxy.socket.fileno()):
            self._arm()
            return
        if hand is not None and memory.seen == self._seen_at_look:
            self._died(f"{hand.pid} does not move, killed")
            self._dismiss(hand)
            memory.abandoned()
            self._fork_after_a_death()
        self._look_later()

    def _tell_merged(self) -> None:
        """Say how many were merged, at most once in a while: at the doublings."""
        merged = self._notify_proxy.memory.merged if self._notify_proxy.is_open else 0
        if merged > 2 * self._told_merged or (self._is_over and merged > self._told_merged):
            self._told_merged = merged
            self._log.warning(
                f"notify: {merged} messages of the container came faster than 10 a second; "
                "of each word the last value was told"
            )
