"""The reload: this process executes the installed version, and hands all its containers over.

A child does a dry run of that version first, see `supervisor.handover.reexec`. Every container must
run, or be created and wait for `start`. Nothing of it may be halfway: a worker that is leaving, a
call of the runtime.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from enum import Enum, auto

from supervisor.handover import reexec
from supervisor.linux import signals
from supervisor.linux.errors import ShimError, reason
from supervisor.state.fd_store import FdStore, FdWriter
from supervisor.state.journal_log import Kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Protocol

    from supervisor.linux.event_loop import Loop
    from supervisor.oci.invoke import RuntimeInvoker
    from supervisor.state.log import Log

    class ReloadSource(Protocol):
        """One container, as a reload sees it: `supervisor.container.snapshot.Snapshot`."""

        @property
        def container_id(self) -> str:
            """The container's id."""

        @property
        def command(self) -> tuple[str, ...]:
            """How to start this program again; empty where another container of the host says."""

        @property
        def environment(self) -> Mapping[str, str]:
            """The environment that this process was started with."""

        @property
        def lock_fd(self) -> int:
            """The front end's lock, which the reload keeps; -1 for none."""

        @property
        def invoker(self) -> RuntimeInvoker:
            """Runs the dry run."""

        @property
        def is_starting(self) -> bool:
            """Whether the container is being opened, created or started."""

        @property
        def is_running(self) -> bool:
            """Whether the program runs, or waits for the verb `start`. No stop was asked for."""

        @property
        def is_settled(self) -> bool:
            """Whether nothing is halfway."""

        def document_for_reload(self, fd_writer: FdWriter) -> dict[str, Any]:
            """Return all that is known and held of the container."""

        def reloading(self) -> None:
            """Note that a reload has begun."""

        def reload_is_over(self) -> None:
            """Note that the old version goes on."""

    class ReloadHost(Protocol):
        """The process, as a reload sees it: `supervisor.container.host.Host`."""

        @property
        def loop(self) -> Loop:
            """Has the timer of the next look."""

        @property
        def log(self) -> Log:
            """The host's."""

        def reload_sources(self) -> Sequence[ReloadSource]:
            """Return the containers; each comes before the processes that were exec'd in it."""

        @property
        def front_end_document(self) -> Callable[[FdWriter], Any]:
            """Returns what the front end needs after the reload, as JSON."""

        @property
        def is_front_end_settled(self) -> Callable[[], bool]:
            """Says whether the front end can be reloaded at this moment."""


_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.25
"""A worker that is leaving and a noted signal have events of their own, which come first."""

_PATIENCE_S = 10.0
"""How long something may stay halfway. A worker in uninterruptible sleep does not leave."""


class Phase(Enum):
    """How far a reload is."""

    IDLE = auto()
    DEFERRED = auto()
    """A container does not run yet."""
    REHEARSING = auto()
    """A child does a dry run of the installed version, or is about to."""
    HANDING_OVER = auto()
    """The dry run has succeeded. The supervisor waits until nothing is halfway."""


