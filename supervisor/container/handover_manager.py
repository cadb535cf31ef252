"""The way to the next supervisor: by a reload of this process, or by adoption when it was killed.

For the first all is handed over at one moment, see `supervisor.handover.reexec`. For the second the
supervisor publishes all that it holds in the fd store, and again with each change. The fd holder
and, if asked to, systemd keep the store open.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from enum import Enum, auto

from supervisor.children.fd_holder import FdHolder
from supervisor.handover import reexec, successor
from supervisor.handover.discover import KEPT_NAMES
from supervisor.handover.successor import SuccessorStarter
from supervisor.linux import fds, signals
from supervisor.linux.errors import ShimError, reason
from supervisor.state.fd_store import FdReader, FdStore, FdWriter
from supervisor.state.journal_log import Kind
from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    from supervisor.container.request import StartRequest
    from supervisor.linux.event_loop import Loop
    from supervisor.linux.reaper import Reaper
    from supervisor.oci.invoke import RuntimeInvoker
    from supervisor.state.directory import StateDirectory
    from supervisor.state.log import Log

    class HandoverSource(Protocol):
        """The supervisor that is to be followed."""

        @property
        def is_alive(self) -> bool:
            """Whether its container has started and not ended."""

        @property
        def is_running(self) -> bool:
            """Whether the same, and no stop was asked for."""

        @property
        def is_settled(self) -> bool:
            """Whether nothing is halfway."""

        def document(self, fd_writer: FdWriter) -> dict[str, Any]:
            """Return all that it knows and holds."""

        def add_own(self, document: dict[str, Any], fd_writer: FdWriter) -> None:
            """Add what only this very process may go on with, and no adopter."""

        def reloading(self) -> None:
            """A reload has begun."""

        def reload_is_over(self) -> None:
            """It was not done."""

        @property
        def counters_fd(self) -> int:
            """The memory that every worker of the container has mapped, and no other process."""


_NEXT_MOMENT_S = 0.002
_LAST_MOMENT_S = 0.25
"""Half-gone workers and noted signals have events of their own, which come first."""

_PATIENCE_S = 10.0
"""So long something may be halfway: a worker that can be neither forked nor let go, say."""


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What a dead supervisor has left.

    Attributes:
        store: Its fd store.
        workers: pidfds of its workers.
        fd_holders: pidfds of the processes that hold the store for its successor.
    """

    store: FdStore
    workers: list[fds.Fd]
    fd_holders: list[fds.Fd]


@dataclass(frozen=True, slots=True)
class Inherited:
    """What an earlier supervisor has left to this one.

    Attributes:
        contents: Its fd store, read.
        leftovers: What else there is of a dead supervisor. None after a reload: that supervisor was
            this process, and its children are children of this process.
    """

    contents: FdReader
    leftovers: Leftovers | None = None

    @property
    def is_parent(self) -> bool:
        """Whether the processes of that supervisor are children of this process."""
        return self.leftovers is None


class Reload(Enum):
    """How far a reload is."""

    IDLE = auto()
    DEFERRED = auto()
    """Until the container runs."""
    REHEARSING = auto()
    """A child does a dry run of the installed version, or is about to."""
    HANDING_OVER = auto()
    """The dry run went well. The next moment with nothing halfway is awaited."""


