"""What a supervisor publishes of a container, so that another supervisor can adopt it.

The supervisor puts all that it holds of a container into the container's fd store, and again with
each change. The fd holder and, if the request says so, systemd keep the store open.
"""

from __future__ import annotations

import os
from contextlib import suppress

from supervisor.children.fd_holder import FdHolder
from supervisor.handover import successor
from supervisor.handover.discover import KEPT_NAMES
from supervisor.handover.successor import SuccessorStarter
from supervisor.linux import fds
from supervisor.linux.errors import ShimError
from supervisor.state.directory import HANDOVER_NAME
from supervisor.state.fd_store import FdReader, FdStore, FdWriter
from supervisor.state.retried_file import RetriedFile
from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Protocol

    from supervisor.linux.event_loop import Loop
    from supervisor.linux.reaper import Reaper
    from supervisor.state.directory import StateDirectory
    from supervisor.state.log import Log
    from supervisor.systemd.notify import Notifier

    class StoreHolder(Protocol):
        """Holds the fd stores of all containers of a process, in place of an fd holder for each.

        It starts the successor, too, and tells that one what it holds.
        """

        def keep(self, name: str, kept: tuple[int, ...]) -> None:
            """Hold descriptors under a name. The same descriptors again change nothing."""

        def drop(self, name: str) -> None:
            """Close what is held under a name, if anything is."""

    class HandoverOrigin(Protocol):
        """The front end: `supervisor.container.request.Origin`."""

        @property
        def path(self) -> str:
            """ROOT/ID."""

        @property
        def is_daemon(self) -> bool:
            """Whether no caller waits for this process."""

        @property
        def starts(self) -> Sequence[float]:
            """When successors were started lately; monotonic seconds."""

        @property
        def notifier(self) -> Notifier:
            """The way to the service manager."""

        @property
        def command(self) -> tuple[str, ...]:
            """How to start this program again; empty if it may not be."""

        @property
        def is_adoptable(self) -> bool:
            """Whether the container is published."""

        @property
        def is_kept(self) -> bool:
            """Whether the service manager keeps the store, too."""

        @property
        def store_holder(self) -> StoreHolder | None:
            """What holds the store in place of an fd holder of its own."""

        @property
        def environment(self) -> Mapping[str, str]:
            """The environment of this process."""

    class HandoverSource(Protocol):
        """The container that is published: `supervisor.container.snapshot.Snapshot`."""

        @property
        def is_alive(self) -> bool:
            """Whether the container has started and not ended."""

        @property
        def has_process(self) -> bool:
            """Whether there is a process to hand over, which may have ended."""

        def document(self, fd_writer: FdWriter) -> dict[str, Any]:
            """Return all that is known and held of the container."""

        @property
        def counters_fd(self) -> int:
            """The memory that every worker of the container has mapped, and no other process."""


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
        contents: The content of its fd store.
        leftovers: What else a dead supervisor has left. None after a reload: that supervisor was
            this process, and its children are children of this process.
    """

    contents: FdReader
    leftovers: Leftovers | None = None

    @property
    def is_parent(self) -> bool:
        """Whether the processes of that supervisor are children of this process."""
        return self.leftovers is None


class HandoverManager:
    """Publishes one container. Owns its store until `close`; borrows the rest.

    The store of an exec'd process is in the store of its container. The file `handover` and the fd
    holder are the container's alone. With a `StoreHolder` there is neither: it has each store under
    the name of its state directory, from the creation until the delete.
    """

    SNAPSHOT = ("_store", "_fd_holder", "_is_published")
    TRANSIENT = (
        "_parent",  # found by the container id
        "_container_id",
        "_log",
        "_origin",
        "_state_dir",
        "_source",
        "_publish_soon",
        "_file",
        "leftover_workers",
    )

    def __init__(
        self,
        loop: Loop,
        reaper: Reaper,
        log: Log,
        origin: HandoverOrigin,
        state_dir: StateDirectory,
        source: HandoverSource,
        inherited: Inherited | None,
        *,
        container_id: str,
        title: str,
        null_fd: int,
        parent: HandoverManager | None = None,
    ) -> None:
        """Make the store if the request wants one, or take the inherited one. Publish nothing.

        `parent`: that of the container in which the process was exec'd.
        """
        self._parent = parent
        self._container_id = container_id
        self._log = log
        self._origin = origin
        self._state_dir = state_dir
        self._source = source
        self._publish_soon = loop.timer(self.publish)
        self._file = RetriedFile(loop, log, HANDOVER_NAME, self._write_file)
        self._is_published = _is_published(inherited)
        self._store = _open_store(origin, inherited)
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

    def _starter(self) -> SuccessorStarter:
        """Return what the fd holder does after the supervisor's death.

        Only a daemon's fd holder starts successors. In the foreground, the caller of the supervisor
        waits for it and decides what follows.
        """
        origin = self._origin
        limit = successor.limit(origin.environment)
        is_daemon = bool(origin.command and origin.is_daemon)
        return SuccessorStarter(
            origin.command,
            self._container_id,
            origin.path,
            self._state_dir.path,
            self._store_fds,
            self._log,
            limit=limit if is_daemon else 0,
            starts=origin.starts,
        )

    @property
    def is_adoptable(self) -> bool:
        """Whether another supervisor can adopt the container if this one is killed."""
        return self._store is not None

    @property
    def _store_fds(self) -> tuple[int, ...]:
        return self._store.fds if self._store else ()

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return the store and the fd holder, for a reload. In the store itself: a cycle."""
        return {
            "ends": [fd_writer.add(end) for end in self._store_fds],
            "nonce": self._store.nonce if self._store else "",
            "fd_holder": self._fd_holder.pid,
            "is_published": self._is_published and not self._file.is_missing,
        }

    def entry(self, fd_writer: FdWriter) -> dict[str, Any] | None:
        """Return what the document of the container says of this exec'd process; None if nothing.

        With the inode of its counters: an adopter finds the workers by it. An adopted store is full
        before this supervisor has published it.
        """
        if self._store is None or self._store.is_empty or self._origin.store_holder is not None:
            return None
        return {
            "ends": [fd_writer.add(end) for end in self._store.fds],
            "nonce": self._store.nonce,
            "counters": str(os.fstat(self._source.counters_fd).st_ino),
        }

    def _write_file(self) -> None:
        if self._store is not None:
            self._state_dir.write_handover(
                self._store.fds, self._store.nonce, self._source.counters_fd
            )

    def changed(self) -> None:
        """Publish in the next round of the loop. Several changes are published once."""
        if self._store is not None and self._may_publish:
            self._publish_soon.start(0.0)

    @property
    def _may_publish(self) -> bool:
        has_holder = self._origin.store_holder is not None
        return self._source.has_process if has_holder else self._source.is_alive

    def publish(self) -> None:
        """Publish now."""
        if self._store is None or not self._may_publish:
            return
        is_first, holder = not self._is_published, self._origin.store_holder
        if is_first and self._parent is None and holder is None:
            # Before the store has a document: the workers are found by the file alone.
            self._file.write()
        try:
            fd_writer = FdWriter()
            self._store.put(self._source.document(fd_writer), fd_writer)
            if is_first and self._origin.is_kept:
                notifier = self._origin.notifier
                notifier.remove_fds(KEPT_NAMES)  # of an earlier run of the unit
                notifier.store_fds(dict(zip(KEPT_NAMES, self._store.fds, strict=True)))
        except (ShimError, OSError) as error:
            self._log.warning(f"cannot publish the fd store, adoption is disabled: {error}")
            return
        self._is_published = True
        if holder is not None:
            holder.keep(self._state_dir.path, self._store.fds)
        elif self._parent is None:
            self._fd_holder.ensure()
        elif is_first:
            self._parent.changed()

    @property
    def has_fd_holder(self) -> bool:
        """Whether the fd holder has not been reaped yet."""
        return bool(self._fd_holder.pid)

    def close(self) -> None:
        """Remove what a successor would need, and kill the fd holder; see `has_fd_holder`."""
        self._publish_soon.cancel()
        self._file.cancel()
        if self._store is not None:
            if self._origin.is_kept:
                self._origin.notifier.remove_fds(KEPT_NAMES)
            if self._origin.store_holder is not None:
                self._origin.store_holder.drop(self._state_dir.path)
            elif self._parent is None:
                self._state_dir.remove_handover()
            else:
                self._parent.changed()
            self._store.close()
        self._fd_holder.stop()


def _open_store(origin: HandoverOrigin, inherited: Inherited | None) -> FdStore | None:
    if not origin.is_adoptable:
        return None
    if inherited is None:
        return FdStore()
    if inherited.leftovers is not None:
        return inherited.leftovers.store
    packed = inherited.contents.document["container"]["store"]
    front, back = (inherited.contents.take(end).take() for end in packed["ends"])
    return FdStore(ends=(front, back), nonce=packed["nonce"])


def _is_published(inherited: Inherited | None) -> bool:
    """Return whether the store is published. An adopter publishes it again, with its own inodes."""
    if inherited is None or not inherited.is_parent:
        return False
    return bool(inherited.contents.document["container"]["store"]["is_published"])


def _fd_holders(inherited: Inherited | None) -> list[fds.Fd]:
    """Return pidfds of the fd holders of the earlier supervisor, owned by the caller."""
    if inherited is None:
        return []
    if inherited.leftovers is not None:
        return inherited.leftovers.fd_holders
    pid = inherited.contents.document["container"]["store"]["fd_holder"]
    with suppress(ProcessLookupError):  # the child of a dry run is not its parent
        return [fds.Fd(os.pidfd_open(pid))] if pid else []
    return []
