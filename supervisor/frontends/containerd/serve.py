"""The daemon of a group: one host, its listener and connections, its tasks, its events."""

from __future__ import annotations

import gc
import os
import signal

from supervisor.container.host import Host
from supervisor.container.restore import begin, restore_containers
from supervisor.frontends.containerd.events import EventQueue, PublishCommand
from supervisor.frontends.containerd.handover.group_holder import CONNECTION, JOURNAL, LISTENER
from supervisor.frontends.containerd.task.task_journal import TaskJournal
from supervisor.frontends.containerd.task.tasks import Tasks
from supervisor.linux.fds import Fd
from supervisor.oci.invoke import RuntimeInvoker
from supervisor.state.log import Log
from supervisor.wire.server import Server
from workers.common.records import replace
from workers.process.title import set_title

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import ExitStack
    from typing import Any

    from supervisor.container.container import Container
    from supervisor.container.restore import Place
    from supervisor.frontends.containerd.group_socket import GroupSocket
    from supervisor.frontends.containerd.handover.group_journal import GroupJournal
    from supervisor.frontends.containerd.handover.holder_link import HolderLink
    from supervisor.frontends.containerd.invocation import Invocation
    from supervisor.state.fd_store import FdWriter
    from supervisor.wire.ttrpc import ServerConnection

_STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
_IDLE_S = 10.0
"""A daemon without a task and a connection leaves then: containerd has died, or given it up."""


def in_group(place: Place, link: HolderLink | None) -> Place:
    """Return the place of a container whose fd store the group's fd holder has."""
    origin = replace(place.request.origin, store_holder=link)
    return replace(place, request=replace(place.request, origin=origin))


