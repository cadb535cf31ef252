"""Starting a successor of a killed supervisor, where no service manager does it.

The fd holder of a daemon waits for the supervisor's death. Then it executes the installed program
with the fd store, as a reload does. That program adopts the container. It claims the container's
lock like every adopter, so there is never a second supervisor.

The fd holder runs the code of its supervisor. The successor forks a new fd holder, which kills it.
"""

from __future__ import annotations

import os
import select
import time

from supervisor.children import restart_policy
from supervisor.handover.own_command import SUCCESSOR_VARIABLE
from supervisor.linux import fds, plain_json, reaper, spawn, syscalls
from supervisor.linux.errors import AlreadySupervisedError, UsageError, reason
from supervisor.linux.exit_status import Exited
from supervisor.state import directory
from supervisor.state.fd_store import FdStore, FdStoreError
from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from supervisor.linux.exit_status import Termination
    from supervisor.state.log import Log

LIMIT_VARIABLE = "FORKSHIM_SUCCESSORS"
"""In the environment of `forkshim run`: how many successors are started within `WINDOW_S`."""

DEFAULT_LIMIT = 5
WINDOW_S = 60.0
_EXEC_FAILED_STATUS = 127
_LONGEST_CAUSE = 1024
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 16.0
_LOCK_PAUSE_S = 15.0
"""Another adopter has the lock. It kills this fd holder as soon as it has forked its own."""
_WAS_TOO_LATE = Exited(AlreadySupervisedError.exit_status)
_LONGEST_HANDOVER = 256
_REPLACING_S = 2.0
_LONGEST_EVENTS = 4096


def limit(environment: Mapping[str, str]) -> int:
    """Return how many successors may be started within `WINDOW_S`; 0 for none.

    Raises:
        UsageError: The variable is not a number.
    """
    text = environment.get(LIMIT_VARIABLE, str(DEFAULT_LIMIT))
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UsageError(f"{LIMIT_VARIABLE}: not a number of starts: {text!r}")
    return int(text)


@dataclass(frozen=True, slots=True)
class Succession:
    """What the fd holder passes to the successor that it starts.

    Attributes:
        store: The fd store; owned by the receiver.
        path: ROOT/ID of the container.
        starts: When successors were started lately, this one included; monotonic seconds.
    """

    store: FdStore
    path: str
    starts: list[float]


def arrive() -> Succession:
    """Return what `SuccessorStarter` has passed to this program.

    Raises:
        FdStoreError: The variable or a descriptor cannot be used.
    """
    text = os.environ.pop(SUCCESSOR_VARIABLE, "")
    try:
        document: Any = plain_json.loads(text.encode(errors="replace"))
        front, back = map(int, document["ends"])
        path, starts = str(document["path"]), [float(each) for each in document["starts"]]
    except (KeyError, TypeError, ValueError):
        raise FdStoreError(f"{SUCCESSOR_VARIABLE}: not an fd holder's: {text!r}") from None
    try:
        for end in (front, back):
            os.set_inheritable(end, False)
    except OSError as error:
        raise FdStoreError(f"{SUCCESSOR_VARIABLE}: descriptor: {reason(error)}") from error
    return Succession(FdStore(ends=(front, back)), path, starts)


