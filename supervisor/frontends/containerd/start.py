"""`start`: find the daemon of the container's group, or become its parent, and print its address.

containerd reads stdout and stderr of `start` to their common end of file. So the daemon has
neither, nor any other descriptor of this process but the listener. The address is printed when a
client can connect. The daemon is a fork of this process: what it needs is imported already. So are
its cgroup and its OOM score this process's: it ends soon.

Source: docs/runtime-v2.md of containerd, "start"; pkg/shim and runtime/v2/runc/manager for what the
daemon sets for itself.
"""

from __future__ import annotations

import gc
import os

from supervisor.frontends.containerd.group_socket import GroupSocket, address_of, claim, group_of
from supervisor.linux import spawn, syscalls
from supervisor.linux.errors import MachineError, ShimError, reason
from supervisor.linux.fds import Fd
from supervisor.state.directory import write_file
from supervisor.systemd.delegation import ROOT, is_unified

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from supervisor.frontends.containerd.invocation import Invocation

ADDRESS_NAME = "address"
LOG_NAME = "log"
_HIGHEST_SCORE = 1000


def start(
    invocation: Invocation,
    bundle: str,
    *,
    shim_cgroup: str,
    environment: Mapping[str, str],
    serve: Callable[[GroupSocket], None],
) -> str:
    """Return the address of the group's daemon, for stdout; `address` in the bundle says it, too.

    containerd 1.6 and 1.7 read the file when they start again.

    Args:
        invocation: Of this run.
        bundle: Absolute path.
        shim_cgroup: A cgroup that a new daemon joins; "" for none.
        environment: Of this process.
        serve: Called in the daemon, which ends when it returns.

    Raises:
        ShimError: There is no daemon; the message is for containerd's client.
    """
    group = group_of(bundle, invocation.container_id)
    address = address_of(
        group, containerd_address=invocation.address, namespace=invocation.namespace
    )
    found = claim(address, invocation.container_id)
    is_serving = False
    try:
        _write_address(bundle, address)
        if found is not None:
            if environment.get("SCHED_CORE"):
                syscalls.share_core()
            _fork_daemon(found, bundle, shim_cgroup, serve)
            is_serving = True
    except OSError as error:
        raise MachineError(f"start {invocation.container_id}: {reason(error)}") from error
    finally:
        if found is not None and is_serving:
            found.listener.close()  # the daemon has its own
        elif found is not None:
            found.release()
    return address


def _write_address(bundle: str, address: str) -> None:
    directory = Fd(os.open(bundle, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        write_file(directory.fileno(), ADDRESS_NAME, address.encode())
    finally:
        directory.close()


def _fork_daemon(
    found: GroupSocket, bundle: str, shim_cgroup: str, serve: Callable[[GroupSocket], None]
) -> None:
    _place(shim_cgroup)
    gc.freeze()  # a collection in the fd holder or the shim would copy every page that they share
    spawn.fork_worker(lambda: _run_daemon(found, bundle, serve))


def _place(shim_cgroup: str) -> None:
    """Move this process into the cgroup, and let the kernel kill it rather than containerd.

    Without privileges (rootless) the score stays as it is.
    """
    if shim_cgroup:
        join_cgroup(os.getpid(), shim_cgroup)
    with open("/proc/self/oom_score_adj", "rb") as own:
        score = int(own.read())
    try:
        with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
            file.write(b"%d" % min(score + 1, _HIGHEST_SCORE))
    except PermissionError:
        return


def join_cgroup(pid: int, path: str) -> None:
    """Move a process into an existing cgroup: of cgroup v2, or of each v1 hierarchy that has it.

    Raises:
        ShimError: No hierarchy has it, or the kernel refuses.
    """
    names = [""] if is_unified() else sorted(os.listdir(ROOT))
    directories = [os.path.normpath(f"{ROOT}/{name}/{path}") for name in names]
    found = [
        each
        for each in directories
        if each.startswith(f"{ROOT}/") and os.path.exists(f"{each}/cgroup.procs")
    ]
    if not found:
        raise ShimError(f"shim cgroup {path}: no such cgroup below {ROOT}")
    for directory in found:
        try:
            with open(f"{directory}/cgroup.procs", "wb", buffering=0) as file:
                file.write(b"%d" % pid)
        except OSError as error:
            raise ShimError(f"shim cgroup {directory}: {reason(error)}") from error


def _run_daemon(found: GroupSocket, bundle: str, serve: Callable[[GroupSocket], None]) -> None:
    """Leave the session and the descriptors of `start`, then serve."""
    os.setsid()
    null_fd = os.open(os.devnull, os.O_RDWR)
    log_fd = _open_log(bundle)
    for fd, source_fd in ((0, null_fd), (1, null_fd), (2, null_fd if log_fd < 0 else log_fd)):
        os.dup2(source_fd, fd)
    listener_fd = found.listener.fileno()
    os.closerange(3, listener_fd)
    os.closerange(listener_fd + 1, os.sysconf("SC_OPEN_MAX"))
    serve(found)


def _open_log(bundle: str) -> int:
    """Return the bundle's log fifo, -1 without one. containerd has it open for reading.

    Not blocking: the fifo fills while containerd is down, and a daemon must not wait for that.
    """
    flags = os.O_WRONLY | os.O_NONBLOCK
    try:
        return os.open(os.path.join(bundle, LOG_NAME), flags)
    except OSError:
        # ENOENT: no log; ENXIO: no reader.
        return -1
