"""The supervised process, from when it is there: what is known of it, and of its end.

Its end is told once and by several: the kernel has the status and the count of its OOM killer, a
supervisor before us may have written `exitStatus`. Here they come together.
"""

from __future__ import annotations

from supervisor.container.payload import Payload
from supervisor.linux.exit_status import Unknown, from_protocol_status, protocol_status
from supervisor.state.directory import ExitStatusFile
from supervisor.systemd.oom import OomWatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from supervisor.linux.event_loop import Loop
    from supervisor.linux.exit_status import Termination
    from supervisor.linux.reaper import Reaper
    from supervisor.state.directory import StateDirectory
    from supervisor.state.fd_store import FdReader, FdWriter


class Process:
    """One process and its end. Owns what it is made of until `close`.

    Attributes:
        pid: In our pid namespace; somebody else's once it has been reaped.
        termination: None while it lives.
        oom_kills: How many of its container the kernel had killed for want of memory when its end
            was recorded.
    """

    def __init__(
        self,
        payload: Payload,
        state_dir: StateDirectory,
        oom: OomWatch,
        packed: Mapping[str, Any] | None = None,
    ) -> None:
        """Take the payload, borrow the state directory; see `of_child` and `go_on`."""
        self._payload = payload
        self._state_dir = state_dir
        self._exit_status = ExitStatusFile(state_dir, packed)
        self._oom = oom
        self._on_end: Callable[[], None] = lambda: None
        self.pid = payload.pid
        self.termination: Termination | None = None
        self.oom_kills = 0

    @classmethod
    def of_child(cls, loop: Loop, reaper: Reaper, pid: int, state_dir: StateDirectory) -> Process:
        """Return a child of ours that has just been created, or is dead already."""
        payload = Payload.of_child(loop, reaper, pid)
        oom = OomWatch(pid)
        return cls(payload, state_dir, oom)

    @classmethod
    def go_on(
        cls,
        loop: Loop,
        reaper: Reaper,
        state_dir: StateDirectory,
        packed: Mapping[str, Any],
        contents: FdReader,
        *,
        is_parent: bool,
    ) -> Process:
        """Return the process of an earlier supervisor, which has `packed` it; see `Payload`."""
        payload = Payload.go_on(loop, reaper, packed["payload"], contents, is_parent=is_parent)
        oom = OomWatch(payload.pid, packed["oom"])
        return cls(payload, state_dir, oom, packed["exit_status"])

    def pack(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return what `go_on` needs, among what others have packed."""
        return {
            "payload": self._payload.pack(fd_writer),
            "exit_status": self._exit_status.pack(),
            "oom": self._oom.snapshot(),
        }

    @property
    def is_alive(self) -> bool:
        """Whether nobody has told of its end so far."""
        return self.termination is None

    def expect(self, on_end: Callable[[], None]) -> None:
        """Call `on_end` once, when its end is known; maybe at once."""
        self._on_end = on_end
        self._payload.expect(self._on_exit)

    def _on_exit(self, termination: Termination) -> None:
        if isinstance(termination, Unknown):
            # A supervisor that was killed after it had seen the end may have written it down.
            recorded = from_protocol_status(self._state_dir.read_exit_status())
            termination = recorded or termination
        self.termination = termination
        self._on_end()

    def signal(self, signum: int) -> None:
        """Send it a signal, if it lives."""
        if self.is_alive:
            self._payload.signal(signum)

    def record_end(self) -> None:
        """Write `exitStatus`, and only then look for what else there is to know.

        Raises:
            OSError: There is none.
        """
        if self.termination is None:
            raise AssertionError("an exit to record, and none seen")
        try:
            self._exit_status.write(protocol_status(self.termination))
        finally:
            self.oom_kills = self._oom.kills()

    def end_in_words(self) -> str:
        """Say how it ended; empty while it lives."""
        if self.termination is None:
            return ""
        if not self.oom_kills:
            return str(self.termination)
        return (
            f"{self.termination}; out of memory: "
            f"the kernel killed {self.oom_kills} of its processes"
        )

    def close(self) -> None:
        """Forget it."""
        self._payload.close()
        self._exit_status.close()
