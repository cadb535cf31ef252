"""A client of the Container Runtime Interface, as a kubelet is: pods, containers, their statuses.

The messages are tables of `supervisor.wire.protobuf`; only what the tests send and read is there.
Every pod is in the host's network, so that no CNI plugin is needed.

Source: api.proto of k8s.io/cri-api, runtime.v1.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supervisor.wire.protobuf import (
    BYTES,
    ENUM,
    INT32,
    INT64,
    STRING,
    UINT32,
    UINT64,
    Field,
    MessageType,
    decode,
    encode,
)
from tests.harness import waiting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RUNNING, EXITED = 1, 2
"""Two of the states of `status`."""

SETTINGS = """
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "stock"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.stock]
runtime_type = "{stock}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.forkshim]
runtime_type = "{ours}"
"""
NAMESPACE = "k8s.io"
"""The one of containerd that the plugin uses."""

_NODE = 2
_RELAY = Path(__file__).parents[1] / "programs" / "grpc_relay.py"
_NUMBERS = struct.Struct(">II")  # as the relay has it


def _message(name: str, *fields: Field) -> MessageType:
    return MessageType(f"runtime.v1.{name}", *fields)


_Metadata = _message(
    "PodSandboxMetadata",
    *(Field(number, name, STRING) for number, name in enumerate(("name", "uid", "namespace"), 1)),
    Field(4, "attempt", UINT32),
)
_Namespaces = _message(
    "NamespaceOption", Field(1, "network", ENUM), Field(2, "pid", ENUM), Field(3, "ipc", ENUM)
)
_Security = _message("SecurityContext", Field(1, "namespace_options", _Namespaces))
_PodConfig = _message(
    "PodSandboxConfig",
    Field(1, "metadata", _Metadata),
    Field(3, "log_directory", STRING),
    Field(
        8,
        "linux",
        _message(
            "LinuxPodSandboxConfig",
            Field(1, "cgroup_parent", STRING),
            Field(2, "security_context", _Security),
        ),
    ),
)
_Resources = _message("LinuxContainerResources", Field(4, "memory_limit_in_bytes", INT64))
_ContainerSecurity = _message(
    "LinuxContainerSecurityContext", Field(3, "namespace_options", _Namespaces)
)
_ContainerMetadata = _message("ContainerMetadata", Field(1, "name", STRING))
_ContainerConfig = _message(
    "ContainerConfig",
    Field(1, "metadata", _ContainerMetadata),
    Field(2, "image", _message("ImageSpec", Field(1, "image", STRING))),
    Field(3, "command", STRING, True),
    Field(11, "log_path", STRING),
    Field(
        15,
        "linux",
        _message(
            "LinuxContainerConfig",
            Field(1, "resources", _Resources),
            Field(2, "security_context", _ContainerSecurity),
        ),
    ),
)
_Number = _message("UInt64Value", Field(1, "value", UINT64))
_Status = _message(
    "ContainerStatus",
    Field(1, "id", STRING),
    Field(3, "state", ENUM),
    Field(7, "exit_code", INT32),
    Field(10, "reason", STRING),
)
_Stats = _message(
    "ContainerStats",
    Field(2, "cpu", _message("CpuUsage", Field(2, "usage_core_nano_seconds", _Number))),
    Field(3, "memory", _message("MemoryUsage", Field(2, "working_set_bytes", _Number))),
)
_EMPTY = _message("Empty")


def _of_id(field: str, *more: Field) -> MessageType:
    return _message("Request", Field(1, field, STRING), *more)


_METHODS = {
    "Version": (_EMPTY, _message("VersionResponse", Field(3, "runtime_version", STRING))),
    "RunPodSandbox": (
        _message("Request", Field(1, "config", _PodConfig), Field(2, "runtime_handler", STRING)),
        _of_id("pod_sandbox_id"),
    ),
    "StopPodSandbox": (_of_id("pod_sandbox_id"), _EMPTY),
    "RemovePodSandbox": (_of_id("pod_sandbox_id"), _EMPTY),
    "CreateContainer": (
        _of_id(
            "pod_sandbox_id",
            Field(2, "config", _ContainerConfig),
            Field(3, "sandbox_config", _PodConfig),
        ),
        _of_id("container_id"),
    ),
    "StartContainer": (_of_id("container_id"), _EMPTY),
    "StopContainer": (_of_id("container_id", Field(2, "timeout", INT64)), _EMPTY),
    "RemoveContainer": (_of_id("container_id"), _EMPTY),
    "ContainerStatus": (
        _of_id("container_id"),
        _message("ContainerStatusResponse", Field(1, "status", _Status)),
    ),
    "ContainerStats": (
        _of_id("container_id"),
        _message("ContainerStatsResponse", Field(1, "stats", _Stats)),
    ),
    "UpdateContainerResources": (_of_id("container_id", Field(2, "linux", _Resources)), _EMPTY),
    "ExecSync": (
        _of_id("container_id", Field(2, "cmd", STRING, True), Field(3, "timeout", INT64)),
        _message(
            "ExecSyncResponse",
            Field(1, "stdout", BYTES),
            Field(2, "stderr", BYTES),
            Field(3, "exit_code", INT32),
        ),
    ),
}


class CriError(Exception):
    """The plugin's own words."""


