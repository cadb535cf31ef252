"""`delete`: remove what a shim has left of a container, and tell containerd how it ended.

containerd runs it in the bundle when the connection to a shim has ended, also after every clean
removal, and at its own start for shims that it cannot reach. So nothing may be left, and everything
may be: each step succeeds when there is nothing to do. It has 5 s, and stdout is its answer.

The answer is the truth where the shim has written it: `delete.reply` after a clean removal,
`exit.reply` from the container's exit on. The package's launcher prints `delete.reply` without this
module. Without either the container was killed here (137), or its status is unknown (255).

Source: docs/runtime-v2.md of containerd, "delete".
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from supervisor.frontends.containerd.mounts import MountError, unmount_all
from supervisor.linux import plain_json
from supervisor.linux.errors import ShimError, reason
from supervisor.linux.fds import Fd
from supervisor.oci.bundle import read_config
from supervisor.oci.invoke import ask_runtime
from supervisor.state.directory import write_file
from supervisor.systemd import delegation
from supervisor.wire import messages
from supervisor.wire.protobuf import WireError, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

DELETE_REPLY_NAME = "delete.reply"
EXIT_REPLY_NAME = "exit.reply"
PID_NAME = "init.pid"
UNKNOWN_STATUS = 255
_KILLED_STATUS = 128 + signal.SIGKILL
_ALIVE = frozenset(("created", "running", "paused"))
_MOST_BYTES = 4096


def write_reply(bundle_fd: int, name: str, values: Mapping[str, Any]) -> None:
    """Write a DeleteResponse as `delete.reply` or `exit.reply` of a bundle, whole or not at all.

    Raises:
        OSError: The bundle is gone or its disk is full.
    """
    write_file(bundle_fd, name, encode(messages.DeleteResponse, values), 0o600)


def clean_up(
    bundle: str,
    container_id: str,
    *,
    runtime: str,
    root: str,
    global_args: Sequence[str] = (),
    environment: Mapping[str, str],
) -> bytes:
    """Remove the container and its mounts; returns a DeleteResponse for stdout.

    Args:
        bundle: May be empty or missing.
        container_id: Checked by the caller.
        runtime: Name or path of the OCI runtime.
        root: The runtime's --root, with the namespace.
        global_args: More of its global options.
        environment: The runtime's.

    Raises:
        ShimError: Something is left, and containerd must keep the bundle.
    """
    reply = _read_reply(bundle, DELETE_REPLY_NAME)
    if reply:
        return reply
    status = UNKNOWN_STATUS
    # Without a state directory the runtime has no such container: two runs of it are saved.
    if os.path.isdir(os.path.join(root, container_id)):
        argv = [runtime, "--root", root, *global_args]
        state = ask_runtime(runtime, [*argv, "state", container_id], environment=environment)
        status = _KILLED_STATUS if _status_of(state) in _ALIVE else UNKNOWN_STATUS
        ask_runtime(runtime, [*argv, "delete", "--force", container_id], environment=environment)
        if os.path.isdir(os.path.join(root, container_id)):
            raise ShimError(f"{runtime} delete --force {container_id}: its state in {root} is left")
    try:
        unmount_all(os.path.join(bundle, "rootfs"))
    except MountError as error:
        raise ShimError(str(error)) from error
    _remove_cgroups(bundle)
    values = {
        "pid": _pid_of(bundle),
        "exit_status": status,
        "exited_at": messages.timestamp(time.time_ns()),
    }
    return _read_reply(bundle, EXIT_REPLY_NAME) or encode(messages.DeleteResponse, values)


def _remove_cgroups(bundle: str) -> None:
    """Remove the container's empty cgroups: a runtime that was killed in `create` forgets them.

    A cgroupsPath that is no absolute path means a unit of systemd, which removes it.
    """
    try:
        path = read_config(os.path.join(bundle, "config.json")).cgroups_path
    except ShimError:
        return
    if not path.startswith("/") or not os.path.normpath(path).strip("/"):
        return
    for name in [""] if delegation.is_unified() else os.listdir(delegation.ROOT):
        with suppress(OSError):  # ENOENT: none; EBUSY: not empty
            os.rmdir(f"{delegation.ROOT}/{name}{os.path.normpath(path)}")


def _read_reply(bundle: str, name: str) -> bytes:
    """Return a reply that the shim has written; empty if there is none that can be read."""
    content = _read(bundle, name)
    try:
        decode(messages.DeleteResponse, content)
    except WireError:
        return b""
    return content


def _pid_of(bundle: str) -> int:
    text = _read(bundle, PID_NAME).strip()
    return int(text) if text.isdigit() and len(text) < 10 else 0


def _status_of(state: bytes) -> str:
    """Return the status in a runtime's state document; empty if it told none."""
    try:
        document = plain_json.loads(state)
    except ValueError:
        return ""
    return str(document.get("status", "")) if isinstance(document, dict) else ""


def _read(bundle: str, name: str) -> bytes:
    try:
        file = Fd(os.open(os.path.join(bundle, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ShimError(f"open {os.path.join(bundle, name)}: {reason(error)}") from error
    try:
        return os.read(file.fileno(), _MOST_BYTES)
    finally:
        file.close()
