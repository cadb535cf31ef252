"""The messages between containerd and a shim, as tables for `supervisor.wire.protobuf`.

Names, numbers and kinds are those of containerd's .proto files, 1.6 to 2.3. The services
`containerd.task.v2.Task` and `containerd.task.v3.Task` have the same messages. Each request and
response of a service is in `TASK_METHODS`. Fields that forkshim neither reads nor writes may be
missing: unknown fields are skipped.

The metrics of Stats are in `supervisor.wire.cgroup_metrics`.

Source: api/runtime/task, api/events, api/types in github.com/containerd/containerd.
"""

from __future__ import annotations

from supervisor.wire.protobuf import (
    BOOL,
    BYTES,
    ENUM,
    INT32,
    INT64,
    STRING,
    STRING_MAP,
    UINT32,
    Field,
    MessageType,
)

TASK_SERVICES = ("containerd.task.v2.Task", "containerd.task.v3.Task")
EVENTS_SERVICE = "containerd.services.events.ttrpc.v1.Events"
GO_ZERO_TIME = {"seconds": -62135596800, "nanos": 0}
"""The year 1: what a Go shim sends as `exited_at` of a process that has not exited."""

UNKNOWN, CREATED, RUNNING, STOPPED, PAUSED, PAUSING = range(6)
"""containerd.v1.types.Status, for `StateResponse`."""


def timestamp(time_ns: int) -> dict[str, int]:
    """Return the values of a `Timestamp`, from nanoseconds since the epoch."""
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    return {"seconds": seconds, "nanos": nanos}


# google

Any = MessageType("google.protobuf.Any", Field(1, "type_url", STRING), Field(2, "value", BYTES))
Empty = MessageType("google.protobuf.Empty")
Timestamp = MessageType(
    "google.protobuf.Timestamp", Field(1, "seconds", INT64), Field(2, "nanos", INT32)
)
Status = MessageType(
    "google.rpc.Status",
    Field(1, "code", INT32),
    Field(2, "message", STRING),
    Field(3, "details", Any, True),
)

# ttrpc

KeyValue = MessageType("ttrpc.KeyValue", Field(1, "key", STRING), Field(2, "value", STRING))
Request = MessageType(
    "ttrpc.Request",
    Field(1, "service", STRING),
    Field(2, "method", STRING),
    Field(3, "payload", BYTES),
    Field(4, "timeout_nano", INT64),
    Field(5, "metadata", KeyValue, True),
)
Response = MessageType("ttrpc.Response", Field(1, "status", Status), Field(2, "payload", BYTES))

# containerd.task.v2

Mount = MessageType(
    "containerd.types.Mount",
    Field(1, "type", STRING),
    Field(2, "source", STRING),
    Field(3, "target", STRING),
    Field(4, "options", STRING, True),
)


def _task(name: str, *fields: Field) -> MessageType:
    return MessageType(f"containerd.task.v2.{name}", *fields)


def _of_container(name: str, *fields: Field) -> MessageType:
    return _task(name, Field(1, "id", STRING), *fields)


def _of_process(name: str, *fields: Field) -> MessageType:
    return _of_container(name, Field(2, "exec_id", STRING), *fields)


