"""What a failed create leaves: errors in the runtime's log, and an incomplete container."""

from __future__ import annotations

import time

from supervisor.linux.errors import ShimError
from supervisor.oci import command_line, kill_scope
from supervisor.state.log import rfc3339

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.linux.exit_status import Termination
    from supervisor.linux.reaper import Reaper
    from supervisor.oci.invoke import RuntimeInvoker
    from supervisor.state.directory import StateDirectory
    from supervisor.state.log import Log

_MOST_LOG = 1 << 20


def explain(state_dir: StateDirectory) -> str:
    """Return all errors in the runtime's log; "" if it has none or cannot be read."""
    try:
        return command_line.errors(state_dir.read(command_line.LOG_NAME, _MOST_LOG))
    except OSError:
        return ""  # ENOENT: it wrote none; EISDIR, EAGAIN: another kind of file has its name


class FailedCreateCleanup:
    """Deletes what a failed create has left, but never a container that was there before."""

    def __init__(
        self,
        reaper: Reaper,
        invoker: RuntimeInvoker,
        command: command_line.RuntimeCommand,
        log: Log,
        *,
        began_at: str,
        was_killed: bool = False,
    ) -> None:
        """Borrow everything.

        `began_at`: when the create began, RFC 3339 in UTC. `was_killed`: a signal killed the
        runtime, which may have left an incomplete container.
        """
        self._was_killed = was_killed
        self._reaper = reaper
        self._invoker = invoker
        self._command = command
        self._log = log
        self._began_at = began_at
        self._on_end: Callable[[], None] = lambda: None

    def delete(self, on_end: Callable[[], None]) -> None:
        """Read the state of the id; delete the container if this create has made it."""
        self._on_end = on_end
        try:
            self._invoker.capture(self._command.state(), self._on_state)
        except ShimError as error:
            self._log.warning(str(error))
            on_end()

    def _on_state(self, _termination: Termination, output: bytes) -> None:
        state = command_line.parse_state(output)
        if state is None and not self._was_killed:
            self._on_end()  # the runtime has no such container
            return
        if state is None:  # `delete --force` removes what a killed runtime may have left
            self._force_delete(0)
            return
        is_child = state.pid > 0 and self._reaper.has_child(state.pid)
        if not command_line.is_ours(
            state,
            before_create=self._began_at,
            now=rfc3339(time.time_ns()),
            is_child=is_child,
            bundle=self._command.bundle,
        ):
            self._log.info(
                f"{self._command.container_id}: not deleted, another supervisor has created it"
            )
            self._on_end()
            return
        self._force_delete(state.pid if is_child else 0)

    def _force_delete(self, pid: int) -> None:
        danger = kill_scope.of(self._command.config_path, pid).unsafe_cgroup()
        if danger:
            self._log.warning(kill_scope.not_deleted(self._command.name, danger))
            self._on_end()
            return
        try:
            self._invoker.run(
                self._command.delete(force=True),
                lambda _termination: self._on_end(),
                cwd=self._command.directory,
            )
        except ShimError as error:
            self._log.warning(str(error))
            self._on_end()