class Reload:
    """Serves one host. Borrows everything."""

    def __init__(self, host: ReloadHost) -> None:
        """Wait for `ask`."""
        self._host = host
        self._next_look = host.loop.timer(self._dry_run)
        self._phase = Phase.IDLE
        self._asked_at_s, self._pause_s = 0.0, _FIRST_PAUSE_S

    def ask(self) -> None:
        """Execute the installed version, if its dry run succeeds. Waits for starting containers."""
        sources = self._host.reload_sources()
        if self._phase is not Phase.IDLE:
            self._host.log.info("SIGHUP: a reload is under way")
        elif any(each.is_starting for each in sources):
            self._phase = Phase.DEFERRED
        elif not any(each.is_running for each in sources):
            self._host.log.info("SIGHUP: not reloaded, the container is on its way out")
        else:
            self._phase = Phase.REHEARSING
            self._asked_at_s, self._pause_s = time.monotonic(), _FIRST_PAUSE_S
            for each in sources:
                each.reloading()
            self._dry_run()

    def look(self) -> None:
        """Begin a deferred reload: a container has begun to run, or has ended."""
        if self._phase is Phase.DEFERRED and self._host.reload_sources():
            self._phase = Phase.IDLE
            self.ask()

    def _is_moment(self) -> bool:
        sources = self._host.reload_sources()
        is_settled = all(each.is_running and each.is_settled for each in sources)
        return is_settled and self._host.is_front_end_settled()

    def _dry_run(self) -> None:
        if not self._is_moment():
            self._wait_and(self._dry_run)
            return
        with ExitStack() as stack:
            try:
                main, fd_writer = self._main, FdWriter()
                reexec.dry_run(
                    main.invoker,
                    main.command,
                    main.environment,
                    self._document(fd_writer, stack),
                    fd_writer,
                    self._on_verdict,
                )
            except ShimError as error:
                self._refuse(str(error))
            except OSError as error:
                self._refuse(reason(error))

    def _on_verdict(self, why_not: str) -> None:
        if why_not:
            self._refuse(why_not)
        else:
            self._phase = Phase.HANDING_OVER
            self._hand_over()

    def _hand_over(self) -> None:
        """Execute the installed version as soon as nothing is halfway."""
        if not any(each.is_running for each in self._host.reload_sources()):
            self._refuse("the container is on its way out")
            return
        signals.block_all()
        try:
            why_not = self._reexec() if self._is_moment() else None
        finally:
            signals.unblock_all()  # execve(2) has failed, or was not tried
        if why_not is not None:
            self._refuse(why_not)
        else:
            self._wait_and(self._hand_over)

    def _wait_and(self, look_again: Callable[[], None]) -> None:
        """Call `look_again` after a pause, each twice as long as the last. Give up at the limit."""
        if time.monotonic() - self._asked_at_s > _PATIENCE_S:
            self._refuse(self._why_no_moment())
            return
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._next_look.cancel()
        self._next_look = self._host.loop.timer(look_again)
        self._next_look.start(pause_s)

    def _why_no_moment(self) -> str:
        stopped = [each for each in self._host.reload_sources() if not each.is_running]
        if not stopped and not self._host.is_front_end_settled():
            return "a client's request or an event is under way"
        if not stopped:
            return "its workers do not come to rest"
        return f"{stopped[0].container_id} does not run, and has not ended"

    @property
    def _main(self) -> ReloadSource:
        """The container whose front end has said how to start this program again."""
        sources = self._host.reload_sources()
        return next((each for each in sources if each.command), sources[0])

    def _reexec(self) -> str:
        """Execute the installed version. Returns only if that has failed: the reason."""
        self._host.log.info("SIGHUP: reloading")
        main, fd_writer = self._main, FdWriter()
        with ExitStack() as stack:
            try:
                document = self._document(fd_writer, stack)
                return str(
                    reexec.reexec(main.command, main.environment, document, fd_writer, main.lock_fd)
                )
            except ShimError as error:
                return str(error)
            except OSError as error:
                return reason(error)

    def _document(self, fd_writer: FdWriter, stack: ExitStack) -> dict[str, Any]:
        """Return the host's document. `stack` owns the fd store that each container gets for it.

        A store of its own for each: one message takes 253 descriptors.
        """
        stores = []
        for each in self._host.reload_sources():
            store, of_container = FdStore(), FdWriter()
            stack.callback(store.close)
            store.put(each.document_for_reload(of_container), of_container)
            stores.append({"ends": [fd_writer.add(end) for end in store.fds], "nonce": store.nonce})
        return reexec.document(stores, self._host.front_end_document(fd_writer))

    def _refuse(self, why: str) -> None:
        self._phase = Phase.IDLE
        self._host.log.warning(
            f"SIGHUP: not reloaded, the old version goes on: {why}", Kind.NOT_RELOADED
        )
        for each in self._host.reload_sources():
            each.reload_is_over()