CreateTaskRequest = _of_container(
    "CreateTaskRequest",
    Field(2, "bundle", STRING),
    Field(3, "rootfs", Mount, True),
    Field(4, "terminal", BOOL),
    Field(5, "stdin", STRING),
    Field(6, "stdout", STRING),
    Field(7, "stderr", STRING),
    Field(8, "checkpoint", STRING),
    Field(9, "parent_checkpoint", STRING),
    Field(10, "options", Any),
)
CreateTaskResponse = _task("CreateTaskResponse", Field(1, "pid", UINT32))
StartRequest = _of_process("StartRequest")
StartResponse = _task("StartResponse", Field(1, "pid", UINT32))
StateRequest = _of_process("StateRequest")
StateResponse = _of_container(
    "StateResponse",
    Field(2, "bundle", STRING),
    Field(3, "pid", UINT32),
    Field(4, "status", ENUM),
    Field(5, "stdin", STRING),
    Field(6, "stdout", STRING),
    Field(7, "stderr", STRING),
    Field(8, "terminal", BOOL),
    Field(9, "exit_status", UINT32),
    Field(10, "exited_at", Timestamp),
    Field(11, "exec_id", STRING),
)
DeleteRequest = _of_process("DeleteRequest")
DeleteResponse = _task(
    "DeleteResponse",
    Field(1, "pid", UINT32),
    Field(2, "exit_status", UINT32),
    Field(3, "exited_at", Timestamp),
)
PidsRequest = _of_container("PidsRequest")
ProcessInfo = MessageType(
    "containerd.v1.types.ProcessInfo", Field(1, "pid", UINT32), Field(2, "info", Any)
)
PidsResponse = _task("PidsResponse", Field(1, "processes", ProcessInfo, True))
PauseRequest = _of_container("PauseRequest")
ResumeRequest = _of_container("ResumeRequest")
CheckpointTaskRequest = _of_container(
    "CheckpointTaskRequest", Field(2, "path", STRING), Field(3, "options", Any)
)
KillRequest = _of_process("KillRequest", Field(3, "signal", UINT32), Field(4, "all", BOOL))
ExecProcessRequest = _of_process(
    "ExecProcessRequest",
    Field(3, "terminal", BOOL),
    Field(4, "stdin", STRING),
    Field(5, "stdout", STRING),
    Field(6, "stderr", STRING),
    Field(7, "spec", Any),
)
ResizePtyRequest = _of_process(
    "ResizePtyRequest", Field(3, "width", UINT32), Field(4, "height", UINT32)
)
CloseIORequest = _of_process("CloseIORequest", Field(3, "stdin", BOOL))
UpdateTaskRequest = _of_container(
    "UpdateTaskRequest", Field(2, "resources", Any), Field(3, "annotations", STRING_MAP)
)
WaitRequest = _of_process("WaitRequest")
WaitResponse = _task(
    "WaitResponse", Field(1, "exit_status", UINT32), Field(2, "exited_at", Timestamp)
)
StatsRequest = _of_container("StatsRequest")
StatsResponse = _task("StatsResponse", Field(1, "stats", Any))
ConnectRequest = _of_container("ConnectRequest")
ConnectResponse = _task(
    "ConnectResponse",
    Field(1, "shim_pid", UINT32),
    Field(2, "task_pid", UINT32),
    Field(3, "version", STRING),
)
ShutdownRequest = _of_container("ShutdownRequest", Field(2, "now", BOOL))

TASK_METHODS = {
    "State": (StateRequest, StateResponse),
    "Create": (CreateTaskRequest, CreateTaskResponse),
    "Start": (StartRequest, StartResponse),
    "Delete": (DeleteRequest, DeleteResponse),
    "Pids": (PidsRequest, PidsResponse),
    "Pause": (PauseRequest, Empty),
    "Resume": (ResumeRequest, Empty),
    "Checkpoint": (CheckpointTaskRequest, Empty),
    "Kill": (KillRequest, Empty),
    "Exec": (ExecProcessRequest, Empty),
    "ResizePty": (ResizePtyRequest, Empty),
    "CloseIO": (CloseIORequest, Empty),
    "Update": (UpdateTaskRequest, Empty),
    "Wait": (WaitRequest, WaitResponse),
    "Stats": (StatsRequest, StatsResponse),
    "Connect": (ConnectRequest, ConnectResponse),
    "Shutdown": (ShutdownRequest, Empty),
}
"""By method of the Task service: its request and its response."""

# Options, in the Any of Create, Checkpoint and `start`

Options = MessageType(
    "containerd.runc.v1.Options",
    Field(1, "no_pivot_root", BOOL),
    Field(2, "no_new_keyring", BOOL),
    Field(3, "shim_cgroup", STRING),
    Field(4, "io_uid", UINT32),
    Field(5, "io_gid", UINT32),
    Field(6, "binary_name", STRING),
    Field(7, "root", STRING),
    Field(8, "criu_path", STRING),
    Field(9, "systemd_cgroup", BOOL),
    Field(10, "criu_image_path", STRING),
    Field(11, "criu_work_path", STRING),
    Field(12, "task_api_address", STRING),
    Field(13, "task_api_version", UINT32),
)
CheckpointOptions = MessageType(
    "containerd.runc.v1.CheckpointOptions",
    Field(1, "exit", BOOL),
    Field(2, "open_tcp", BOOL),
    Field(3, "external_unix_sockets", BOOL),
    Field(4, "terminal", BOOL),
    Field(5, "file_locks", BOOL),
    Field(6, "empty_namespaces", STRING, True),
    Field(7, "cgroups_mode", STRING),
    Field(8, "image_path", STRING),
    Field(9, "work_path", STRING),
)
ProcessDetails = MessageType("containerd.runc.v1.ProcessDetails", Field(1, "exec_id", STRING))
CreateOptions = MessageType(
    "containerd.linux.runc.CreateOptions",
    Field(1, "no_pivot_root", BOOL),
    Field(2, "open_tcp", BOOL),
    Field(3, "external_unix_sockets", BOOL),
    Field(4, "terminal", BOOL),
    Field(5, "file_locks", BOOL),
    Field(6, "empty_namespaces", STRING, True),
    Field(7, "cgroups_mode", STRING),
    Field(8, "no_new_keyring", BOOL),
    Field(9, "shim_cgroup", STRING),
    Field(10, "io_uid", UINT32),
    Field(11, "io_gid", UINT32),
    Field(12, "criu_work_path", STRING),
    Field(13, "criu_image_path", STRING),
)

