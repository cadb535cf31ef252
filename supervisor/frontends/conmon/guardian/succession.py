"""What a supervisor does when its guardian was killed: it becomes the guardian itself.

The engine may look for the pid at once, so --conmon-pidfile gets this process's. Then, as soon as
nothing is halfway, this process executes the guardian, and a successor adopts the container. If the
container ends before, this process does what the guardian would have done.
"""

from __future__ import annotations

import os
import signal

from supervisor.frontends.conmon.exit_files import write_whole
from supervisor.frontends.conmon.guardian import start
from supervisor.frontends.conmon.guardian.script import PASSED_ON, State
from supervisor.linux import fds, signals
from supervisor.linux.errors import reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from supervisor.container.container import Container
    from supervisor.frontends.conmon.engine import Engine
    from supervisor.frontends.conmon.guardian.link import GuardianLink
    from supervisor.frontends.conmon.options import Options
    from supervisor.state.log import Log

_FAILED = 1
_WORDS_BYTES = 4096
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.002, 0.25
"""What is halfway has events of its own, which come first."""


class Succession:
    """Of one container. Borrows everything."""

    def __init__(
        self, options: Options, engine: Engine, log: Log, link: GuardianLink, container: Container
    ) -> None:
        """Do nothing before `begin`."""
        self._options = options
        self._engine = engine
        self._log = log
        self._link = link
        self._container = container
        self._pause_s = _FIRST_PAUSE_S

    def begin(self) -> None:
        """Watch the guardian from now on."""
        self._link.watch(self._container.host.loop, self._on_death)

    def _on_death(self) -> None:
        self._log.warning("guardian was killed; this process takes its place")
        path = self._options.conmon_pidfile
        if path:
            try:
                write_whole(path, str(os.getpid()))
            except OSError as error:
                self._log.warning(f"write {path}: {reason(error)}; it names a dead process")
        self._look()

    def _look(self) -> None:
        container = self._container
        if not container.is_alive or container.is_stopping:
            return
        if not container.running.snapshot.is_settled:
            pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _LONGEST_PAUSE_S)
            container.host.loop.timer(self._look).start(pause_s)
            return
        self._become()

    def _become(self) -> None:
        store = self._link.store
        self._container.running.handover.publish()
        if store.is_empty:
            self._log.warning("guardian: there is none from now on: the fd store is empty")
            return
        signals.block_all()
        waiting = [
            name for name in PASSED_ON if getattr(signal, f"SIG{name}") in signal.sigpending()
        ]
        title = start.title_of(self._options)
        state = State(0, self._container.pid, title, self._engine.score, waiting)
        words_rfd, words_wfd = fds.pipe(_WORDS_BYTES)
        words_wfd.close()  # at its end of file the guardian starts a successor
        try:
            start.become(
                self._options, self._engine.environment, state, words_rfd.fileno(), store.fds
            )
        except OSError as error:
            # Its descriptors 3, 5 and 6 are gone, and its handlers.
            self._log.error(f"guardian: exec: {reason(error)}")
            os._exit(_FAILED)
