"""What containerd's .proto files say, and google's library made to speak it.

The text is an account of the contract, apart from `supervisor.wire`: number, kind and name of each
field. A trailing * means repeated.
"""

from __future__ import annotations

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CONTRACT = """
google.protobuf.Any: 1 string type_url, 2 bytes value
google.protobuf.Empty:
google.protobuf.Timestamp: 1 int64 seconds, 2 int32 nanos
google.rpc.Status: 1 int32 code, 2 string message, 3 google.protobuf.Any* details

ttrpc.KeyValue: 1 string key, 2 string value
ttrpc.Request: 1 string service, 2 string method, 3 bytes payload, 4 int64 timeout_nano,
  5 ttrpc.KeyValue* metadata
ttrpc.Response: 1 google.rpc.Status status, 2 bytes payload

containerd.types.Mount: 1 string type, 2 string source, 3 string target, 4 string* options
containerd.v1.types.ProcessInfo: 1 uint32 pid, 2 google.protobuf.Any info

containerd.task.v2.CreateTaskRequest: 1 string id, 2 string bundle,
  3 containerd.types.Mount* rootfs, 4 bool terminal, 5 string stdin, 6 string stdout,
  7 string stderr, 8 string checkpoint, 9 string parent_checkpoint, 10 google.protobuf.Any options
containerd.task.v2.CreateTaskResponse: 1 uint32 pid
containerd.task.v2.StartRequest: 1 string id, 2 string exec_id
containerd.task.v2.StartResponse: 1 uint32 pid
containerd.task.v2.StateRequest: 1 string id, 2 string exec_id
containerd.task.v2.StateResponse: 1 string id, 2 string bundle, 3 uint32 pid, 4 enum status,
  5 string stdin, 6 string stdout, 7 string stderr, 8 bool terminal, 9 uint32 exit_status,
  10 google.protobuf.Timestamp exited_at, 11 string exec_id
containerd.task.v2.DeleteRequest: 1 string id, 2 string exec_id
containerd.task.v2.DeleteResponse: 1 uint32 pid, 2 uint32 exit_status,
  3 google.protobuf.Timestamp exited_at
containerd.task.v2.PidsRequest: 1 string id
containerd.task.v2.PidsResponse: 1 containerd.v1.types.ProcessInfo* processes
containerd.task.v2.PauseRequest: 1 string id
containerd.task.v2.ResumeRequest: 1 string id
containerd.task.v2.CheckpointTaskRequest: 1 string id, 2 string path, 3 google.protobuf.Any options
containerd.task.v2.KillRequest: 1 string id, 2 string exec_id, 3 uint32 signal, 4 bool all
containerd.task.v2.ExecProcessRequest: 1 string id, 2 string exec_id, 3 bool terminal,
  4 string stdin, 5 string stdout, 6 string stderr, 7 google.protobuf.Any spec
containerd.task.v2.ResizePtyRequest: 1 string id, 2 string exec_id, 3 uint32 width, 4 uint32 height
containerd.task.v2.CloseIORequest: 1 string id, 2 string exec_id, 3 bool stdin
containerd.task.v2.UpdateTaskRequest: 1 string id, 2 google.protobuf.Any resources,
  3 map annotations
containerd.task.v2.WaitRequest: 1 string id, 2 string exec_id
containerd.task.v2.WaitResponse: 1 uint32 exit_status, 2 google.protobuf.Timestamp exited_at
containerd.task.v2.StatsRequest: 1 string id
containerd.task.v2.StatsResponse: 1 google.protobuf.Any stats
containerd.task.v2.ConnectRequest: 1 string id
containerd.task.v2.ConnectResponse: 1 uint32 shim_pid, 2 uint32 task_pid, 3 string version
containerd.task.v2.ShutdownRequest: 1 string id, 2 bool now

containerd.runc.v1.Options: 1 bool no_pivot_root, 2 bool no_new_keyring, 3 string shim_cgroup,
  4 uint32 io_uid, 5 uint32 io_gid, 6 string binary_name, 7 string root, 8 string criu_path,
  9 bool systemd_cgroup, 10 string criu_image_path, 11 string criu_work_path,
  12 string task_api_address, 13 uint32 task_api_version
containerd.runc.v1.CheckpointOptions: 1 bool exit, 2 bool open_tcp, 3 bool external_unix_sockets,
  4 bool terminal, 5 bool file_locks, 6 string* empty_namespaces, 7 string cgroups_mode,
  8 string image_path, 9 string work_path
containerd.runc.v1.ProcessDetails: 1 string exec_id
containerd.linux.runc.CreateOptions: 1 bool no_pivot_root, 2 bool open_tcp,
  3 bool external_unix_sockets, 4 bool terminal, 5 bool file_locks, 6 string* empty_namespaces,
  7 string cgroups_mode, 8 bool no_new_keyring, 9 string shim_cgroup, 10 uint32 io_uid,
  11 uint32 io_gid, 12 string criu_work_path, 13 string criu_image_path

containerd.runtime.bootstrap.v1.Extension: 1 google.protobuf.Any value
containerd.runtime.bootstrap.v1.BootstrapParams: 1 string instance_id, 2 string namespace,
  3 enum log_level, 4 string containerd_version, 5 string containerd_ttrpc_address,
  6 string containerd_grpc_address, 7 string containerd_binary,
  8 containerd.runtime.bootstrap.v1.Extension* extensions, 9 string socket_dir
containerd.runtime.bootstrap.v1.BootstrapResult: 1 int32 version, 2 string address,
  3 string protocol, 4 enum* capabilities, 5 map metadata
containerd.types.RuntimeVersion: 1 string version, 2 string revision
containerd.types.RuntimeInfo: 1 string name, 2 containerd.types.RuntimeVersion version,
  3 google.protobuf.Any options, 4 google.protobuf.Any features, 5 map annotations

containerd.services.events.ttrpc.v1.Envelope: 1 google.protobuf.Timestamp timestamp,
  2 string namespace, 3 string topic, 4 google.protobuf.Any event
containerd.services.events.ttrpc.v1.ForwardRequest:
  1 containerd.services.events.ttrpc.v1.Envelope envelope
containerd.events.TaskIO: 1 string stdin, 2 string stdout, 3 string stderr, 4 bool terminal
containerd.events.TaskCreate: 1 string container_id, 2 string bundle,
  3 containerd.types.Mount* rootfs, 4 containerd.events.TaskIO io, 5 string checkpoint, 6 uint32 pid
containerd.events.TaskStart: 1 string container_id, 2 uint32 pid
containerd.events.TaskExit: 1 string container_id, 2 string id, 3 uint32 pid,
  4 uint32 exit_status, 5 google.protobuf.Timestamp exited_at
containerd.events.TaskDelete: 1 string container_id, 2 uint32 pid, 3 uint32 exit_status,
  4 google.protobuf.Timestamp exited_at, 5 string id
containerd.events.TaskExecAdded: 1 string container_id, 2 string exec_id
containerd.events.TaskExecStarted: 1 string container_id, 2 string exec_id, 3 uint32 pid
containerd.events.TaskPaused: 1 string container_id
containerd.events.TaskResumed: 1 string container_id
containerd.events.TaskCheckpointed: 1 string container_id, 2 string checkpoint
containerd.events.TaskOOM: 1 string container_id

io.containerd.cgroups.v1.HugetlbStat: 1 uint64 usage, 2 uint64 max, 3 uint64 failcnt,
  4 string pagesize
io.containerd.cgroups.v1.PidsStat: 1 uint64 current, 2 uint64 limit
io.containerd.cgroups.v1.CPUUsage: 1 uint64 total, 2 uint64 kernel, 3 uint64 user, 4 uint64* per_cpu
io.containerd.cgroups.v1.Throttle: 1 uint64 periods, 2 uint64 throttled_periods,
  3 uint64 throttled_time
io.containerd.cgroups.v1.CPUStat: 1 io.containerd.cgroups.v1.CPUUsage usage,
  2 io.containerd.cgroups.v1.Throttle throttling
io.containerd.cgroups.v1.MemoryEntry: 1 uint64 limit, 2 uint64 usage, 3 uint64 max, 4 uint64 failcnt
io.containerd.cgroups.v1.MemoryStat: 1 uint64 cache, 2 uint64 rss, 3 uint64 rss_huge,
  4 uint64 mapped_file, 5 uint64 dirty, 6 uint64 writeback, 7 uint64 pg_pg_in, 8 uint64 pg_pg_out,
  9 uint64 pg_fault, 10 uint64 pg_maj_fault, 11 uint64 inactive_anon, 12 uint64 active_anon,
  13 uint64 inactive_file, 14 uint64 active_file, 15 uint64 unevictable,
  16 uint64 hierarchical_memory_limit, 17 uint64 hierarchical_swap_limit, 18 uint64 total_cache,
  19 uint64 total_rss, 20 uint64 total_rss_huge, 21 uint64 total_mapped_file,
  22 uint64 total_dirty, 23 uint64 total_writeback, 24 uint64 total_pg_pg_in,
  25 uint64 total_pg_pg_out, 26 uint64 total_pg_fault, 27 uint64 total_pg_maj_fault,
  28 uint64 total_inactive_anon, 29 uint64 total_active_anon, 30 uint64 total_inactive_file,
  31 uint64 total_active_file, 32 uint64 total_unevictable,
  33 io.containerd.cgroups.v1.MemoryEntry usage, 34 io.containerd.cgroups.v1.MemoryEntry swap,
  35 io.containerd.cgroups.v1.MemoryEntry kernel, 36 io.containerd.cgroups.v1.MemoryEntry kernel_tcp
io.containerd.cgroups.v1.MemoryOomControl: 1 uint64 oom_kill_disable, 2 uint64 under_oom,
  3 uint64 oom_kill
io.containerd.cgroups.v1.BlkIOEntry: 1 string op, 2 string device, 3 uint64 major, 4 uint64 minor,
  5 uint64 value
io.containerd.cgroups.v1.BlkIOStat:
  1 io.containerd.cgroups.v1.BlkIOEntry* io_service_bytes_recursive,
  2 io.containerd.cgroups.v1.BlkIOEntry* io_serviced_recursive,
  3 io.containerd.cgroups.v1.BlkIOEntry* io_queued_recursive,
  4 io.containerd.cgroups.v1.BlkIOEntry* io_service_time_recursive,
  5 io.containerd.cgroups.v1.BlkIOEntry* io_wait_time_recursive,
  6 io.containerd.cgroups.v1.BlkIOEntry* io_merged_recursive,
  7 io.containerd.cgroups.v1.BlkIOEntry* io_time_recursive,
  8 io.containerd.cgroups.v1.BlkIOEntry* sectors_recursive
io.containerd.cgroups.v1.RdmaEntry: 1 string device, 2 uint32 hca_handles, 3 uint32 hca_objects
io.containerd.cgroups.v1.RdmaStat: 1 io.containerd.cgroups.v1.RdmaEntry* current,
  2 io.containerd.cgroups.v1.RdmaEntry* limit
io.containerd.cgroups.v1.NetworkStat: 1 string name, 2 uint64 rx_bytes, 3 uint64 rx_packets,
  4 uint64 rx_errors, 5 uint64 rx_dropped, 6 uint64 tx_bytes, 7 uint64 tx_packets,
  8 uint64 tx_errors, 9 uint64 tx_dropped
io.containerd.cgroups.v1.CgroupStats: 1 uint64 nr_sleeping, 2 uint64 nr_running,
  3 uint64 nr_stopped, 4 uint64 nr_uninterruptible, 5 uint64 nr_io_wait
io.containerd.cgroups.v1.Metrics: 1 io.containerd.cgroups.v1.HugetlbStat* hugetlb,
  2 io.containerd.cgroups.v1.PidsStat pids, 3 io.containerd.cgroups.v1.CPUStat cpu,
  4 io.containerd.cgroups.v1.MemoryStat memory, 5 io.containerd.cgroups.v1.BlkIOStat blkio,
  6 io.containerd.cgroups.v1.RdmaStat rdma, 7 io.containerd.cgroups.v1.NetworkStat* network,
  8 io.containerd.cgroups.v1.CgroupStats cgroup_stats,
  9 io.containerd.cgroups.v1.MemoryOomControl memory_oom_control

io.containerd.cgroups.v2.PidsStat: 1 uint64 current, 2 uint64 limit
io.containerd.cgroups.v2.CPUStat: 1 uint64 usage_usec, 2 uint64 user_usec, 3 uint64 system_usec,
  4 uint64 nr_periods, 5 uint64 nr_throttled, 6 uint64 throttled_usec
io.containerd.cgroups.v2.MemoryStat: 1 uint64 anon, 2 uint64 file, 3 uint64 kernel_stack,
  4 uint64 slab, 5 uint64 sock, 6 uint64 shmem, 7 uint64 file_mapped, 8 uint64 file_dirty,
  9 uint64 file_writeback, 10 uint64 anon_thp, 11 uint64 inactive_anon, 12 uint64 active_anon,
  13 uint64 inactive_file, 14 uint64 active_file, 15 uint64 unevictable,
  16 uint64 slab_reclaimable, 17 uint64 slab_unreclaimable, 18 uint64 pgfault,
  19 uint64 pgmajfault, 20 uint64 workingset_refault, 21 uint64 workingset_activate,
  22 uint64 workingset_nodereclaim, 23 uint64 pgrefill, 24 uint64 pgscan, 25 uint64 pgsteal,
  26 uint64 pgactivate, 27 uint64 pgdeactivate, 28 uint64 pglazyfree, 29 uint64 pglazyfreed,
  30 uint64 thp_fault_alloc, 31 uint64 thp_collapse_alloc, 32 uint64 usage, 33 uint64 usage_limit,
  34 uint64 swap_usage, 35 uint64 swap_limit, 36 uint64 max_usage, 37 uint64 swap_max_usage
io.containerd.cgroups.v2.RdmaEntry: 1 string device, 2 uint32 hca_handles, 3 uint32 hca_objects
io.containerd.cgroups.v2.RdmaStat: 1 io.containerd.cgroups.v2.RdmaEntry* current,
  2 io.containerd.cgroups.v2.RdmaEntry* limit
io.containerd.cgroups.v2.IOEntry: 1 uint64 major, 2 uint64 minor, 3 uint64 rbytes, 4 uint64 wbytes,
  5 uint64 rios, 6 uint64 wios
io.containerd.cgroups.v2.IOStat: 1 io.containerd.cgroups.v2.IOEntry* usage
io.containerd.cgroups.v2.HugeTlbStat: 1 uint64 current, 2 uint64 max, 3 string pagesize
io.containerd.cgroups.v2.MemoryEvents: 1 uint64 low, 2 uint64 high, 3 uint64 max, 4 uint64 oom,
  5 uint64 oom_kill
io.containerd.cgroups.v2.Metrics: 1 io.containerd.cgroups.v2.PidsStat pids,
  2 io.containerd.cgroups.v2.CPUStat cpu, 4 io.containerd.cgroups.v2.MemoryStat memory,
  5 io.containerd.cgroups.v2.RdmaStat rdma, 6 io.containerd.cgroups.v2.IOStat io,
  7 io.containerd.cgroups.v2.HugeTlbStat* hugetlb,
  8 io.containerd.cgroups.v2.MemoryEvents memory_events
"""

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
    "enum": _Field.TYPE_INT32,  # the same bytes, and no list of allowed values
}


