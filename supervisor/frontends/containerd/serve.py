"""The daemon of a group: one host, its listener and connections, its tasks, its events."""

from __future__ import annotations

import gc
import os
import signal

from supervisor.container.host import Host
from supervisor.frontends.containerd.events import EventQueue, PublishCommand
from supervisor.frontends.containerd.tasks import Tasks
from supervisor.linux.fds import Fd
from supervisor.oci.invoke import RuntimeInvoker
from supervisor.state.log import Log
from supervisor.wire.server import Server
from workers.process.title import set_title

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from supervisor.frontends.containerd.group_socket import GroupSocket
    from supervisor.frontends.containerd.invocation import Invocation

_STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})


class Daemon:
    """Owns everything of the process, until `run` returns."""

    def __init__(
        self, found: GroupSocket, invocation: Invocation, environment: Mapping[str, str]
    ) -> None:
        """Take the socket and serve it from `run` on."""
        self._socket = found
        # Tools look for these words of the stock shim's daemon.
        self._title = (
            f"containerd-shim-forkshim-v2 -namespace {invocation.namespace} "
            f"-id {invocation.container_id} -address {invocation.address}"
        )
        self._log = Log(Fd(os.dup(2)))
        self._host = Host(self._log, environment, keeps_title=True)
        self._host.on_signal = self._on_signal
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
        )
        self._tasks = Tasks(self._host, self._events, invocation.namespace, self._leave)
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

    def _on_signal(self, signum: int) -> None:
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
