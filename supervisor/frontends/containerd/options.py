"""The options of a task: what `start` gets on its stdin, and Create in its request.

1.6 and 1.7 clients send the legacy `containerd.linux.runc.CreateOptions` to a runtime whose name
does not begin with `io.containerd.runc`; both types are read. `options.json` in the bundle has Go's
names: the `delete` of another shim may read ours, and ours that of another shim.

Source: api/types/runc/options, runtime/linux/runctypes in github.com/containerd/containerd.
"""

from __future__ import annotations

import os

from supervisor.linux import plain_json
from supervisor.wire import messages
from supervisor.wire.protobuf import WireError, decode, is_any_of, unpack_any
from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

DEFAULT_ROOT = "/run/containerd/runc"
OPTIONS_NAME = "options.json"
_MOST_BYTES = 1 << 20

_NAMES = (
    "no_pivot_root", "no_new_keyring", "shim_cgroup", "io_uid", "io_gid", "binary_name", "root",
    "systemd_cgroup", "criu_image_path", "criu_work_path",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """The options of containerd.runc.v1.Options that forkshim carries out.

    Attributes:
        no_pivot_root: `runc create --no-pivot`.
        no_new_keyring: `runc create --no-new-keyring`.
        shim_cgroup: A cgroup that the shim joins; "" for none.
        io_uid: The owner of the container's pipes.
        io_gid: Their group.
        binary_name: Name or path of the OCI runtime; "" for runc.
        root: `runc --root`, without the namespace; "" for the default.
        systemd_cgroup: `runc --systemd-cgroup`.
        criu_image_path: Where Checkpoint writes; "" for the request's path.
        criu_work_path: `runc checkpoint --work-path`; "" for the bundle's work directory.
    """

    no_pivot_root: bool = False
    no_new_keyring: bool = False
    shim_cgroup: str = ""
    io_uid: int = 0
    io_gid: int = 0
    binary_name: str = ""
    root: str = ""
    systemd_cgroup: bool = False
    criu_image_path: str = ""
    criu_work_path: str = ""

    @property
    def runtime(self) -> str:
        """Name or path of the OCI runtime."""
        return self.binary_name or "runc"

    def runtime_args(self, namespace: str) -> tuple[str, ...]:
        """Return the runtime's global arguments for the containers of a namespace."""
        root = os.path.join(self.root or DEFAULT_ROOT, namespace)
        return ("--root", root, *(("--systemd-cgroup",) if self.systemd_cgroup else ()))

    def encode(self) -> bytes:
        """Return options.json: Go's names, zero values left out."""
        values = {name: getattr(self, name) for name in _NAMES}
        return plain_json.dumps({name: value for name, value in values.items() if value})


def of_any(packed: Mapping[str, Any] | None) -> Options:
    """Return the options in an Any; the default ones if there is none or it has no type.

    Raises:
        WireError: The Any holds another type, or malformed bytes.
    """
    if packed is None or not packed["type_url"]:
        return Options()
    legacy = messages.CreateOptions
    message = legacy if is_any_of(packed, legacy) else messages.Options
    values = unpack_any(packed, message)
    return Options(**{name: values[name] for name in _NAMES if name in values})


def of_start(stdin: bytes, container_id: str) -> Options:
    """Return the options that `start` got on its stdin, which may be empty.

    2.3 and later send BootstrapParams, earlier versions an Any. Each parses as the other: field 1
    of the first is the id, that of the second a type URL.

    Raises:
        WireError: Malformed bytes.
    """
    if not stdin:
        return Options()
    params = decode(messages.BootstrapParams, stdin)
    if params["instance_id"] != container_id:
        return of_any(decode(messages.Any, stdin))
    known = (messages.Options, messages.CreateOptions)
    for extension in params["extensions"]:
        if extension["value"] is not None and is_any_of(extension["value"], *known):
            return of_any(extension["value"])
    return Options()


def read(bundle: str) -> Options:
    """Return what options.json of a bundle says; the defaults if it is missing or no JSON."""
    try:
        with open(os.path.join(bundle, OPTIONS_NAME), "rb") as file:
            document = plain_json.loads(file.read(_MOST_BYTES))
    except (OSError, ValueError):
        return Options()
    if not isinstance(document, dict):
        return Options()
    default = Options()
    return Options(
        **{
            name: document[name]
            for name in _NAMES
            if type(document.get(name)) is type(getattr(default, name))
        }
    )


__all__ = ["DEFAULT_ROOT", "OPTIONS_NAME", "Options", "WireError", "of_any", "of_start", "read"]