def accounts() -> dict[str, list[tuple[int, str, str]]]:
    """Return number, kind and name of the fields of each message, by its full name."""
    found: dict[str, list[tuple[int, str, str]]] = {}
    text = ""
    for line in [*CONTRACT.splitlines(), ""]:
        if text and not line.startswith(" "):
            name, _, fields = text.partition(":")
            split = [field.split() for field in fields.split(",") if field.strip()]
            found[name] = [(int(number), kind, field) for number, kind, field in split]
            text = ""
        text += line
    return found


def google_classes() -> dict[str, Any]:
    """Return a class of google's library for each message, by its full name."""
    pool = descriptor_pool.DescriptorPool()
    files: dict[str, Any] = {}
    for name, fields in accounts().items():
        package, _, short = name.rpartition(".")
        file = files.setdefault(
            package,
            descriptor_pb2.FileDescriptorProto(
                name=f"{package}.proto", package=package, syntax="proto3"
            ),
        )
        message = file.message_type.add(name=short)
        for number, kind, field in fields:
            _add_field(file, message, name, number, kind, field)
    waiting = dict(files)
    while waiting:  # a file comes after those that it names
        ready = [
            package
            for package, file in waiting.items()
            if not any(f"{other}.proto" in file.dependency for other in waiting)
        ]
        for package in ready:
            pool.Add(waiting.pop(package))
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
        for name in accounts()
    }


def _add_field(file: Any, message: Any, name: str, number: int, kind: str, field: str) -> None:
    is_repeated = kind.endswith("*")
    kind = kind.rstrip("*")
    row = message.field.add(name=field, number=number, label=3 if is_repeated else 1)
    if kind in _SCALARS:
        row.type = _SCALARS[kind]
        return
    row.type = _Field.TYPE_MESSAGE
    if kind == "map":
        entry = message.nested_type.add(name=field.title().replace("_", "") + "Entry")
        entry.options.map_entry = True
        for at, part in ((1, "key"), (2, "value")):
            entry.field.add(name=part, number=at, label=1, type=_Field.TYPE_STRING)
        row.label = 3
        row.type_name = f".{name}.{entry.name}"
        return
    row.type_name = f".{kind}"
    other = kind.rpartition(".")[0]
    if other != file.package and f"{other}.proto" not in file.dependency:
        file.dependency.append(f"{other}.proto")
