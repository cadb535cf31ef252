"""The supervisor's side of its guardian: lines over a pipe, and the fd store that both have open.

    up              the supervisor takes signals from now on
    took NAME       it has done what the signal TERM, say, wants
    pid PID         the runtime has created the container's process
    starts S S ...  when successors were started lately, for the next one; monotonic seconds
    reap            the container lives, so the guardian may reap what has ended
    over STATUS     all is over: the exit files are written, and nothing is held any more

The guardian's store has the container's own store in it, and what the front end holds.
"""

from __future__ import annotations

import os
from contextlib import suppress

from supervisor.handover.own_command import SUCCESSOR_VARIABLE
from supervisor.linux import fds
from supervisor.linux.errors import ShimError, reason
from supervisor.linux.exit_status import signal_name
from supervisor.state.fd_store import FdStore, FdWriter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from supervisor.linux.event_loop import Loop
    from supervisor.state.fd_store import FdReader


class GuardianLink:
    """Owns the pipe's write end and the store's ends until `close`. It is a `StoreHolder`.

    Attributes:
        guardian_pid: The parent of this process, while the guardian lives.
        container_pid: Of the container's process, as the guardian knows it; 0 if it does not.
        starts: When successors were started lately, this one not among them.
        document: Returns what the front end holds, for the next supervisor, as JSON.
    """

    def __init__(
        self,
        guardian_pid: int,
        words: fds.Fd,
        store_ends: tuple[fds.Fd, fds.Fd],
        container_pid: int = 0,
        starts: Sequence[float] = (),
    ) -> None:
        """Own the descriptors."""
        self.guardian_pid = guardian_pid
        self.container_pid = container_pid
        self.starts = starts
        self.document: Callable[[FdWriter], dict[str, Any]] = lambda _fd_writer: {}
        self._words = words
        self._store_ends = store_ends
        self._store: FdStore | None = None
        self._kept: tuple[int, ...] = ()
        self._pidfd = fds.Fd(-1)

    @classmethod
    def arrive(cls) -> GuardianLink:
        """Return the link that a guardian has passed to the successor which it starts.

        Raises:
            ShimError: The variable or a descriptor cannot be used.
        """
        text = os.environ.pop(SUCCESSOR_VARIABLE, "")
        try:
            *numbers, container_pid = map(int, text.split()[:4])
            front, back, words = numbers
            starts = [float(word) for word in text.split()[4:]]
            for fd in numbers:
                os.set_inheritable(fd, False)
        except ValueError:
            raise ShimError(f"{SUCCESSOR_VARIABLE}: not a guardian's: {text!r}") from None
        except OSError as error:
            raise ShimError(f"{SUCCESSOR_VARIABLE}: descriptor: {reason(error)}") from error
        return cls(
            os.getppid(), fds.Fd(words), (fds.Fd(front), fds.Fd(back)), container_pid, starts
        )

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return what `restore` needs after a reload."""
        return {
            "guardian_pid": self.guardian_pid,
            "container_pid": self.container_pid,
            "words": fd_writer.add(self._words.fileno()),
            "ends": [fd_writer.add(end) for end in self.store.fds],
        }

    @classmethod
    def restore(cls, packed: Mapping[str, Any], contents: FdReader) -> GuardianLink:
        """Return the link after a reload."""
        front, back = (contents.take(end) for end in packed["ends"])
        words = contents.take(packed["words"])
        return cls(packed["guardian_pid"], words, (front, back), packed["container_pid"])

    @property
    def store(self) -> FdStore:
        """The guardian's store. It has no nonce: it is never searched for by its inodes."""
        if self._store is None:  # the first use imports `socket`, after the runtime is executed
            front, back = self._store_ends
            self._store = FdStore(ends=(front.take(), back.take()))
        return self._store

    # As a `StoreHolder`.

    def keep(self, _name: str, kept: tuple[int, ...]) -> None:
        """Put the container's store, and what the front end holds, into the guardian's store.

        Raises:
            FdStoreError: The guardian's store has what it had before.
        """
        if kept != self._kept:
            fd_writer = FdWriter()
            ends = [fd_writer.add(end) for end in kept]
            self.store.put({"ends": ends, "front_end": self.document(fd_writer)}, fd_writer)
            self._kept = kept

    def drop(self, _name: str) -> None:
        """Empty the guardian's store: the engine waits for parked descriptors to be closed."""
        self.store.clear()

    # Words.

    def up(self) -> None:
        """Tell that this process takes signals."""
        self._tell("up")

    def took(self, signum: int) -> None:
        """Tell that a signal was carried out."""
        self._tell(f"took {signal_name(signum).removeprefix('SIG')}")

    def created(self, pid: int) -> None:
        """Tell the pid of the container's process."""
        self.container_pid = pid
        self._tell(f"pid {pid}")

    def started(self, starts: Sequence[float]) -> None:
        """Tell when successors were started lately, this one among them."""
        self._tell(" ".join(["starts", *(f"{each:.1f}" for each in starts)]))

    def reap(self) -> None:
        """Have the guardian reap each child that has ended. The container must be alive."""
        self._tell("reap")

    def over(self, status: int) -> None:
        """Tell that all is over."""
        self._tell(f"over {status}")

    def _tell(self, line: str) -> None:
        with suppress(BrokenPipeError):  # it is dead
            os.write(self._words.fileno(), f"{line}\n".encode())

    # The guardian's life.

    @property
    def is_alive(self) -> bool:
        """Whether the guardian is the parent of this process still."""
        return os.getppid() == self.guardian_pid

    def watch(self, loop: Loop, on_death: Callable[[], None]) -> None:
        """Call `on_death` once, when the guardian has died; maybe at once."""

        def look() -> None:
            if not self.is_alive:
                loop.forget(self._pidfd.fileno())
                on_death()

        with suppress(OSError):  # ESRCH; EMFILE, and then its death is not noticed
            self._pidfd = fds.Fd(os.pidfd_open(self.guardian_pid))
        if not self.is_alive:
            on_death()
        elif self._pidfd.is_open:
            loop.watch(self._pidfd.fileno(), look)

    def close(self) -> None:
        """Close what is owned."""
        if self._store is not None:
            self._store.close()
        for each in (self._words, self._pidfd, *self._store_ends):
            each.close()