class HandoverManager:
    """Serves one supervisor. Owns the store until `close`; borrows the rest."""

    SNAPSHOT = ("_store", "_fd_holder")
    TRANSIENT = (
        "_loop",
        "_calls",
        "_log",
        "_request",
        "_state_dir",
        "_source",
        "_publish_soon",
        "_next_look",
        "_reload",  # the successor is what came of it
        "_asked_at_s",
        "_moment_s",
        "_is_published",
        "leftover_workers",
    )

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        calls: RuntimeInvoker,
        log: Log,
        request: StartRequest,
        state_dir: StateDirectory,
        source: HandoverSource,
        inherited: Inherited | None,
        *,
        title: str,
        null_fd: int,
    ) -> None:
        """Make the store if the request wants one, or take the inherited one. Publish nothing."""
        self._loop = loop
        self._calls = calls
        self._log = log
        self._request = request
        self._state_dir = state_dir
        self._source = source
        self._publish_soon = loop.timer(self.publish)
        self._next_look = loop.timer(self._dry_run)
        self._reload = Reload.IDLE
        self._asked_at_s, self._moment_s = 0.0, _NEXT_MOMENT_S
        self._is_published = inherited is not None and inherited.is_parent
        self._store = _open_store(request, inherited)
        self.leftover_workers: Sequence[fds.Fd] = (
            inherited.leftovers.workers if inherited and inherited.leftovers else ()
        )
        self._fd_holder = FdHolder(
            loop,
            reaper,
            log,
            title=title,
            null_fd=null_fd,
            store_fds=self._store_fds,
            predecessors=_fd_holders(inherited),
            starter=self._starter(),
        )

    def _starter(self) -> SuccessorStarter | None:
        """Return what the fd holder does after our death: only a daemon's starts successors.

        What runs in the foreground has a caller that waits for it and decides what follows.
        """
        request, origin = self._request, self._request.origin
        limit = successor.limit(origin.environment)
        if self._store is None:
            return None
        is_daemon = bool(origin.command and origin.is_daemon)
        return SuccessorStarter(
            origin.command,
            request.spec.container_id,
            origin.path,
            self._state_dir.path,
            self._store_fds,
            self._log,
            limit=limit if is_daemon else 0,
            starts=origin.starts,
        )

    @property
    def is_adoptable(self) -> bool:
        """Whether another supervisor can go on if this one is killed."""
        return self._store is not None

    @property
    def _store_fds(self) -> tuple[int, ...]:
        return self._store.fds if self._store else ()

    # Reload.

    def reload(self, *, is_yet_to_come: bool) -> None:
        """Take up the installed version, if it shows that it can take over.

        `is_yet_to_come`: the container does not run yet; `running` will say when it does.
        """
        if self._reload is not Reload.IDLE:
            self._log.info("SIGHUP: a reload is under way")
        elif is_yet_to_come:
            self._reload = Reload.DEFERRED
        elif not self._source.is_running:
            self._log.info("SIGHUP: not reloaded, the container is on its way out")
        else:
            self._reload = Reload.REHEARSING
            self._asked_at_s, self._moment_s = time.monotonic(), _NEXT_MOMENT_S
            self._source.reloading()
            self._dry_run()

    def running(self) -> None:
        """The container runs now."""
        self.changed()
        if self._reload is Reload.DEFERRED:
            self._reload = Reload.IDLE
            self.reload(is_yet_to_come=False)

    def _dry_run(self) -> None:
        if not self._source.is_settled:
            self._wait_and(self._dry_run)
            return
        fd_writer = FdWriter()
        try:
            document = self._document_with_store(fd_writer)
            reexec.dry_run(
                self._calls,
                self._request.origin.command,
                self._request.origin.environment,
                document,
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
            self._reload = Reload.HANDING_OVER
            self._hand_over()

    def _hand_over(self) -> None:
        """Become the other version at the next moment when nothing is halfway."""
        if not self._source.is_running:
            self._refuse("the container is on its way out")
            return
        signals.hold_all()
        try:
            why_not = self._reexec() if self._source.is_settled else None
        finally:
            signals.release_all()  # whatever became of it: this program is still here
        if why_not is not None:
            self._refuse(why_not)
        else:
            self._wait_and(self._hand_over)

    def _wait_and(self, look_again: Callable[[], None]) -> None:
        """Look again in a moment, in longer and longer ones; or let it be."""
        if time.monotonic() - self._asked_at_s > _PATIENCE_S:
            self._refuse("its workers do not come to rest")
            return
        moment_s, self._moment_s = self._moment_s, min(2 * self._moment_s, _LAST_MOMENT_S)
        self._next_look.cancel()
        self._next_look = self._loop.timer(look_again)
        self._next_look.start(moment_s)

    def _reexec(self) -> str:
        """Become the other version; returns only if that failed, with the reason."""
        self._log.info("SIGHUP: reloading")
        request, fd_writer = self._request, FdWriter()
        try:
            document = self._document_with_store(fd_writer)
            return str(
                reexec.reexec(
                    request.origin.command,
                    request.origin.environment,
                    document,
                    fd_writer,
                    request.origin.lock_fd,
                )
            )
        except ShimError as error:
            return str(error)
        except OSError as error:
            return reason(error)

    def _refuse(self, why: str) -> None:
        self._reload = Reload.IDLE
        self._log.warning(
            f"SIGHUP: not reloaded, the old version goes on: {why}", Kind.NOT_RELOADED
        )
        self._source.reload_is_over()

    def _document_with_store(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return what this very process needs; in the store itself it would be a cycle."""
        document = self._source.document(fd_writer)
        self._source.add_own(document, fd_writer)
        document["container"]["store"] = {
            "ends": [fd_writer.add(end) for end in self._store_fds],
            "nonce": self._store.nonce if self._store else "",
            "fd_holder": self._fd_holder.pid,
        }
        return document

    # Adoption.

    def changed(self) -> None:
        """See that a successor finds what is true now; several changes make one store."""
        if self._store is not None and self._source.is_alive:
            self._publish_soon.start(0.0)

    def publish(self) -> None:
        """Put it there now."""
        if self._store is None or not self._source.is_alive:
            return
        fd_writer = FdWriter()
        try:
            if not self._is_published:
                # Before there is anything in it: the workers are found by the file alone.
                self._state_dir.write_handover(
                    self._store.fds, self._store.nonce, self._source.counters_fd
                )
            self._store.put(self._source.document(fd_writer), fd_writer)
            if not self._is_published and self._request.origin.is_kept:
                self._request.origin.notifier.keep_no_more(
                    KEPT_NAMES
                )  # of an earlier run of the unit
                self._request.origin.notifier.keep(
                    dict(zip(KEPT_NAMES, self._store.fds, strict=True))
                )
        except (ShimError, OSError) as error:
            self._log.warning(f"cannot publish the fd store, adoption is disabled: {error}")
            return
        self._is_published = True
        self._fd_holder.ensure()

    def stop_was_asked(self) -> None:
        """Have no successor started if this process is killed now: the container is to end."""
        self._fd_holder.stand_down()
        self.changed()

    @property
    def has_fd_holder(self) -> bool:
        """Whether the fd holder has still to be reaped."""
        return bool(self._fd_holder.pid)

    def close(self) -> None:
        """Leave nothing for a successor. Wait until there is no fd holder any more."""
        self._publish_soon.cancel()
        self._next_look.cancel()
        if self._store is not None:
            if self._request.origin.is_kept:
                self._request.origin.notifier.keep_no_more(KEPT_NAMES)
            self._state_dir.remove_handover()
            self._store.close()
        self._fd_holder.stop()


def _open_store(request: StartRequest, inherited: Inherited | None) -> FdStore | None:
    if not request.origin.is_adoptable:
        return None
    if inherited is None:
        return FdStore()
    if inherited.leftovers is not None:
        return inherited.leftovers.store
    packed = inherited.contents.document["container"]["store"]
    front, back = (inherited.contents.take(end).take() for end in packed["ends"])
    return FdStore(ends=(front, back), nonce=packed["nonce"])


def _fd_holders(inherited: Inherited | None) -> list[fds.Fd]:
    """Return pidfds of the fd holders that `inherited` has left; the caller owns them."""
    if inherited is None:
        return []
    if inherited.leftovers is not None:
        return inherited.leftovers.fd_holders
    pid = inherited.contents.document["container"]["store"]["fd_holder"]
    with suppress(ProcessLookupError):  # in a dry run it is another process's child
        return [fds.Fd(os.pidfd_open(pid))] if pid else []
    return []
