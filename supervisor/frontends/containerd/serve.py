"""The daemon of a group: one host, its listener and connections, its tasks, its events."""

from __future__ import annotations

import gc
import os
import signal

from supervisor.container.host import Host
from supervisor.container.restore import begin, restore_containers
from supervisor.frontends.containerd.events import EventQueue, PublishCommand
from supervisor.frontends.containerd.task.tasks import Tasks
from supervisor.linux.fds import Fd
from supervisor.oci.invoke import RuntimeInvoker
from supervisor.state.log import Log
from supervisor.wire.server import Server
from workers.process.title import set_title

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence
    from contextlib import ExitStack
    from typing import Any

    from supervisor.container.container import Container
    from supervisor.container.restore import Place
    from supervisor.frontends.containerd.group_socket import GroupSocket
    from supervisor.frontends.containerd.invocation import Invocation
    from supervisor.state.fd_store import FdWriter

_STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})


class Daemon:
    """Owns everything of the process, until `run` returns."""

    def __init__(
        self,
        found: GroupSocket,
        invocation: Invocation,
        environment: Mapping[str, str],
        command: tuple[str, ...],
        events: Sequence[Sequence[str]] = (),
    ) -> None:
        """Take the socket and serve it from `run` on.

        `command`: how to start this program again. `events`: those of the program before this one
        that are not acknowledged.
        """
        self._socket = found
        # Tools look for these words of the stock shim's daemon.
        self._title = (
            f"containerd-shim-forkshim-v2 -namespace {invocation.namespace} "
            f"-id {invocation.container_id} -address {invocation.address}"
        )
        self._log = Log(Fd(os.dup(2)))
        self._host = Host(self._log, environment, keeps_title=True)
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
        self._events = EventQueue(
            loop,
            self._log,
            namespace=invocation.namespace,
            ttrpc_address=environment.get("TTRPC_ADDRESS", ""),
            command=PublishCommand(invoker, invocation.publish_binary, invocation.address),
            restored=events,
        )
        self._tasks = Tasks(
            self._host, self._events, invocation.namespace, self._leave, command=command
        )
        self._server = Server(
            loop,
            found.listener,
            on_request=self._tasks.on_request,
            on_closed=self._tasks.on_closed,
            log=self._log.warning,
        )
        self._is_leaving = self._is_over = False

    def run(self) -> None:
        """Serve until a Shutdown finds no task, or a signal does."""
        gc.freeze()
        set_title(self._title)
        self._host.run(is_wanted=lambda: not self._is_over)
        self._server.close()
        self._events.close()
        self._host.close()
        self._log.close()

    # The reload.

    def _is_settled(self) -> bool:
        is_sending = self._events.is_sending
        return not is_sending and self._tasks.is_settled(self._server.connections)

    def _document(self, fd_writer: FdWriter) -> dict[str, Any]:
        connections = self._server.connections
        return {
            "path": self._socket.path,
            "identity": self._socket.identity,
            "listener": fd_writer.add(self._socket.listener.fileno()),
            "socks": [fd_writer.add(each.sock.fileno()) for each in connections],
            "connections": self._server.snapshot(),
            "events": self._events.snapshot(),
            **self._tasks.snapshot(connections),
        }

    def restore(
        self,
        document: Mapping[str, Any],
        socks: Sequence[socket.socket],
        places: Sequence[Place],
        stack: ExitStack,
    ) -> list[Container]:
        """Take what the program before this one had; serve nothing before `begin`.

        Args:
            document: That of the front end.
            socks: Of its connections, in their order.
            places: Of the containers, in the order of the host that had them.
            stack: Owns what belongs to no container.

        Raises:
            KeyError, TypeError, ValueError, WireError, ShimError: `document` cannot be used.
        """
        containers = restore_containers(self._host, places, stack)
        for container, place in zip(containers, places, strict=True):
            container.launch.owned.extend((place.log, place.state_dir))
        self._server.restore(socks, document["connections"])
        self._tasks.restore(document, containers, self._server.connections)
        return containers

    def begin(self, containers: Sequence[Container], places: Sequence[Place]) -> None:
        """Serve the restored containers; `run` follows."""
        gc.freeze()  # this forks the first workers
        begin(self._host, containers, places)

    # The end.

    def _on_signal(self, signum: int) -> None:
        if signum == signal.SIGHUP:
            self._host.ask_for_reload()
        if signum not in _STOP_SIGNALS:
            return
        if self._tasks.is_empty:
            self._leave()
        else:
            self._log.warning(f"signal {signum}: not stopped, this shim has containers")

    def _leave(self) -> None:
        """Remove the name first: no `start` may join a daemon that leaves. Then send the events."""
        if self._is_leaving:
            return
        self._is_leaving = True
        self._server.stop_listening()
        self._socket.release()
        self._events.flush(self._over)

    def _over(self, left: int) -> None:
        if left:
            self._log.warning(f"{left} events were not taken by containerd")
        self._is_over = True
