"""What the engine has given to this process: its pipes, its descriptors, its environment."""

from __future__ import annotations

import os
from contextlib import suppress

from supervisor.frontends.conmon.engine_pipes import (
    ATTACH,
    START,
    SYNC,
    EnginePipe,
    inherited,
    message,
)
from supervisor.linux import fds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from supervisor.frontends.conmon.options import Options
    from supervisor.state.fd_store import FdReader, FdWriter

_SCORE = "/proc/self/oom_score_adj"
_NEVER_KILLED = "-1000"
_TIMED_OUT = b"command timed out"


def inherited_fds() -> list[int]:
    """Return the descriptors above 2 that another program has left open for this one.

    Ports that a container publishes, and what `--preserve-fds` names. Called before anything is
    opened here.
    """
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the listing itself
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
    return sorted(found)


class Engine:
    """Owns the pipes and the parked descriptors until `hang_up` and `release`.

    Attributes:
        start: For a second word before an exec; closed where there is none.
        score: The oom_score_adj with which the engine has started this program.
    """

    def __init__(
        self,
        options: Options,
        environment: Mapping[str, str],
        pipes: Mapping[str, fds.Fd],
        parked: Sequence[int],
        score: str,
        *,
        sets_listen_pid: bool = False,
    ) -> None:
        """Own the descriptors; see `inherit` and `restore`."""
        self._options = options
        self.environment = environment
        self.start = pipes[START]
        self._sync, self._attach = EnginePipe(pipes[SYNC]), EnginePipe(pipes[ATTACH])
        self._parked = [*parked]
        self.score = score
        self._sets_listen_pid = sets_listen_pid

    @classmethod
    def inherit(cls, options: Options, environment: Mapping[str, str]) -> Engine:
        """Take what the environment names.

        Raises:
            UsageError: A variable names no descriptor.
        """
        parked = inherited_fds()
        pipes = {name: inherited(name, environment) for name in (START, SYNC, ATTACH)}
        ours = {environment.get(name) for name in pipes}
        pid = environment.get("LISTEN_PID")
        return cls(
            options,
            environment,
            pipes,
            [fd for fd in parked if str(fd) not in ours],
            _read_score(),
            sets_listen_pid=pid is not None
            and (pid == str(os.getpid()) or options.replace_listen_pid),
        )

    @classmethod
    def restore(
        cls,
        options: Options,
        environment: Mapping[str, str],
        packed: Mapping[str, Any],
        contents: FdReader,
    ) -> Engine:
        """Return what an earlier supervisor had; nothing is taken from the environment."""
        pipes = {START: fds.Fd(-1), SYNC: contents.take(packed["sync"]), ATTACH: fds.Fd(-1)}
        parked = [contents.take(index).take() for index in packed["parked"]]
        return cls(options, environment, pipes, parked, packed["score"])

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return what `restore` needs, when the runtime has created the process."""
        return {
            "sync": fd_writer.add(self._sync.fileno()),
            "parked": [fd_writer.add(fd) for fd in self._parked],
            "score": self.score,
        }

    @property
    def has_attach_pipe(self) -> bool:
        """Whether the engine waits for the attach socket."""
        return self._attach.is_open

    def prepare_runtime(self, environment: dict[str, str]) -> None:
        """Give the runtime's process what is its own; called in the child."""
        self.restore_oom_score()
        if self._sets_listen_pid:
            environment["LISTEN_PID"] = str(os.getpid())

    def refuse_oom_killer(self) -> None:
        """Ask the kernel to kill this process last; without the right to, nothing happens."""
        _write_score(_NEVER_KILLED)

    def restore_oom_score(self) -> None:
        """Have the score of this process as the engine had it."""
        _write_score(self.score)

    # What the engine is told.

    def is_listening(self) -> None:
        """Clients can attach."""
        self._attach.send(message("data", 0))
        self._attach.close()

    def created(self, pid: int) -> None:
        """The runtime has made the process. The first version of exec has no word for that."""
        if self._options.api_version or not self._options.exec:
            self._sync.send(message(self._key, pid))

    def failed(self, words: bytes) -> None:
        """There is no process."""
        self._sync.send(message(self._key, -1, words))

    def exec_ended(self, status: int, *, has_timed_out: bool) -> None:
        """The exec'd process has ended."""
        self._sync.send(message(self._key, status, _TIMED_OUT if has_timed_out else None))

    @property
    def _key(self) -> str:
        if self._options.api_version:
            return "data"
        return "exit_code" if self._options.exec else "pid"

    # The end.

    def release(self) -> None:
        """Close the parked descriptors: published ports are free before the exit file is there."""
        while self._parked:
            with suppress(OSError):
                os.close(self._parked.pop())

    def hang_up(self) -> None:
        """Close the pipes."""
        self.start.close()
        self._attach.close()
        self._sync.close()


def take_null_stdio() -> None:
    """Put /dev/null on descriptors 0, 1 and 2: the engine waits for the end of its pipes."""
    null = fds.Fd(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
    for fd in range(3):
        os.dup2(null.fileno(), fd, inheritable=True)
    null.close()


def _read_score() -> str:
    try:
        with open(_SCORE) as file:
            return file.read().strip()
    except OSError:  # no /proc of ours
        return "0"


def _write_score(score: str) -> None:
    with suppress(OSError), open(_SCORE, "w") as file:
        file.write(score)
