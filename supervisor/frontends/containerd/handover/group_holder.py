"""The fd holder of a group: a process that outlives the shim, and starts the shim's successor.

It is the shim's parent, so containerd's `start` has forked it, not the shim. The shim sends it each
descriptor that a successor needs, under a name: the listener, each connection with its journal,
each container's fd store. containerd learns of a shim's death by the end of file of its connection.
The fd holder has the connection open, too, so containerd learns nothing.

The fd holder is a subreaper: the containers of a killed shim become its children. The kernel tells
the exit status of a process to its parent alone before Linux 6.15, but it shows a zombie's status
to a successor, see `supervisor.container.init_process`. So the fd holder reaps late.

If the fd holder is killed, the shim forks another one. That one is a child of the shim. So the
containers of a shim that is killed next are reaped by init: their statuses are `unknown` before
Linux 6.15.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time

from supervisor.children import restart_policy
from supervisor.handover.own_command import SUCCESSOR_VARIABLE
from supervisor.linux import fds, plain_json, spawn, syscalls
from supervisor.linux.errors import ShimError, reason
from supervisor.linux.event_loop import Loop
from supervisor.linux.reaper import Reaper
from supervisor.linux.signals import SignalRouter
from workers.common import fd_passing
from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

KEEP, DROP, SERVES = "keep", "drop", "serves"
"""The words of the shim's messages: a JSON array of the word and, but for the last, a name."""

LISTENER, JOURNAL, CONNECTION = "listener", "journal", "connection "
"""What the fd holder has beside fd stores. A connection's name ends with its number."""

MOST_MESSAGE_BYTES = 8192
_MOST_FDS = 8
_MOST_DOCUMENT_BYTES = 16 << 20
_MOST_FAILURES = 5
"""After so many successors in a row that did not come to serve, the group is given up. Then
containerd reads the end of file, and cleans up as after the death of any other shim."""

_FAILED_PAUSE_S = 0.1
_LONG_LIFE_S = 10.0
_LONGEST_PAUSE_S = 0.25
"""After successors that have served. containerd gives a State 2 s."""

_SEEN_AFTER_S = 1.0
"""How long a successor has for reading the status of a zombie."""


@dataclass(frozen=True, slots=True)
class Passed:
    """What the fd holder has passed to the successor that it has started.

    Attributes:
        holder_pid: The fd holder's.
        channel: Both ends: the shim's, and the fd holder's. Owned by the receiver.
        kept: The descriptors by name; owned by the receiver.
    """

    holder_pid: int
    channel: tuple[socket.socket, socket.socket]
    kept: Mapping[str, Sequence[fds.Fd]]