class Daemon:
    """Owns everything of the process, until `run` returns.

    Attributes:
        log: The host's.
        server: The listener and the connections.
        tasks: What the connections ask for.

    Many attributes: what the process has once.
    """

    def __init__(
        self,
        found: GroupSocket,
        invocation: Invocation,
        environment: Mapping[str, str],
        command: tuple[str, ...],
        *,
        link: HolderLink | None = None,
        journal: GroupJournal | None = None,
        events: Sequence[Sequence[str]] = (),
    ) -> None:
        """Take the socket and serve it from `run` on.

        Args:
            found: The group's socket.
            invocation: The words of `start`.
            environment: Of this process.
            command: How to start this program again.
            link: To the fd holder; owned. None in a dry run, where nothing may be told.
            journal: What a successor reads; owned. None in a dry run.
            events: Those of the program before this one that are not acknowledged.
        """
        self._socket = found
        # Tools look for these words of the stock shim's daemon.
        self._title = (
            f"containerd-shim-forkshim-v2 -namespace {invocation.namespace} "
            f"-id {invocation.container_id} -address {invocation.address}"
        )
        self.log = Log(Fd(os.dup(2)))
        self._host = Host(self.log, environment, keeps_title=True)
        self._host.on_signal = self._on_signal
        self._host.front_end_document = self._document
        self._host.is_front_end_settled = self._is_settled
        loop = self._host.loop
        invoker = RuntimeInvoker(
            loop,
            self._host.reaper,
            name=invocation.publish_binary,
            cwd="/",
            null_fd=self._host.null.fileno(),
            environment=environment,
        )
        self._link = link
        self._journal = journal
        self._events = EventQueue(
            loop,
            self.log,
            namespace=invocation.namespace,
            ttrpc_address=environment.get("TTRPC_ADDRESS", ""),
            command=PublishCommand(invoker, invocation.publish_binary, invocation.address),
            restored=events,
            journal=journal,
        )
        self.tasks = Tasks(
            self._host,
            TaskJournal(self._events, journal),
            invocation.namespace,
            self._leave,
            command=command,
            store_holder=link,
        )
        self.server = Server(
            loop,
            found.listener,
            on_request=self.tasks.on_request,
            on_closed=self._on_closed,
            on_accepted=self._keep_connection,
            log=self.log.warning,
            has_journals=link is not None,
        )
        self._is_leaving = self._is_over = False
        self._idle_look = loop.timer(self._leave_if_idle)
        if link is not None:
            title = f"forkshim: {invocation.container_id}"
            null_fd = self._host.null.fileno()
            link.attach(loop, self._host.reaper, title=title, null_fd=null_fd)
            link.keep(LISTENER, (found.listener.fileno(),))
        if link is not None and journal is not None:
            link.keep(JOURNAL, (journal.fileno(),))
            journal.write(
                {
                    "socket": {"path": found.path, "identity": found.identity},
                    "events": self._events.snapshot(),
                    "is_leaving": False,
                }
            )

    def run(self, *, is_leaving: bool = False) -> None:
        """Serve until a Shutdown finds no task, or a signal does.

        `is_leaving`: a killed shim was leaving.
        """
        gc.freeze()
        set_title(self._title)
        self._look_later()
        if is_leaving:
            self._leave()
        self._host.run(
            is_wanted=lambda: not self._is_over,
            has_to_leave=lambda: self._is_over and not self.tasks.is_empty,
        )
        self.server.close()
        if self._link is not None:
            self._link.end()  # it has the connections, too: containerd waits for their end
        self._events.close()
        self._host.close()
        self.log.close()

    # What a successor gets.

    def _keep_connection(self, number: int, kept: tuple[int, ...]) -> None:
        if self._link is not None and kept:
            self._link.keep(f"{CONNECTION}{number}", kept)
        elif self._link is not None:
            self._link.drop(f"{CONNECTION}{number}")

    def keep_connections(self) -> None:
        """Have the fd holder hold the restored connections under the numbers of this process."""
        for each in self.server.connections:
            if each.journal is not None:
                self._keep_connection(each.number, (each.sock.fileno(), each.journal.fileno()))

    def _on_closed(self, connection: ServerConnection, why: str) -> None:
        self._keep_connection(connection.number, ())
        self.tasks.on_closed(connection, why)
        self._look_later()

    # Without a client.

    def _look_later(self) -> None:
        if self.tasks.is_empty and not self.server.connections:
            self._idle_look.start(_IDLE_S)

    def _leave_if_idle(self) -> None:
        if self.tasks.is_empty and not self.server.connections:
            self._leave()

    # The reload.

    def _is_settled(self) -> bool:
        is_sending = self._events.is_sending
        return not is_sending and self.tasks.is_settled(self.server.connections)

    def _document(self, fd_writer: FdWriter) -> dict[str, Any]:
        connections = self.server.connections
        journals = [each.journal.fileno() if each.journal else -1 for each in connections]
        return {
            "path": self._socket.path,
            "identity": self._socket.identity,
            "listener": fd_writer.add(self._socket.listener.fileno()),
            "socks": [fd_writer.add(each.sock.fileno()) for each in connections],
            "journals": [fd_writer.add(each) for each in journals],
            "connections": self.server.snapshot(),
            "events": self._events.snapshot(),
            "tasks": self.tasks.snapshot(),
            "link": self._link.snapshot(fd_writer) if self._link else None,
            "journal": fd_writer.add(self._journal.fileno()) if self._journal else -1,
        }

    def restore(
        self, parts: Mapping[str, Any], places: Sequence[Place], stack: ExitStack
    ) -> list[Container]:
        """Take what the program before this one had; serve nothing before `begin`.

        Args:
            parts: Of `Tasks.restore`. Its connections are those of `server`, which come first.
            places: Of the containers, in the order of the host that had them.
            stack: Owns what belongs to no container.

        Raises:
            KeyError, TypeError, ValueError, WireError, ShimError: `parts` cannot be used.
        """
        containers = restore_containers(self._host, places, stack)
        for container, place in zip(containers, places, strict=True):
            container.launch.owned.extend((place.log, place.state_dir))
        by_path = {each.launch.state_dir.path: each for each in containers}
        by_number = {each.number: each for each in self.server.connections}
        self.tasks.restore(parts, by_path, by_number)
        return containers

    def begin(self, containers: Sequence[Container], places: Sequence[Place]) -> None:
        """Serve the restored containers; `run` follows."""
        gc.freeze()  # this forks the first workers
        if containers:
            begin(self._host, containers, places)

    # The end.

    def _on_signal(self, signum: int) -> None:
        if signum == signal.SIGHUP:
            self.tasks.retire_stopped()
            self._host.ask_for_reload()
        if signum not in _STOP_SIGNALS:
            return
        if not self.tasks.is_empty:
            # A shutdown of the machine would wait 90 s for a shim that stays.
            self.log.warning(f"signal {signum}: leaving; containerd deletes the containers")
        self._leave()

    def _leave(self) -> None:
        """Remove the name first: no `start` may join a daemon that leaves. Then send the events."""
        if self._is_leaving:
            return
        self._is_leaving = True
        if self._journal is not None:
            self._journal.write({"is_leaving": True})
        self.server.stop_listening()
        self._socket.release()
        self._events.flush(self._over)

    def _over(self, left: int) -> None:
        if left:
            self.log.warning(f"{left} events were not taken by containerd")
        self._is_over = True
