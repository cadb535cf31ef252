"""One task: a container, its root file system's mounts, its init and its exec'd processes."""

from __future__ import annotations

import os
import shutil
from functools import partial

from supervisor.container.container import Container
from supervisor.container.request import ContainerSpec, Origin, StartRequest
from supervisor.frontends.containerd import delete
from supervisor.frontends.containerd.options import OPTIONS_NAME
from supervisor.frontends.containerd.task.log_program import LogProgram
from supervisor.frontends.containerd.task.rootfs import Rootfs
from supervisor.frontends.containerd.task.runtime_queue import RuntimeQueue
from supervisor.frontends.containerd.task.stdio import logger_of, make_directory, settings_of
from supervisor.frontends.containerd.task.task_lifecycle import Event, State
from supervisor.frontends.containerd.task.task_process import TaskProcess
from supervisor.linux import plain_json
from supervisor.linux.errors import ShimError, describe, reason
from supervisor.linux.fds import Fd
from supervisor.oci.process_json import CheckpointRecord, ProcessConfig
from supervisor.state.container_id import check_id
from supervisor.state.directory import StateDirectory
from supervisor.systemd import delegation
from supervisor.systemd.oom_events import OomEvents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from supervisor.container.host import Host
    from supervisor.frontends.containerd.options import Options
    from supervisor.frontends.containerd.task.call import Call
    from supervisor.frontends.containerd.task.task_journal import TaskJournal
    from supervisor.handover.manager import StoreHolder

_STATE_NAME = "forkshim"


