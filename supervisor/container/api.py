"""The verbs and events of a container. Every front end translates to them.

The control fifo, `forkshim run`, the 2016 shim, containerd's task service and conmon's command
line use it. `refusal` says in which state a verb is an error: a pure table.
The events are those of `supervisor.container.lifecycle.Notice`; see `ContainerApi.subscribe`.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from enum import Enum

from supervisor.container.container import Container
from supervisor.container.lifecycle import Notice, State
from supervisor.container.request import ContainerSpec, Origin, StartRequest
from supervisor.linux import fds
from supervisor.linux.errors import ShimError, reason
from supervisor.linux.exit_status import shell_status
from supervisor.oci.command_line import joined_lines
from supervisor.oci.invoke import CALL_LIMIT_S
from supervisor.oci.process_json import encode_process
from supervisor.state.container_id import check_id
from supervisor.state.directory import StateDirectory, remove_tree
from workers.common.records import dataclass, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from supervisor.container.request import Outcome
    from supervisor.io.stream import Stream
    from supervisor.io.stream_set import StreamSet
    from supervisor.linux.exit_status import Termination
    from supervisor.oci.command_line import CheckpointPlan
    from supervisor.oci.process_json import ProcessConfig


class VerbError(ShimError):
    """The verb is an error in this state; the message says why."""


class Verb(Enum):
    """What a client may ask a container for."""

    START = "start"
    STOP = "stop"
    SIGNAL = "signal"
    EXEC = "exec"
    RESIZE = "resize"
    CLOSE_STDIN = "close stdin"
    REOPEN_LOGS = "reopen logs"
    ATTACH = "attach"
    UPDATE = "update"
    CHECKPOINT = "checkpoint"
    DELETE = "delete"
    PAUSE = "pause"
    RESUME = "resume"
    WAIT = "wait"
    STATE = "state"


@dataclass(frozen=True, slots=True)
class Status:
    """What `state` returns. `status` is the runtime-spec's word, or `paused`."""

    container_id: str
    status: str
    pid: int
    bundle: str
    is_exec: bool


_NOT_CREATED = dict.fromkeys((State.OPENING, State.CREATING, State.ABORTING), "not created yet")
_STARTING = dict.fromkeys((State.STARTING, State.STOP_DEFERRED), "not started yet")
_STOPPING = dict.fromkeys((State.STOPPING, State.KILLING), "about to stop")
_STOPPED = dict.fromkeys(
    (State.KILLING_REST, State.CLEANING, State.DRAINING, State.DELETING, State.ENDED),
    "stopped already",
)
_ENDED = {State.ENDED: "stopped already"}
_STARTED = dict.fromkeys((State.RUNNING, *_STOPPING), "started already")

_REFUSALS: Mapping[Verb, Mapping[State, str]] = {
    Verb.START: {**_NOT_CREATED, **_STARTED, **_STOPPED, State.STOP_DEFERRED: "about to stop"},
    Verb.STOP: _ENDED,
    Verb.SIGNAL: {**_NOT_CREATED, **_STOPPED},
    Verb.EXEC: {**_NOT_CREATED, **_STARTING, **_STOPPING, **_STOPPED},
    Verb.RESIZE: {**_NOT_CREATED, **_ENDED},
    Verb.CLOSE_STDIN: {**_NOT_CREATED, **_ENDED},
    Verb.REOPEN_LOGS: {**_NOT_CREATED, **_ENDED},
    Verb.ATTACH: {**_NOT_CREATED, **_ENDED},
    Verb.PAUSE: {**_NOT_CREATED, **_STARTING, **_STOPPING, **_STOPPED},
    Verb.RESUME: {**_NOT_CREATED, **_STARTING, **_STOPPED},
    Verb.UPDATE: {**_NOT_CREATED, **_STOPPED},
    Verb.CHECKPOINT: {**_NOT_CREATED, **_STARTING, **_STOPPED},
    Verb.DELETE: {
        **_NOT_CREATED,
        **dict.fromkeys((*_STARTING, State.RUNNING, *_STOPPING), "not stopped yet"),
        State.KILLING_REST: "its other processes are being killed",
        State.CLEANING: "it was never created",
        State.DELETING: "under way",
        State.ENDED: "deleted already",
    },
    Verb.WAIT: _ENDED,
    Verb.STATE: {},
}

_STATUS = {
    **dict.fromkeys(_NOT_CREATED, "creating"),
    **dict.fromkeys(_STARTING, "created"),
    State.RUNNING: "running",
    **dict.fromkeys(_STOPPING, "running"),
    **dict.fromkeys(_STOPPED, "stopped"),
}


def refusal(verb: Verb, state: State) -> str:
    """Return why `verb` is an error in `state`; "" if it is not. Pure."""
    why = _REFUSALS[verb].get(state, "")
    return f"{verb.value}: {why}" if why else ""