class SuccessorStarter:
    """Runs in the fd holder. Borrows the store and the log across the fork."""

    def __init__(
        self,
        command: Sequence[str],
        container_id: str,
        path: str,
        state_dir: str,
        store_fds: Sequence[int],
        log: Log,
        *,
        limit: int,
        starts: Sequence[float],
    ) -> None:
        """Start nothing before `serve`.

        Args:
            command: How the supervisor was started; not used with the limit 0.
            container_id: For the advice in the log.
            path: ROOT/ID.
            state_dir: Where the file `handover` is.
            store_fds: The ends of the store.
            log: The supervisor's log.
            limit: How many successors may be started within `WINDOW_S`. With 0 the fd holder only
                holds the store, as long as the file `handover` leads to it.
            starts: When successors were started lately; monotonic seconds.
        """
        self._command = [*command]
        self._id = container_id
        self._path = path
        self._handover = os.path.join(state_dir, directory.HANDOVER_NAME)
        self._store_fds = [*store_fds]
        self._log = log
        self._limit = limit
        self._starts = [*starts]
        self._failures = 0

    @property
    def fds(self) -> tuple[int, ...]:
        """The log's descriptors; empty if no successor is started, and so nothing is logged."""
        return self._log.fds if self._limit else ()

    def serve(self, supervisor_pid: int) -> None:
        """Wait for the supervisor's death, then start successors while one is needed.

        Returns when the container has ended in order. A successor that has its own fd holder kills
        this process.
        """
        _wait_until_dead(supervisor_pid)
        if self._limit:
            self._log.warning(f"supervisor {supervisor_pid} was killed; starting a successor")
        while self._is_kept():
            if not self._is_needed() or not self._may_start():
                self._stay()
            else:
                self._follow(self._start())

    def _is_needed(self) -> bool:
        """Return whether the file `handover` still leads to this fd store."""
        inodes = [str(os.fstat(end).st_ino) for end in self._store_fds]
        return self._read_handover().split()[: len(inodes)] == inodes

    def _is_kept(self) -> bool:
        """Return whether the state directory has a file `handover`, also a spoilt file.

        A supervisor that ends in order removes the file. A person may be replacing the file.
        """
        if not os.path.lexists(self._handover):
            time.sleep(_REPLACING_S)
        return os.path.lexists(self._handover)

    def _may_start(self) -> bool:
        now_s = time.monotonic()
        self._starts = [at_s for at_s in self._starts if now_s - WINDOW_S < at_s <= now_s]
        if len(self._starts) < self._limit:
            return True
        if self._limit:
            self._log.warning(
                f"{self._limit} successors in {WINDOW_S:g} s have not lasted; no more are started. "
                f"The container goes on; `forkshim adopt {self._id}` adopts it"
            )
        return False

    def _start(self) -> Termination | None:
        """Start a successor, wait for its end, and log how it failed. Returns None without a fork.

        The successor's stderr is a file in memory until it supervises: nothing waits for a reader.
        """
        self._starts.append(time.monotonic())
        try:
            with fds.in_memory("stderr", b"") as stderr:
                end = reaper.wait_for(spawn.fork_worker(lambda: self._become(stderr)))
                if end not in (Exited(0), _WAS_TOO_LATE):
                    cause = _last_line(stderr)  # empty where the log has it, and of a kill
                    self._say_failure(f"{end}: {cause}" if cause else f"{end}")
                return end
        except OSError as error:  # EAGAIN, ENOMEM: the limits of the cgroup
            self._say_failure(f"not started: {reason(error)}")
            return None

    def _become(self, stderr: int) -> None:
        os.dup2(stderr, 2)
        told = {"ends": self._store_fds, "path": self._path, "starts": self._starts}
        environment = {**os.environ, SUCCESSOR_VARIABLE: plain_json.dumps(told).decode()}
        for fd in self._store_fds:
            os.set_inheritable(fd, True)
        try:
            os.execve(self._command[0], self._command, environment)
        except OSError as error:
            os.write(2, f"exec {self._command[0]}: {reason(error)}".encode(errors="replace"))
            os._exit(_EXEC_FAILED_STATUS)

    def _follow(self, end: Termination | None) -> None:
        """Decide how long to wait before the next start."""
        if end == _WAS_TOO_LATE:
            self._starts.pop()
            self._pause(_LOCK_PAUSE_S)
        elif end != Exited(0):
            self._pause(min(_FIRST_PAUSE_S * 2**self._failures, _LONGEST_PAUSE_S))
            self._failures += 1

    def _say_failure(self, what: str) -> None:
        if restart_policy.is_logged(self._failures + 1):
            self._log.warning(f"successor: {what}; {self._limit} are tried in {WINDOW_S:g} s")

    def _pause(self, pause_s: float) -> None:
        """Wait, unless the container needs no successor any more."""
        if self._is_needed():
            time.sleep(pause_s)

    def _stay(self) -> None:
        """Hold the store until an adopter kills this process, or the file `handover` is removed.

        A spoilt file does not count as removed: a person may put the right file back.
        """
        while self._is_kept():
            try:
                watch = fds.Fd(syscalls.watch_removals(os.path.dirname(self._handover)))
            except OSError:
                # Just gone. Or this user has no inotify instance left: then a look each 15 s, which
                # delays only the end of a process that holds nothing of use any more.
                time.sleep(_LOCK_PAUSE_S if self._is_kept() else 0)
                continue
            if self._is_kept():
                os.read(watch.fileno(), _LONGEST_EVENTS)
            watch.close()

    def _read_handover(self) -> str:
        try:
            with open(self._handover, "rb", opener=fds.open_without_waiting) as file:
                return (file.read(_LONGEST_HANDOVER) or b"").decode("ascii", "replace")
        except OSError:
            return ""


def _last_line(stderr: int) -> str:
    size = os.fstat(stderr).st_size
    text = os.pread(stderr, _LONGEST_CAUSE, max(0, size - _LONGEST_CAUSE))
    return text.decode(errors="replace").rstrip().rpartition("\n")[2]


def _wait_until_dead(supervisor_pid: int) -> None:
    """Wait for the death of this process's parent. A reload keeps the pid, and ends no wait."""
    try:
        pidfd = fds.Fd(os.pidfd_open(supervisor_pid))
    except ProcessLookupError:
        return
    # The supervisor may have died before pidfd_open(2): then the pid may be another process's.
    if os.getppid() == supervisor_pid:
        poller = select.poll()
        poller.register(pidfd.fileno(), select.POLLIN)
        poller.poll()
    pidfd.close()