def arrive() -> Passed:
    """Return what the fd holder has passed to this program.

    Raises:
        ShimError: It was not started by an fd holder.
    """
    text = os.environ.pop(SUCCESSOR_VARIABLE, "")
    try:
        memfd = fds.Fd(int(text))
        try:
            document: Any = plain_json.loads(os.pread(memfd.fileno(), _MOST_DOCUMENT_BYTES, 0))
        finally:
            memfd.close()
        numbers = [*document["channel"], *(fd for kept in document["kept"].values() for fd in kept)]
        for fd in numbers:
            os.set_inheritable(fd, False)
        mine, theirs = document["channel"]
        return Passed(
            document["holder_pid"],
            (socket.socket(fileno=mine), socket.socket(fileno=theirs)),
            {name: [*map(fds.Fd, kept)] for name, kept in document["kept"].items()},
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ShimError(f"{SUCCESSOR_VARIABLE}: not an fd holder's: {text!r}: {error}") from None


def channel() -> tuple[socket.socket, socket.socket]:
    """Return the shim's end and the fd holder's end of a new channel.

    Raises:
        OSError: EMFILE, for example.
    """
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mine.setblocking(False)
    theirs.setblocking(False)
    return mine, theirs


class GroupHolder:
    """Runs in a process of its own. Owns everything from `serve` on.

    Many attributes: what it holds, and the shim that it follows.
    """

    def __init__(
        self,
        command: Sequence[str],
        ends: tuple[socket.socket, socket.socket],
        kept: Mapping[str, Sequence[int]],
        log: Callable[[str], None],
    ) -> None:
        """`ends`: of the channel: the shim's, and its own. `kept`: what it holds so far, by name.

        The shim's end stays open here, so that there is no end of file.
        """
        self._command = [*command]
        self._ends = ends
        self._kept = {name: [*held] for name, held in kept.items()}
        self._log = log
        self._loop = Loop()
        self._reaper = Reaper()
        self._router = SignalRouter(has_job_control=False)
        self._reap_later = self._loop.timer(self._reap)
        self._start_later = self._loop.timer(self._start)
        self._shim = fds.Fd(-1)
        self._serves = True
        self._served_at_s = time.monotonic()
        self._failures = self._deaths_in_a_row = 0
        self._is_over = False

    def serve(self, shim: fds.Fd) -> None:
        """Hold until the group is given up; the shim kills this process at its end.

        `shim`: a pidfd of it; owned from now on.
        """
        syscalls.set_child_subreaper(True)
        self._loop.watch(self._router.fileno(), lambda: self._router.dispatch(self._on_signal))
        self._loop.watch(self._channel.fileno(), self._read_messages)
        self._follow(shim)
        self._loop.run_until(lambda: self._is_over)

    @property
    def _channel(self) -> socket.socket:
        return self._ends[1]

    def _follow(self, shim: fds.Fd) -> None:
        self._shim = shim
        self._loop.watch(shim.fileno(), self._on_death)

    # What the shim says.

    def _read_messages(self) -> None:
        while True:
            try:
                message, received = fd_passing.receive(
                    self._channel, MOST_MESSAGE_BYTES, _MOST_FDS, socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return
            self._serve_message(message, received)

    def _serve_message(self, message: bytes, received: list[int]) -> None:
        word, *names = json.loads(message)
        for name in names:
            for fd in self._kept.pop(name, ()):
                os.close(fd)
        if word == KEEP:
            self._kept[names[0]] = received
        elif word == SERVES:
            self._serves = True
            self._served_at_s = time.monotonic()
            self._failures = 0

    # The shim's death.

    def _on_death(self) -> None:
        self._loop.forget(self._shim.fileno())
        self._shim.close()
        self._read_messages()  # the last words
        if not self._serves:
            self._failures += 1
        is_short = time.monotonic() - self._served_at_s < _LONG_LIFE_S
        self._deaths_in_a_row = self._deaths_in_a_row + 1 if is_short else 1
        if self._failures >= _MOST_FAILURES:
            self._log(f"{_MOST_FAILURES} successors have failed; containerd deletes the containers")
            self._is_over = True
            return
        if restart_policy.is_logged(self._deaths_in_a_row):
            self._log("the shim was killed; starting a successor")
        pause_s = min(restart_policy.pause_s(self._deaths_in_a_row), _LONGEST_PAUSE_S)
        if self._failures:
            pause_s = _FAILED_PAUSE_S * 2**self._failures
        self._start_later.start(pause_s)

    def _start(self) -> None:
        """Start a successor. It becomes the shim by the word `serves`."""
        self._serves = False
        ends: tuple[socket.socket, ...] = ()
        try:
            mine, theirs = ends = channel()
            with fds.in_memory("kept", self._document(mine, theirs)) as memfd:
                pid = spawn.fork_worker(lambda: self._become(memfd, mine, theirs))
            shim = fds.Fd(os.pidfd_open(pid))  # unreaped, so the pid is its own
        except OSError as error:  # EAGAIN, EMFILE, ENOMEM: the limits of the cgroup
            for end in ends:
                end.close()
            self._log(f"successor: {reason(error)}; trying again")
            self._start_later.start(restart_policy.FORK_AGAIN_S)
            return
        self._loop.forget(self._channel.fileno())
        for end in self._ends:
            end.close()
        self._ends = (mine, theirs)
        self._loop.watch(theirs.fileno(), self._read_messages)
        self._follow(shim)

    def _document(self, mine: socket.socket, theirs: socket.socket) -> bytes:
        document = {
            "holder_pid": os.getpid(),
            "channel": [mine.fileno(), theirs.fileno()],
            "kept": self._kept,
        }
        return json.dumps(document).encode()

    def _become(self, memfd: int, mine: socket.socket, theirs: socket.socket) -> None:
        numbers = [memfd, mine.fileno(), theirs.fileno()]
        numbers.extend(fd for kept in self._kept.values() for fd in kept)
        for fd in numbers:
            os.set_inheritable(fd, True)
        try:
            os.execve(
                self._command[0], self._command, {**os.environ, SUCCESSOR_VARIABLE: str(memfd)}
            )
        except OSError as error:
            self._log(f"successor: exec {self._command[0]}: {reason(error)}")
            os._exit(1)

    # Its children: the shim and what a dead shim has left.

    def _on_signal(self, signum: int) -> None:
        if signum == signal.SIGCHLD and not self._reap_later.is_running:
            self._reap_later.start(_SEEN_AFTER_S)

    def _reap(self) -> None:
        """Reap every zombie, but none that no shim has had the time to see."""
        has_seen = self._serves and time.monotonic() - self._served_at_s >= _SEEN_AFTER_S
        if not has_seen or self._reaper.reap():
            self._reap_later.start(_SEEN_AFTER_S)
