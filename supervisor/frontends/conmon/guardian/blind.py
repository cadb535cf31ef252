"""A successor that cannot restore the container: it writes the exit files at the end, no more.

The descriptors are lost, or another version has packed them, or successors do not last. The workers
of the dead supervisor go on writing the log. The container is a child of the guardian.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress

from supervisor.container.init_process import end_of
from supervisor.frontends.conmon.attach_socket import NAME as ATTACH_NAME
from supervisor.frontends.conmon.exit_files import ExitFiles
from supervisor.frontends.conmon.guardian.script import PASSED_ON
from supervisor.linux import fds, procfs
from supervisor.linux.exit_status import (
    Unknown,
    from_protocol_status,
    from_wait_status,
    shell_status,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from supervisor.frontends.conmon.guardian.link import GuardianLink
    from supervisor.frontends.conmon.options import Options
    from supervisor.state.directory import StateDirectory
    from supervisor.state.log import Log

_UNKNOWN = -1
_WORKERS_END_S = 5.0
_TITLE = b"forkshim: "


def wait(options: Options, bundle: str, link: GuardianLink, log: Log, state: StateDirectory) -> int:
    """Wait for the container's end, then write the exit files; returns the exit status."""
    status = _wait(link, state)
    _wait_for_workers(link.guardian_pid)
    with suppress(OSError):  # its clients have lost their connections
        os.unlink(os.path.join(bundle, ATTACH_NAME))
    link.drop("")
    ExitFiles(log).write_all(options, status)
    log.warning(f"the container has ended with {status}; it had no supervisor at its end")
    return status & 0xFF


def _wait(link: GuardianLink, state_dir: StateDirectory) -> int:
    pid = link.container_pid
    if pid not in procfs.children(link.guardian_pid):  # a dead supervisor has reaped it
        link.up()
        return _recorded(state_dir)
    pidfd = fds.Fd(os.pidfd_open(pid))

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd.fileno(), signum)
        link.took(signum)

    for name in PASSED_ON:
        signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_IGN if name == "HUP" else pass_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    link.up()
    poller = select.poll()
    poller.register(pidfd.fileno(), select.POLLIN)
    poller.poll()
    wait_status = procfs.zombie_wait_status(pid)
    end = end_of(pidfd.fileno()) if wait_status is None else from_wait_status(wait_status)
    pidfd.close()
    return _recorded(state_dir) if isinstance(end, Unknown) else shell_status(end)


def _recorded(state_dir: StateDirectory) -> int:
    """Return the status that a dead supervisor has written; -1 if it has written none."""
    recorded = from_protocol_status(state_dir.read_exit_status())
    return _UNKNOWN if recorded is None else shell_status(recorded)


def _wait_for_workers(guardian_pid: int) -> None:
    """Wait until the workers of dead supervisors have written what is left in the pipes."""
    until_s = time.monotonic() + _WORKERS_END_S
    for pid in procfs.children(guardian_pid):
        with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if pid == os.getpid() or file.read(len(_TITLE)) != _TITLE:
                continue
            pidfd = fds.Fd(os.pidfd_open(pid))  # its parent reaps no worker
            poller = select.poll()
            poller.register(pidfd.fileno(), select.POLLIN)
            poller.poll(max(0.0, until_s - time.monotonic()) * 1000)
            pidfd.close()