class Cri:
    """A connection to the CRI plugin of a containerd. Owns the process that speaks gRPC for it."""

    def __init__(self, address: Path, cgroup_parent: str) -> None:
        """Start the process; it connects with the first call."""
        self._cgroup_parent = cgroup_parent
        relay = (sys.executable, _RELAY, f"unix://{address}")
        self._relay = subprocess.Popen(relay, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> None:
        """End the process."""
        assert self._relay.stdin is not None
        assert self._relay.stdout is not None
        self._relay.stdin.close()
        self._relay.wait(waiting.LIMIT_S)
        self._relay.stdout.close()

    def call(self, method: str, **values: object) -> dict[str, Any]:
        """Call a method of the runtime service.

        Raises:
            CriError: The plugin answered with an error.
        """
        request, response = _METHODS[method]
        path, message = f"/runtime.v1.RuntimeService/{method}".encode(), encode(request, values)
        sent, got = self._relay.stdin, self._relay.stdout
        assert sent is not None
        assert got is not None
        sent.write(_NUMBERS.pack(len(path), len(message)) + path + message)
        sent.flush()
        code, length = _NUMBERS.unpack(got.read(_NUMBERS.size))
        answer = got.read(length)
        if code:
            raise CriError(f"{method}: {code}: {answer.decode()}")
        return decode(response, answer)

    def run_pod(self, name: str, handler: str, logs: Path) -> Pod:
        """Run a pod sandbox with a runtime handler; its containers log below `logs`."""
        config = {
            "metadata": {"name": name, "uid": name, "namespace": "default"},
            "log_directory": str(logs),
            "linux": {
                "cgroup_parent": self._cgroup_parent,
                "security_context": {"namespace_options": {"network": _NODE}},
            },
        }
        answer = self.call("RunPodSandbox", config=config, runtime_handler=handler)
        return Pod(self, answer["pod_sandbox_id"], config)


class Pod:
    """A running sandbox."""

    def __init__(self, cri: Cri, pod_id: str, config: Mapping[str, Any]) -> None:
        self._cri = cri
        self.id = pod_id
        self._config = config

    def create(self, name: str, image: str, command: Sequence[str], memory_bytes: int = 0) -> str:
        """Create a container that logs to NAME.log; returns its id."""
        config = {
            "metadata": {"name": name},
            "image": {"image": image},
            "command": [*command],
            "log_path": f"{name}.log",
            "linux": {
                "resources": {"memory_limit_in_bytes": memory_bytes},
                "security_context": {"namespace_options": {"network": _NODE}},
            },
        }
        answer = self._cri.call(
            "CreateContainer", pod_sandbox_id=self.id, config=config, sandbox_config=self._config
        )
        container_id: str = answer["container_id"]
        return container_id

    def start(self, name: str, image: str, command: Sequence[str], memory_bytes: int = 0) -> str:
        """Create and start a container; returns its id."""
        container_id = self.create(name, image, command, memory_bytes)
        self._cri.call("StartContainer", container_id=container_id)
        return container_id

    def status(self, container_id: str) -> dict[str, Any]:
        """Return a container's status."""
        answer = self._cri.call("ContainerStatus", container_id=container_id)
        status: dict[str, Any] = answer["status"]
        return status

    def wait_exit(self, container_id: str) -> dict[str, Any]:
        """Wait until a container has exited; returns its status."""
        waiting.wait_true(lambda: self.status(container_id)["state"] == EXITED)
        return self.status(container_id)

    def exec(self, container_id: str, *command: str) -> tuple[int, bytes, bytes]:
        """Run a command in a container; returns its status and outputs."""
        answer = self._cri.call("ExecSync", container_id=container_id, cmd=command, timeout=30)
        return answer["exit_code"], answer["stdout"], answer["stderr"]

    def remove(self) -> None:
        """Stop and remove the pod and its containers."""
        self._cri.call("StopPodSandbox", pod_sandbox_id=self.id)
        self._cri.call("RemovePodSandbox", pod_sandbox_id=self.id)
