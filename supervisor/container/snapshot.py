"""What the next supervisor needs of a container: a document, and the descriptors in an fd store.

After a reload that is the next program in this process, after an adoption another process. See
`supervisor.container.restore`.
"""

from __future__ import annotations

import os

from supervisor import __version__
from supervisor.container.lifecycle import State
from supervisor.container.request import origin_of
from supervisor.container.request import snapshot as snapshot_of_request
from workers.common.records import asdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from supervisor.container.container import Container
    from supervisor.container.running import Running
    from supervisor.container.start import Launch
    from supervisor.oci.invoke import RuntimeInvoker
    from supervisor.state.fd_store import FdWriter


class Snapshot:
    """One container, as `supervisor.handover` sees it. Borrows everything."""

    def __init__(self, container: Container, launch: Launch, running: Running) -> None:
        """Borrow everything. Read nothing before `document`."""
        self._container = container
        self._launch = launch
        self._running = running

    @property
    def container_id(self) -> str:
        """The container's id."""
        return self._launch.request.spec.container_id

    @property
    def command(self) -> tuple[str, ...]:
        """How to start this program again; empty if the front end does not say."""
        return self._launch.request.origin.command

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment of this process, read at its entry."""
        return self._launch.request.origin.environment

    @property
    def lock_fd(self) -> int:
        """The front end's lock; -1 for none."""
        return self._launch.request.origin.lock_fd

    @property
    def invoker(self) -> RuntimeInvoker:
        """The container's calls of the runtime."""
        return self._launch.invoker

    @property
    def is_alive(self) -> bool:
        """Whether the container has started and not ended."""
        return self._container.is_alive

    @property
    def has_process(self) -> bool:
        """Whether there is a process to hand over, which may have ended."""
        container = self._container
        return container.process is not None and container.state is not State.ENDED

    @property
    def is_starting(self) -> bool:
        """Whether the container is neither running nor created, and was not running before."""
        return not self._container.is_started and not self._is_created

    @property
    def is_running(self) -> bool:
        """Whether the program runs, or waits for the verb `start`. No stop was asked for."""
        container = self._container
        return self._is_created or (container.state is State.RUNNING and container.is_started)

    @property
    def _is_created(self) -> bool:
        container = self._container
        is_alive = container.process is not None and container.process.is_alive
        return container.state is State.STARTING and container.sequence.waits_for_verb and is_alive

    @property
    def is_settled(self) -> bool:
        """Whether nothing is halfway: no worker leaves, no runtime call runs, no signal waits."""
        return (
            self._running.stream_set.is_settled
            and self._launch.invoker.is_idle
            and not self._launch.host.router.has_notes
        )

    def reloading(self) -> None:
        """Report that a reload has begun."""
        self._running.service.reloading()

    def reload_is_over(self) -> None:
        """Report that the old version continues."""
        if self._container.state is State.RUNNING:
            self._running.service.running(
                self._container.state,
                self._container.description(),
                is_started=self._container.is_started,
            )

    @property
    def counters_fd(self) -> int:
        """The memory that every worker of the container has mapped, and no other process."""
        return self._running.stream_set.counters_fd

    def document(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return all that the next supervisor needs of the container."""
        launch, running, process = self._launch, self._running, self._container.process
        if process is None:
            raise AssertionError("nothing to hand over")
        request, scope = launch.request, running.stopper.kill_scope
        proxy, notify_worker = request.spec.notify_proxy, running.notify_worker
        return {
            "pid": os.getpid(),
            "version": __version__,
            "origin": origin_of(request),
            "request": snapshot_of_request(request),
            "container": {
                "state_dir": launch.state_dir.path,
                "config": asdict(launch.config),
                "exit": fd_writer.add(launch.exit_fifo.fileno()),
                "control": fd_writer.add(launch.control_fifo.fileno()),
                "control_rest": running.control.rest,
                "notify_proxy": proxy.snapshot(fd_writer) if proxy and proxy.is_open else None,
                "notify_worker": notify_worker.snapshot(fd_writer) if notify_worker else None,
                **process.snapshot(fd_writer),
                "began_at": launch.creation.began_at,
                "is_started": self._container.is_started,
                "early_signals": self._container.sequence.early_signals(),
                "is_paused": running.is_paused,
                "is_stopping": self._container.is_stopping,
                "stop_timeout_s": running.stopper.timeout_s,
                "grace_ends_at_s": running.stopper.grace_ends_at_s,
                "kill_scope": scope.snapshot() if scope else None,
                "stdio": launch.stdio.snapshot(fd_writer),
                "pipes": launch.pipes.snapshot(fd_writer),
                "stream_set": running.stream_set.snapshot(fd_writer),
                "service": running.service.snapshot(),
                "execs": self._execs(fd_writer),
            },
        }

    def _execs(self, fd_writer: FdWriter) -> list[dict[str, Any]]:
        """Return the stores of the processes that were exec'd in the container."""
        found = [
            each.running.handover.entry(fd_writer)
            for each in self._launch.host.containers
            if each.parent is self._container and each.is_alive
        ]
        return [each for each in found if each is not None]

    def document_for_reload(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return `document`, and what only the next program in this process can use."""
        document = self.document(fd_writer)
        document["container"]["pipes"]["peer"] = self._launch.pipes.snapshot_peer(fd_writer)
        document["container"]["store"] = self._running.handover.snapshot(fd_writer)
        return document