class Task:
    """One container as containerd sees it. Borrows host and journal.

    Many attributes: it has what is of the container and not of one of its processes.

    Attributes:
        container_id: containerd's.
        bundle: Absolute path.
        options: Those of its Create.
        init: Its first process.
        execs: Those that are exec'd in it, by their ids.
        is_paused: Whether the runtime has frozen it.
        is_pausing: Whether it is about to.
        membership: The cgroups of its init by controller; empty before its creation.
        is_oom_told: Whether /tasks/oom was emitted.
        calls: The runtime calls that must not overtake each other.
    """

    def __init__(
        self,
        host: Host,
        journal: TaskJournal,
        namespace: str,
        request: Mapping[str, Any],
        options: Options,
        on_deleted: Callable[[Task], None],
        *,
        command: tuple[str, ...],
        store_holder: StoreHolder | None,
    ) -> None:
        """Nothing happens before `create`. `request`: a CreateTaskRequest.

        `command`: how to start this program again. `store_holder`: of this shim; None without one.

        Raises:
            UsageError: The id or a stream's name is not valid.
        """
        self.container_id: str = request["id"]
        check_id(self.container_id)
        self.bundle: str = request["bundle"]
        self._host = host
        self._journal = journal
        self._namespace = namespace
        self._request = request
        self.options = options
        self._config = ProcessConfig(
            **settings_of(request, self._logger_directory("")),
            runtime_args=options.runtime_args(namespace),
            checkpoint=request["checkpoint"],
            no_pivot_root=options.no_pivot_root,
            no_new_keyring=options.no_new_keyring,
            root_uid=options.io_uid,
            root_gid=options.io_gid,
        )
        self._rootfs = Rootfs(host, self.container_id, self.bundle, request["rootfs"])
        self._on_deleted = on_deleted
        self._origin = Origin(
            command=command,
            is_adoptable=store_holder is not None,
            store_holder=store_holder,
            environment=host.environment,
        )
        self._specs: dict[str, Mapping[str, Any]] = {}
        self.init = TaskProcess(self, "", request, State.CREATING)
        self.make_logger(self.init)
        self.execs: dict[str, TaskProcess] = {}
        self.is_paused = False
        self.is_pausing = False
        self.membership: dict[str, str] = {}
        self.is_oom_told = False
        self._oom_events: OomEvents | None = None
        self.calls = RuntimeQueue()

    @property
    def _state_path(self) -> str:
        return os.path.join(self.bundle, _STATE_NAME)

    def state_path(self, process: TaskProcess) -> str:
        """Return the path of a process's state directory."""
        name = f"exec-{process.exec_id}" if process.exec_id else "init"
        return os.path.join(self._state_path, name)

    # Creation.

    def create(self, call: Call) -> None:
        """Mount the root file system and create the container; the answer follows."""
        self.init.start_call = call
        self.note(self.init)
        with open(os.path.join(self.bundle, OPTIONS_NAME), "wb") as file:
            file.write(self.options.encode())  # `delete` reads it
        self._rootfs.mount(self._create)

    def _create(self, mount_error: str) -> None:
        if mount_error:
            self.init.fail(mount_error)
            return
        if self._request["checkpoint"]:
            self.init.post(Event.MOUNTED)
        else:
            self._begin_logged(self.init, self._begin)

    def begin_restore(self) -> None:
        """Run the runtime's restore; an error fails the init."""
        self._begin_logged(self.init, self._begin)

    def _begin(self) -> None:
        make_directory(self._request)
        if self._request["checkpoint"]:
            os.makedirs(os.path.join(self._request["checkpoint"], "criu.work"), exist_ok=True)
        path = self.state_path(self.init)
        os.makedirs(path, 0o700)
        state_dir = StateDirectory.open(path)
        log = state_dir.open_log(f"forkshim: {self.container_id}")
        spec = ContainerSpec(
            self.container_id,
            self.bundle,
            self.options.runtime,
            starts_container=True,
            is_start_awaited=not self._request["checkpoint"],
            is_delete_awaited=True,
            has_engines_fifos=True,
        )
        request = StartRequest(spec, origin=self._origin)
        container = Container(self._host, request, log, state_dir, self._config)
        container.launch.owned.extend((log, state_dir))
        self.init.follow(container)
        container.begin(CheckpointRecord() if self._request["checkpoint"] else None)

    # The programs that log.

    def _logger_directory(self, exec_id: str) -> str:
        return os.path.join(self.bundle, _STATE_NAME, f"log-{exec_id}" if exec_id else "log")

    def make_logger(self, process: TaskProcess) -> None:
        """Give a process its program that logs, if its client has named one."""
        target = logger_of(process.streams)
        if target is not None:
            process.logger = LogProgram(
                self._host,
                target,
                bundle=self.bundle,
                directory=self._logger_directory(process.exec_id),
                container_id=process.exec_id or self.container_id,
                namespace=self._namespace,
            )

    def _begin_logged(self, process: TaskProcess, begin: Callable[[], None]) -> None:
        """Call `begin` when the program that logs is ready; at once if there is none."""

        def ready(error: str) -> None:
            if not error:
                try:
                    begin()
                except (ShimError, OSError) as failed:
                    error = describe(failed)
            if error:
                self.release(process, lambda: process.fail(error))

        if process.logger is None:
            ready("")
        else:
            process.logger.start(ready)

    # What the init tells.

    def emit_create(self, pid: int) -> None:
        """Emit /tasks/create. A container that is to be restored has no process yet."""
        if pid:
            self.note_process(pid)
        request = self._request
        self.emit(
            "/tasks/create",
            self.init,
            bundle=self.bundle,
            rootfs=request["rootfs"],
            io={name: request[name] for name in ("stdin", "stdout", "stderr", "terminal")},
            checkpoint=request["checkpoint"],
            pid=pid,
        )

    def note_process(self, pid: int) -> None:
        """Note what only a living init tells."""
        self.membership = delegation.membership(pid)
        self.watch_oom()
        try:
            with open(os.path.join(self.bundle, delete.PID_NAME), "w") as file:
                file.write(str(pid))
        except OSError as error:  # ENOSPC: the container runs, and so do the others of the pod
            self._host.log.warning(
                f"write {self.bundle}/{delete.PID_NAME}: {reason(error)}; `delete` after a death "
                "of this shim kills less"
            )

    def watch_oom(self) -> None:
        """Emit /tasks/oom when the kernel kills one of its processes, up to the init's exit."""
        try:
            self._oom_events = OomEvents(self._host.loop, self.membership, self.emit_oom)
        except OSError as error:  # no memory controller: the count at the end has none, either
            self._host.log.info(f"{self.container_id}: no OOM events: {reason(error)}")

    def emit_oom(self) -> None:
        """Emit /tasks/oom."""
        self.is_oom_told = True
        self.emit("/tasks/oom", self.init)

    def emit(self, topic: str, process: TaskProcess, **values: object) -> None:
        """Queue an event about this container, and note that `process` is past it."""
        values = {"container_id": self.container_id, **values}
        self._journal.publish(self, process, topic, values)

    def note(self, process: TaskProcess) -> None:
        """Note a change of a process for a successor of this shim."""
        self._journal.note(self, process)

    @property
    def processes(self) -> list[TaskProcess]:
        """The init, then the others."""
        return [self.init, *self.execs.values()]

    # Exec'd processes.

    def add_exec(self, exec_id: str, request: Mapping[str, Any]) -> None:
        """Register a process that `start` executes.

        Raises:
            ShimError: Its streams or its spec are not valid.
        """
        self.know_exec(exec_id, request)
        self.emit("/tasks/exec-added", self.execs[exec_id], exec_id=exec_id)

    def know_exec(self, exec_id: str, request: Mapping[str, Any]) -> None:
        """Register a process as `add_exec`, of which containerd knows already."""
        check_id(exec_id)
        settings_of(request, self._logger_directory(exec_id))
        spec = plain_json.loads(request["spec"]["value"] if request["spec"] else b"")
        if not isinstance(spec, dict):
            raise ShimError("spec is no JSON object")
        self._specs[exec_id] = spec
        self.execs[exec_id] = TaskProcess(self, exec_id, request, State.ADDED)

    def begin_exec(self, process: TaskProcess) -> None:
        """Run the runtime's exec; an error fails the process."""
        self.make_logger(process)
        self._begin_logged(process, partial(self._begin_exec, process))

    def _begin_exec(self, process: TaskProcess) -> None:
        make_directory(process.streams)
        config = ProcessConfig(
            **settings_of(process.streams, self._logger_directory(process.exec_id)),
            root_uid=self._config.root_uid,
            root_gid=self._config.root_gid,
        )
        spec = self._specs[process.exec_id]
        process.follow(self.init.api.exec(f"exec-{process.exec_id}", spec, config))

    def look_for_execs(self, process: TaskProcess) -> None:
        """Let the init's exit go out once each exec'd process has had its own."""
        for each in self.execs.values():
            each.give_up_start("its container has ended")
        if process.exec_id or not any(each.is_alive for each in self.execs.values()):
            process.post(Event.EXECS_ENDED)

    def exited(self, process: TaskProcess) -> None:
        """Write the init's end for a `delete` of another process; go on behind an exec's."""
        if process.exec_id:
            self.after_exec()
            return
        if self._oom_events is not None:
            self._oom_events.close()
        self._write_reply(delete.EXIT_REPLY_NAME)

    def after_exec(self) -> None:
        """Go on with an init that has ended before an exec'd process."""
        # Behind the exec's own /tasks/exit, which its step emits next.
        self._host.loop.timer(self._look_again).start(0.0)

    def _look_again(self) -> None:
        if self.init.state is State.AWAITING_EXECS:
            self.look_for_execs(self.init)

    def _write_reply(self, name: str) -> None:
        try:
            bundle = Fd(os.open(self.bundle, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            try:
                delete.write_reply(bundle.fileno(), name, self.init.exit_values)
            finally:
                bundle.close()
        except OSError as error:
            self._host.log.warning(f"{self.container_id}: {name}: {reason(error)}")

    # The end.

    def release(self, process: TaskProcess, then: Callable[[], None]) -> None:
        """End the program that logs; of an init also unmount the root file system.

        `then` follows, whatever came of it.
        """

        def stopped() -> None:
            process.logger = None
            if process.exec_id:
                then()
            else:
                self._rootfs.unmount(then)

        if process.logger is None:
            stopped()
        else:
            process.logger.stop(stopped)

    def remove(self, process: TaskProcess, then: Callable[[], None]) -> None:
        """Remove what a killed shim has left of a process without a container of the core."""
        if process.exec_id:
            then()
        else:
            self._rootfs.clean_up(self.options.runtime, self._config.runtime_args, then)

    def clean_up(self, process: TaskProcess) -> None:
        """Remove the state directory; of an init also write the answer for `delete`."""
        path = self.state_path(process) if process.exec_id else self._state_path
        shutil.rmtree(path, ignore_errors=True)
        if not process.exec_id and process.pid:
            self._write_reply(delete.DELETE_REPLY_NAME)

    def deleted(self, process: TaskProcess) -> None:
        """Forget a process whose Delete was answered."""
        if process.exec_id:
            self.execs.pop(process.exec_id, None)
            self._specs.pop(process.exec_id, None)
            self._journal.forget(self, process)
        else:
            for each in [*self.execs.values()]:  # ended by now, and no client deletes them later
                each.post(Event.DELETE)
            self._on_deleted(self)
