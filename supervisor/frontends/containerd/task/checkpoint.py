"""A checkpoint of a running container, as containerd's Checkpoint asks for it.

Source: runtime/v2/runc and pkg/process/init.go of containerd, for the defaults and the copy of
CRIU's log.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress

from supervisor.oci.command_line import CheckpointPlan
from supervisor.wire import messages
from supervisor.wire.protobuf import is_any_of, unpack_any

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from supervisor.frontends.containerd.task.task import Task

_WORK_NAME = "criu-work"
_LOG_NAME, _LOG_COPY_NAME = "dump.log", "criu-dump.log"


def run(task: Task, request: Mapping[str, Any], on_end: Callable[[str], None]) -> None:
    """Write the checkpoint. `on_end` gets "" or why that has failed.

    Args:
        task: Its bundle gets CRIU's log if that fails.
        request: A CheckpointTaskRequest.
        on_end: Called once, when the runtime has ended.

    Raises:
        WireError: The options are malformed.
        ShimError: The runtime cannot be executed; or as `ContainerApi.checkpoint`.
    """
    packed = request["options"]
    options: Mapping[str, Any] = {}
    if packed is not None and is_any_of(packed, messages.CheckpointOptions):
        options = unpack_any(packed, messages.CheckpointOptions)
    kept = options.get("work_path") or task.options.criu_work_path
    work = kept or os.path.join(task.bundle, "work", _WORK_NAME)
    plan = CheckpointPlan(
        request["path"] or options.get("image_path", ""),
        work,
        leaves_running=not options.get("exit", False),
        tcp=options.get("open_tcp", False),
        unix_sockets=options.get("external_unix_sockets", False),
        shell=options.get("terminal", False),
        file_locks=options.get("file_locks", False),
        empty_ns=tuple(options.get("empty_namespaces", ())),
        cgroups_mode=options.get("cgroups_mode", ""),
    )

    def ended(error: str) -> None:
        if error:
            copy = os.path.join(task.bundle, _LOG_COPY_NAME)
            with suppress(OSError):  # CRIU has not begun, or the disk is full
                shutil.copyfile(os.path.join(work, _LOG_NAME), copy)
            error = f"{error} path= {copy}"
        if not kept:
            shutil.rmtree(work, ignore_errors=True)
        on_end(error)

    task.init.api.checkpoint(plan, ended)
