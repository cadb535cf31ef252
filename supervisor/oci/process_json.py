"""process.json, which the engine writes, and a checkpoint's config.json.

Source: runtime-spec config.md; containerd 0.2 `specs` for the fields it adds to process.json.
"""

from __future__ import annotations

import os

from supervisor.linux import plain_json
from supervisor.linux.errors import RecordError
from supervisor.oci.json_document import Fields, read_object
from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


@dataclass(frozen=True, slots=True)
class ProcessConfig:
    """The fields of process.json that the supervisor uses.

    Attributes:
        terminal: The process wants a pseudoterminal.
        is_exec: Another process in a running container, not the container's init.
        stdin: Path of the client's fifo; "" and /dev/null for none. A relative path starts at the
            state directory.
        stdout: A sink setting, see `supervisor.sinks.spec`.
        stderr: A sink setting; unused with a terminal.
        runtime_args: Global options, before the runtime's verb.
        no_pivot_root: Pass --no-pivot.
        no_new_keyring: Pass --no-new-keyring; no field of process.json.
        checkpoint: Absolute path of the checkpoint to restore; "" for none.
        root_uid: The uid of the container's root on the host.
        root_gid: The gid of the container's root on the host.
        second: A second sink setting of each output; "" for none. No field of process.json.
    """

    terminal: bool = False
    is_exec: bool = False
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    runtime_args: tuple[str, ...] = ()
    no_pivot_root: bool = False
    no_new_keyring: bool = False
    checkpoint: str = ""
    root_uid: int = 0
    root_gid: int = 0
    second: str = ""


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """The options with which a checkpoint was taken, from its config.json.

    Attributes:
        tcp: With open TCP connections.
        unix_sockets: With external Unix sockets.
        shell: As a shell job.
        empty_ns: Namespaces whose content was left out.
    """

    tcp: bool = False
    unix_sockets: bool = False
    shell: bool = False
    empty_ns: tuple[str, ...] = ()


def read_process(path: str, dir_fd: int | None = None) -> ProcessConfig:
    """Read process.json. A relative path starts at `dir_fd`.

    Raises:
        RecordError: The file is missing, too large or not JSON, or a field has the wrong type.
    """
    fields = Fields(path, read_object(path, RecordError, dir_fd), RecordError)
    checkpoint = fields.path("checkpoint")
    if checkpoint and not checkpoint.startswith("/"):
        # The supervisor would resolve it in the state directory, the runtime in the bundle.
        raise fields.wrong("checkpoint", "an absolute path", checkpoint)
    return ProcessConfig(
        terminal=fields.boolean("terminal"),
        is_exec=fields.boolean("exec"),
        stdin=fields.path("containerdStdin"),
        stdout=fields.path("containerdStdout"),
        stderr=fields.path("containerdStderr"),
        runtime_args=fields.strings("runtimeArgs"),
        no_pivot_root=fields.boolean("noPivotRoot"),
        checkpoint=checkpoint,
        root_uid=fields.uid("rootUID"),
        root_gid=fields.uid("rootGID"),
    )


def encode_process(process: Mapping[str, Any], record: ProcessConfig) -> bytes:
    """Return process.json: the OCI `process` object and the fields of the shim, one line."""
    shim_fields = {
        "terminal": record.terminal,
        "exec": record.is_exec,
        "containerdStdin": record.stdin,
        "containerdStdout": record.stdout,
        "containerdStderr": record.stderr,
        "runtimeArgs": list(record.runtime_args),
        "noPivotRoot": record.no_pivot_root,
        "checkpoint": record.checkpoint,
        "rootUID": record.root_uid,
        "rootGID": record.root_gid,
    }
    return plain_json.dumps({**process, **shim_fields}) + b"\n"


def read_checkpoint(directory: str) -> CheckpointRecord:
    """Read the config.json of the checkpoint in `directory`.

    Raises:
        RecordError: As `read_process`.
    """
    path = os.path.join(directory, "config.json")
    fields = Fields(path, read_object(path, RecordError), RecordError)
    return CheckpointRecord(
        tcp=fields.boolean("tcp"),
        unix_sockets=fields.boolean("unixSockets"),
        shell=fields.boolean("shell"),
        empty_ns=fields.strings("emptyNS"),
    )