# `start` and `-info`

Extension = MessageType("containerd.runtime.bootstrap.v1.Extension", Field(1, "value", Any))
BootstrapParams = MessageType(
    "containerd.runtime.bootstrap.v1.BootstrapParams",
    Field(1, "instance_id", STRING),
    Field(2, "namespace", STRING),
    Field(3, "log_level", ENUM),
    Field(4, "containerd_version", STRING),
    Field(5, "containerd_ttrpc_address", STRING),
    Field(6, "containerd_grpc_address", STRING),
    Field(7, "containerd_binary", STRING),
    Field(8, "extensions", Extension, True),
    Field(9, "socket_dir", STRING),
)
BootstrapResult = MessageType(
    "containerd.runtime.bootstrap.v1.BootstrapResult",
    Field(1, "version", INT32),
    Field(2, "address", STRING),
    Field(3, "protocol", STRING),
    Field(4, "capabilities", ENUM, True),
    Field(5, "metadata", STRING_MAP),
)
RuntimeVersion = MessageType(
    "containerd.types.RuntimeVersion", Field(1, "version", STRING), Field(2, "revision", STRING)
)
RuntimeInfo = MessageType(
    "containerd.types.RuntimeInfo",
    Field(1, "name", STRING),
    Field(2, "version", RuntimeVersion),
    Field(3, "options", Any),
    Field(4, "features", Any),
    Field(5, "annotations", STRING_MAP),
)

# Events


def _event(name: str, *fields: Field) -> MessageType:
    return MessageType(f"containerd.events.{name}", Field(1, "container_id", STRING), *fields)


Envelope = MessageType(
    "containerd.services.events.ttrpc.v1.Envelope",
    Field(1, "timestamp", Timestamp),
    Field(2, "namespace", STRING),
    Field(3, "topic", STRING),
    Field(4, "event", Any),
)
ForwardRequest = MessageType(
    "containerd.services.events.ttrpc.v1.ForwardRequest", Field(1, "envelope", Envelope)
)
TaskIO = MessageType(
    "containerd.events.TaskIO",
    Field(1, "stdin", STRING),
    Field(2, "stdout", STRING),
    Field(3, "stderr", STRING),
    Field(4, "terminal", BOOL),
)
TaskCreate = _event(
    "TaskCreate",
    Field(2, "bundle", STRING),
    Field(3, "rootfs", Mount, True),
    Field(4, "io", TaskIO),
    Field(5, "checkpoint", STRING),
    Field(6, "pid", UINT32),
)
TaskStart = _event("TaskStart", Field(2, "pid", UINT32))
TaskExit = _event(
    "TaskExit",
    Field(2, "id", STRING),
    Field(3, "pid", UINT32),
    Field(4, "exit_status", UINT32),
    Field(5, "exited_at", Timestamp),
)
TaskDelete = _event(
    "TaskDelete",
    Field(2, "pid", UINT32),
    Field(3, "exit_status", UINT32),
    Field(4, "exited_at", Timestamp),
    Field(5, "id", STRING),
)
TaskExecAdded = _event("TaskExecAdded", Field(2, "exec_id", STRING))
TaskExecStarted = _event("TaskExecStarted", Field(2, "exec_id", STRING), Field(3, "pid", UINT32))
TaskPaused = _event("TaskPaused")
TaskResumed = _event("TaskResumed")
TaskCheckpointed = _event("TaskCheckpointed", Field(2, "checkpoint", STRING))
TaskOOM = _event("TaskOOM")

EVENT_TOPICS = {
    "/tasks/create": TaskCreate,
    "/tasks/start": TaskStart,
    "/tasks/exit": TaskExit,
    "/tasks/delete": TaskDelete,
    "/tasks/exec-added": TaskExecAdded,
    "/tasks/exec-started": TaskExecStarted,
    "/tasks/paused": TaskPaused,
    "/tasks/resumed": TaskResumed,
    "/tasks/checkpointed": TaskCheckpointed,
    "/tasks/oom": TaskOOM,
}
"""By topic: the event published under it."""