class ContainerApi:
    """The verbs of one container, or of an exec'd process. Each may raise `VerbError`."""

    def __init__(self, container: Container) -> None:
        """Borrow the container."""
        self._container = container
        self._is_freezing = False

    def _check(self, verb: Verb) -> None:
        why = refusal(verb, self._container.state)
        if why:
            raise VerbError(why)

    def start(self) -> None:
        """Run the runtime's `start`, if the request has left it to this verb."""
        self._check(Verb.START)
        if not self._container.sequence.start_by_verb():
            raise VerbError("start: under way, or not left to this verb")

    def stop(self, timeout_s: float | None = None) -> None:
        """Send the stop signal, and SIGKILL after the grace period. A second stop is only logged.

        `timeout_s` replaces the grace period of the request.
        """
        self._check(Verb.STOP)
        if timeout_s is not None:
            self._container.assemble()
            self._container.running.stopper.timeout_s = timeout_s
        self._container.stop("a client")

    def signal(self, signum: int) -> None:
        """Send a signal to the process."""
        self._check(Verb.SIGNAL)
        self._container.signal_process(signum)

    def exec(self, name: str, process: Mapping[str, Any], config: ProcessConfig) -> Container:
        """Execute a second process in the container, with its own stdio, directory and exit.

        Args:
            name: Of the state directory, which is made beside the container's.
            process: The OCI `process` object.
            config: The terminal and the streams.

        Raises:
            VerbError: The container does not run.
            ShimError: The state directory cannot be made. Nothing is left of it.
        """
        self._check(Verb.EXEC)
        container, launch = self._container, self._container.launch
        if launch.config.is_exec:
            raise VerbError("exec: an exec'd process has no exec")
        check_id(name)
        config = replace(config, is_exec=True, runtime_args=launch.config.runtime_args)
        path = os.path.join(os.path.dirname(launch.state_dir.path), name)
        of = launch.request
        spec = ContainerSpec(
            of.spec.container_id,
            of.spec.bundle,
            of.spec.runtime,
            is_delete_awaited=of.spec.is_delete_awaited,
            has_engines_fifos=of.spec.has_engines_fifos,
        )
        origin = Origin(
            of.origin.path,
            is_adoptable=of.origin.is_adoptable,
            store_holder=of.origin.store_holder,
            environment=of.origin.environment,
        )
        request = StartRequest(spec, of.stop, origin)
        try:
            with ExitStack() as undo:
                os.mkdir(path, 0o700)
                undo.callback(remove_tree, path)
                state_dir = StateDirectory.open(path)
                undo.callback(state_dir.close)
                state_dir.write("process.json", encode_process(process, config), 0o600)
                log = state_dir.open_log()
                undo.callback(log.close)
                made = Container(container.host, request, log, state_dir, config, parent=container)
                undo.pop_all()
        except OSError as error:
            raise ShimError(f"exec {name}: {error.filename or path}: {reason(error)}") from error
        made.launch.owned.extend((log, state_dir))
        made.begin()
        return made

    def resize(self, columns: int, rows: int) -> None:
        """Set the size of the console; without a console nothing happens."""
        self._check(Verb.RESIZE)
        self._container.launch.pipes.resize(columns, rows)

    def close_stdin(self) -> None:
        """Close the supervisor's write end of the stdin fifo.

        The worker still delivers what is in the fifo, and what other writers write.
        """
        self._check(Verb.CLOSE_STDIN)
        stdio = self._container.launch.stdio
        if not stdio.is_stdin_closed:
            stdio.close_stdin()
            self._container.running.handover.publish()

    def reopen_logs(self) -> None:
        """Open each log file again by its name, where a rotation has moved it."""
        self._check(Verb.REOPEN_LOGS)
        self._container.running.stream_set.reopen()

    def renew_logs(self) -> None:
        """Rotate or replace each k8s-file now, and open the new one.

        Raises:
            VerbError: As `reopen_logs`.
            ShimError: A directory is gone; the old file goes on.
        """
        self._check(Verb.REOPEN_LOGS)
        try:
            self._container.running.stream_set.renew_files()
        except OSError as error:
            raise ShimError(f"renew the log: {error.filename}: {reason(error)}") from error
        self._container.running.stream_set.reopen()

    def attach(self, stream: str, fifo: str) -> None:
        """Copy what `stdout` or `stderr` writes from now on to a fifo of the state directory."""
        self._check(Verb.ATTACH)
        self._container.running.stream_set.attach(stream, fifo)

    def pause(self, on_end: Callable[[str], None]) -> None:
        """Have the runtime freeze the container. `on_end` gets "", or why that has failed.

        Raises:
            VerbError: The container does not run, or a pause or resume is under way. An exec'd
                process cannot be paused alone.
            ShimError: The runtime cannot be executed.
        """
        self._check(Verb.PAUSE)
        self._freeze("pause", self._container.launch.command.pause(), on_end)

    def resume(self, on_end: Callable[[str], None]) -> None:
        """Have the runtime thaw the container; as `pause`."""
        self._check(Verb.RESUME)
        self._freeze("resume", self._container.launch.command.resume(), on_end)

    def _freeze(self, verb: str, argv: list[str], on_end: Callable[[str], None]) -> None:
        launch, running = self._container.launch, self._container.running
        if launch.config.is_exec:
            raise VerbError(f"{verb}: an exec'd process has no freezer of its own")
        if self._is_freezing:
            raise VerbError(f"{verb}: another pause or resume is under way")

        def on_exit(termination: Termination, output: bytes) -> None:
            self._is_freezing = False
            if shell_status(termination) == 0:
                running.is_paused = verb == "pause"
                running.handover.changed()
                on_end("")
            else:
                on_end(f"{termination}: {joined_lines(output)}")

        launch.invoker.capture(argv, on_exit, cwd=launch.command.directory, with_stderr=True)
        self._is_freezing = True

    def kill_by_runtime(
        self, signum: int, on_end: Callable[[str], None], *, is_all: bool = False
    ) -> None:
        """Send one signal by the runtime: to the init, or with `is_all` to every process.

        The runtime thaws a paused container of cgroup v1 for SIGKILL; `signal` cannot.
        `on_end` gets "" or why that has failed.

        Raises:
            VerbError: As `signal`; an exec'd process is not the runtime's to signal.
            ShimError: The runtime cannot be executed.
        """
        self._check(Verb.SIGNAL)
        command = self._container.launch.command
        argv = command.signal_all(signum) if is_all else command.kill(signum)
        self._call(Verb.SIGNAL, argv, on_end)

    def update(self, resources: bytes, on_end: Callable[[str], None]) -> None:
        """Change the container's limits by its runtime. `on_end` gets "" or why that has failed.

        Args:
            resources: JSON of the runtime-spec's `linux.resources`.
            on_end: Called once, when the runtime has ended.

        Raises:
            VerbError: It has no container yet, or none any more.
            ShimError: The runtime cannot be executed.
        """
        self._check(Verb.UPDATE)
        with fds.in_memory("resources", resources) as stdin:
            self._call(Verb.UPDATE, self._container.launch.command.update(), on_end, stdin=stdin)

    def checkpoint(self, plan: CheckpointPlan, on_end: Callable[[str], None]) -> None:
        """Have the runtime write a checkpoint; as `update`. It takes as long as it takes."""
        self._check(Verb.CHECKPOINT)
        argv = self._container.launch.command.checkpoint(plan)
        self._call(Verb.CHECKPOINT, argv, on_end, limit_s=None)

    def _call(
        self,
        verb: Verb,
        argv: list[str],
        on_end: Callable[[str], None],
        stdin: int | None = None,
        limit_s: float | None = CALL_LIMIT_S,
    ) -> None:
        launch = self._container.launch
        if launch.config.is_exec:
            raise VerbError(f"{verb.value}: an exec'd process has none of its own")

        def on_exit(termination: Termination, output: bytes) -> None:
            has_worked = shell_status(termination) == 0
            on_end("" if has_worked else f"{termination}: {joined_lines(output)}")

        cwd = launch.command.directory
        launch.invoker.capture(
            argv, on_exit, cwd=cwd, with_stderr=True, stdin=stdin, limit_s=limit_s
        )

    def delete(self) -> None:
        """Delete the stopped container: of one whose request leaves that to this verb.

        Nothing is drained: what the streams have not delivered is lost with their workers.
        """
        self._check(Verb.DELETE)
        if not self._container.request.spec.is_delete_awaited:
            raise VerbError("delete: it is deleted without this verb")
        self._container.running.deleted_by_verb()

    def wait(self, on_outcome: Callable[[Outcome], None]) -> None:
        """Call back when all is over: drained, deleted, every child reaped, descriptors closed."""
        self._check(Verb.WAIT)
        self._container.waiting.append(on_outcome)

    def state(self) -> Status:
        """Return the state."""
        container = self._container
        status = _STATUS[container.state]
        if status == "running" and container.running.is_paused:
            status = "paused"
        request, is_exec = container.request, container.launch.config.is_exec
        return Status(
            request.spec.container_id, status, container.pid, request.spec.bundle, is_exec
        )

    def subscribe(self, on_notice: Callable[[Notice, str], None]) -> None:
        """Call back with each notice and its detail: the exit status, the name of the stream."""
        self._container.subscribers.append(on_notice)


class StreamNotices:
    """Announces new troubles of streams and deaths of workers. Borrows everything."""

    def __init__(self, container: Container, stream_set: StreamSet) -> None:
        """Announce nothing before `look`."""
        self._container = container
        self._stream_set = stream_set
        self._seen: dict[Stream, tuple[int, str]] = {}

    def look(self) -> None:
        """Announce what has changed since the last look."""
        if not self._container.subscribers:
            return
        for stream in self._stream_set.streams:
            deaths, trouble = self._seen.get(stream, (0, ""))
            now = (self._stream_set.deaths(stream), self._stream_set.trouble(stream))
            self._seen[stream] = now
            if now[0] != deaths:
                self._container.announce(Notice.WORKER_RESPAWNED, stream.name)
            if now[1] != trouble:
                self._container.announce(Notice.STREAM_TROUBLE, f"{stream.name}: {now[1]}")
