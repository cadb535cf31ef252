"""What a container has from the start of its runtime on: streams, stop, exit, service, handover.

`Launch.assemble` makes it in one piece, so each attribute exists for its whole life.
"""

from __future__ import annotations

from supervisor.container.api import ContainerApi, StreamNotices
from supervisor.container.control_channel import ControlChannel
from supervisor.container.exit import ExitSequence
from supervisor.container.init_process import ContainerInit, Process
from supervisor.container.lifecycle import Action, Event, Notice
from supervisor.container.request import StreamEnd
from supervisor.container.service_status import ServiceStatus
from supervisor.container.snapshot import Snapshot
from supervisor.container.stop import Stopper
from supervisor.handover.manager import HandoverManager
from supervisor.handover.reload import Reload
from supervisor.io.stream_set import StreamSet
from supervisor.linux.errors import ShimError, describe_calls, reason
from supervisor.oci import kill_scope

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.children.notify_worker import NotifyWorker
    from supervisor.container.container import Container
    from supervisor.container.start import Launch
    from supervisor.handover.manager import Inherited
    from supervisor.io.stream import Stream
    from workers.notify.words import Words


class Running:
    """The parts of a running container. Owns them until `close`; borrows the launch.

    Many methods and attributes: each part of a running container, each action of the table.

    Attributes:
        actions: The function that carries out each action of the lifecycle.
    """

    SNAPSHOT = (
        "handover", "stream_set", "stopper", "service", "control", "notify_worker",
        "is_paused",
    )  # fmt: skip
    TRANSIENT = (
        "_launch",
        "_container",
        "snapshot",
        "exit",  # nothing is handed over after the end
        "init",  # the next supervisor finds it again
        "api",
        "_seen",  # belongs to the subscribers, which end with the process
        "actions",
    )

    def __init__(self, launch: Launch, container: Container, inherited: Inherited | None) -> None:
        """Make every part; from `inherited`, if an earlier supervisor had the container."""
        request, loop, log = launch.request, launch.loop, launch.log
        packed = inherited.contents.document["container"] if inherited else None
        parent = container.parent
        self._launch = launch
        self._container = container
        self.snapshot = Snapshot(container, launch, self)
        launch.host.reload = launch.host.reload or Reload(launch.host)
        self.handover: HandoverManager = HandoverManager(
            loop,
            launch.host.reaper,
            log,
            request.origin,
            launch.state_dir,
            self.snapshot,
            inherited,
            container_id=request.spec.container_id,
            title=launch.title,
            null_fd=launch.host.null.fileno(),
            parent=parent.running.handover if parent else None,
        )
        self.stream_set = StreamSet(
            loop,
            launch.host.reaper,
            log,
            title=launch.title,
            null_fd=launch.host.null.fileno(),
            on_stream_over=self._on_stream_over,
            on_change=self.handover.changed,
            on_trouble=self._on_trouble,
            is_adoptable=self.handover.is_adoptable,
            dir_fd=launch.state_dir.fileno(),
            counters=(
                inherited.contents.take(packed["stream_set"]["counters"])
                if inherited and packed
                else None
            ),
        )
        self.stopper = Stopper(
            loop,
            launch.invoker,
            launch.command,
            log,
            timeout_s=request.stop.timeout_s,
            is_exec=launch.config.is_exec,
            signal_init=container.signal_process,
        )
        self.service = ServiceStatus(
            request.origin.notifier,
            loop,
            self.stream_set,
            log,
            self.stopper,
            has_notify_proxy=request.spec.notify_proxy is not None,
            packed=packed["service"] if packed else None,
        )
        self.exit = ExitSequence(
            loop,
            self.stream_set,
            self.service,
            log,
            is_stopping=lambda: container.is_stopping,
            keeps_unread=request.spec.starts_container,
            waits_for_others=request.spec.engine_call is None,
            on_delivered=launch.exit_fifo.close,
        )
        self.is_paused = False
        self.notify_worker = self._make_notify_worker()
        self.init: ContainerInit | None = None
        self.api = ContainerApi(container)
        self.control = ControlChannel(loop, log, launch.control_fifo, self.api)
        self._seen = StreamNotices(container, self.stream_set)
        self.actions: dict[Action, Callable[[], None]] = {
            Action.KILL_RUNTIME: launch.creation.cancel,
            Action.START: container.sequence.start,
            Action.HURRY_START: container.sequence.set_deadline,
            Action.TELL_STARTED: container.started,
            Action.SEND_STOP_SIGNAL: self._send_stop_signal,
            Action.KILL: self._kill,
            Action.KILL_INIT: self._kill_again,
            Action.NOTE_STOP_AGAIN: self._note_stop_again,
            Action.RECORD_EXIT: self._record_exit,
            Action.EMPTY: self._kill_rest,
            Action.CLEAN_UP: self._clean_up,
            Action.DRAIN: self._drain,
            Action.DELETE: self._delete,
        }

    def _make_notify_worker(self) -> NotifyWorker | None:
        launch = self._launch
        if launch.request.spec.notify_proxy is None:
            return None
        from supervisor.children.notify_worker import NotifyWorker  # for containers that have one

        return NotifyWorker(
            launch.loop,
            launch.host.reaper,
            launch.log,
            launch.request.spec.notify_proxy,
            title=launch.title,
            null_fd=launch.host.null.fileno(),
            on_words=self._on_words,
            on_change=self.handover.changed,
        )

    def _on_words(self, words: Words) -> None:
        if self.service.note(words):
            self.handover.publish()  # first: systemd may kill this process for what it is told
        self.service.forward(words)

    def take_process(self, pid: int) -> Process:
        """Return the process that the runtime has created, and join its console.

        Raises:
            OSError: EMFILE, for example.
        """
        launch, request = self._launch, self._launch.request
        process = Process.of_child(launch.loop, launch.host.reaper, pid, launch.state_dir)
        try:
            if launch.is_ours_to_start:
                self._container.sequence.watch_exec(process.pid)
            if (
                request.spec.notify_proxy is not None
            ):  # a sender that cannot be identified is not heard
                request.spec.notify_proxy.belongs_to(process.pid)
            if launch.creation.console is not None:
                launch.pipes.join_console(launch.creation.console, launch.stdio, self.stream_set)
                self.stream_set.start()
        except OSError:
            process.close()
            raise
        if not launch.config.is_exec and request.spec.engine_call is None:
            self.stopper.kill_scope = kill_scope.of(launch.command.config_path, process.pid)
        return process

    def open_stdin(self) -> None:
        """Open the stdin that was left for the start, and copy it from now on.

        ctr asks for the end of stdin only if it knows the container when its own input ends. So it
        can write nothing before it knows the container.

        Raises:
            ShimError: EMFILE, for example. The start may be tried again.
        """
        launch = self._launch
        try:
            launch.stdio.open_stdin()
        except OSError as error:
            raise ShimError(f"open {launch.config.stdin}: {reason(error)}") from error
        stream = launch.pipes.join_stdin(launch.stdio, self.stream_set)
        if stream is not None:
            self.handover.changed()
            self.stream_set.slot(stream).start()

    def expect_end(self, process: Process) -> None:
        """Serve the process up to its end. It may have ended before this call."""
        launch = self._launch
        if self.notify_worker is not None:
            launch.loop.guarded(self.notify_worker.feature, self.notify_worker.start)()
        if launch.config.is_exec:
            self.init = self._init_of_exec(process.pid)
        # Not earlier: what an engine has written to `control` waits in the fifo.
        self.control.open()
        # This may call back at once: the reaper may have the status already.
        process.expect(self._on_process_exit)
        launch.creation.known()

    def _init_of_exec(self, pid: int) -> ContainerInit:
        parent, launch = self._container.parent, self._launch
        if parent is not None:
            return ContainerInit.of_parent(launch.loop, parent.process)
        return ContainerInit.of_exec(launch.loop, pid, launch.state_dir.fileno())

    def _on_process_exit(self) -> None:
        if self.notify_worker is not None:  # its last words, before the phases of its end
            self.notify_worker.finish(self._container.process_ended)
        else:
            self._container.process_ended()

    def _on_stream_over(self) -> None:
        if self._launch.request.spec.has_engines_fifos:
            # CRI's ExecSync asks for the delete only behind the end of the output.
            self.stream_set.close_read_fifos()
        self.exit.look()

    def _on_trouble(self) -> None:
        self.service.look()
        self._seen.look()

    # Actions.

    def _send_stop_signal(self) -> None:
        self.stopper.ask(self._launch.request.stop.signal, self._on_grace_over)
        self.handover.publish()  # a successor goes on with the stop

    def _on_grace_over(self) -> None:
        self._container.machine.post(Event.GRACE_OVER)

    def _kill(self) -> None:
        self.stopper.kill(self._on_kill_overdue)

    def _kill_again(self) -> None:
        self.stopper.kill_again(self._on_kill_overdue)

    def _on_kill_overdue(self) -> None:
        self._container.machine.post(Event.KILL_OVERDUE)

    def _note_stop_again(self) -> None:
        self._launch.log.info("a stop is under way already")

    def _record_exit(self) -> None:
        self.stopper.over()
        if self._container.process is None:
            raise AssertionError("an exit to record, and none seen")
        self.exit.record(self._container.process)
        self._launch.pipes.close_peer()
        self._container.recorded()

    def _kill_rest(self) -> None:
        self.stopper.empty(lambda: self._container.machine.post(Event.EMPTIED))

    def _clean_up(self) -> None:
        creation, container = self._launch.creation, self._container
        if self._launch.request.spec.engine_call is not None and not self._launch.config.is_exec:
            container.machine.post(Event.CLEANED)  # the engine deletes what a create has left
            return
        is_alone = len(self._launch.host.containers) == 1
        creation.clean_up(
            self._launch.log, lambda: container.machine.post(Event.CLEANED), is_alone=is_alone
        )

    def _drain(self) -> None:
        self._launch.pipes.close_peer()  # also where there never was a process
        if self._launch.request.spec.is_delete_awaited and self._container.process is not None:
            self._container.announce(Notice.EMPTIED)  # `ContainerApi.delete` goes on
        else:
            self.exit.drain(self._on_drained, self.init)

    def _delete(self) -> None:
        is_engines = self._launch.request.spec.engine_call is not None
        if self._container.process is None or is_engines:
            self._container.machine.post(Event.DELETED)
        else:
            self.stopper.delete(self._on_deleted)

    def deleted_by_verb(self) -> None:
        """Go on with the delete, which the request leaves to the verb."""
        self._on_drained()

    def _on_drained(self) -> None:
        self._container.announce(Notice.DRAINED)
        self._container.machine.post(Event.DRAINED)

    def _on_deleted(self) -> None:
        self._container.announce(Notice.DELETED)
        self._container.machine.post(Event.DELETED)

    # The end.

    def stream_ends(self) -> tuple[StreamEnd, ...]:
        """Return what each stream has copied and lost."""
        return tuple(_end_of(self.stream_set, stream) for stream in self.stream_set.streams)

    def tell_of_bug(self, error: Exception) -> None:
        """Log the calls that led to an unforeseen error."""
        self._launch.log.info(describe_calls(error))

    def leave(self) -> None:
        """Kill each worker of this container, and remove what a successor needs; see `has_left`."""
        self.handover.close()
        self.control.close()
        self.stream_set.stop()
        if self.notify_worker is not None:
            self.notify_worker.stop()

    @property
    def has_left(self) -> bool:
        """Whether each worker and the fd holder were reaped."""
        is_notify_gone = self.notify_worker is None or self.notify_worker.is_gone
        is_alone = not self.stream_set.has_workers and not self.handover.has_fd_holder
        return is_alone and is_notify_gone

    def close(self) -> None:
        """Close every descriptor: the clients see end of file."""
        if self.notify_worker is not None:
            self.notify_worker.close()
        self.stream_set.close()
        if self.init is not None:
            self.init.close()


def _end_of(stream_set: StreamSet, stream: Stream) -> StreamEnd:
    drops = stream_set.drops(stream)
    return StreamEnd(
        name=stream.name,
        copied_bytes=stream_set.copied_bytes(stream),
        deaths=stream_set.deaths(stream),
        dropped_bytes=drops.bytes,
        dropped_lines=drops.lines,
    )
