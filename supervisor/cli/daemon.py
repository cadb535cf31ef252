"""Detach from the caller with python-daemon, and report to the caller.

Never under systemd (NOTIFY_SOCKET is set): daemon(7) asks a service not to fork, and systemd
watches the process that it started. Elsewhere `forkshim run --detach` forks. The child becomes a
daemon (own session, no controlling terminal) and supervises. The caller waits on a pipe until the
daemon reports that the container runs, or an error. End of file without a report: the daemon died.
"""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress

from supervisor.linux import fds, signals, spawn
from supervisor.linux.errors import ShimError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

UMASK = 0o022

_STARTED = b"started\n"
_MOST_BYTES = 65536


class StartReport:
    """The daemon's one report to its caller. Owns the write end of the pipe."""

    def __init__(self, wfd: fds.Fd) -> None:
        """Take ownership of the write end."""
        self._wfd = wfd

    def started(self) -> None:
        """Report that the container runs."""
        self._say(_STARTED)

    def failed(self, error: ShimError) -> None:
        """Report why the container does not run."""
        self._say(json.dumps([error.exit_status, str(error)]).encode())

    def _say(self, message: bytes) -> None:
        if self._wfd.is_open:
            with suppress(BrokenPipeError):  # the caller was killed while it waited
                os.write(self._wfd.fileno(), message)
            self._wfd.close()


class DetachError(ShimError):
    """The process cannot become a daemon: the machine refused a fork(2) or a descriptor."""

    exit_status = 71  # OSERR of systemd-analyze exit-status


class DetachedError(ShimError):
    """The error that the daemon reported, raised in its caller with the daemon's exit status."""

    def __init__(self, exit_status: int, message: str) -> None:
        """Take the status and the message from the report."""
        super().__init__(message)
        self.exit_status = exit_status


def detach(
    supervise: Callable[[StartReport], None], *, working_directory: str, preserve_fds: Sequence[int]
) -> None:
    """Run `supervise` in a daemon, and return when the daemon reports that the container runs.

    Args:
        supervise: Called in the daemon; the daemon ends when it returns.
        working_directory: The daemon's current directory: a state directory.
        preserve_fds: Descriptors that the daemon keeps open, beside the pipe.

    Raises:
        DetachedError: The daemon failed, or died before its report.
    """
    rfd, wfd = fds.pipe(_MOST_BYTES)
    # The daemon is reparented. The kernel reaps the process between the daemon and this one.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        spawn.fork_worker(lambda: _be_daemon(supervise, working_directory, preserve_fds, wfd))
        wfd.close()
        signals.release()  # the daemon has its own mask: a signal may end this waiting caller
        report = b""
        while chunk := os.read(rfd.fileno(), _MOST_BYTES):
            report += chunk
    finally:
        rfd.close()
    if report == _STARTED:
        return
    if not report:
        raise DetachedError(70, "the supervisor died before the container ran; see shim-log.json")
    exit_status, message = json.loads(report)
    raise DetachedError(exit_status, message)


def _be_daemon(
    supervise: Callable[[StartReport], None],
    working_directory: str,
    preserve_fds: Sequence[int],
    wfd: fds.Fd,
) -> None:
    # Imported here: a supervisor in the foreground never needs it.
    from daemon import DaemonContext
    from daemon.daemon import DaemonError

    context = DaemonContext(
        chroot_directory=None,
        working_directory=working_directory,
        umask=UMASK,  # python-daemon's default of 0 would make every new file writable for all
        uid=os.getuid(),
        gid=os.getgid(),
        initgroups=False,
        prevent_core=False,  # RLIMIT_CORE is inherited by the runtime and by the container
        detach_process=True,  # the default looks for init among the parents, and guesses
        files_preserve=[*preserve_fds, wfd.fileno()],  # a new list: python-daemon extends it
        pidfile=None,  # the claim writes supervisor.pid, under its lock
        stdin=None,
        stdout=None,
        stderr=None,
        signal_map={},  # `supervisor.linux.signals` routes signals
    )
    report = StartReport(wfd)
    try:
        context.open()
    except DaemonError as error:  # such as EAGAIN of fork(2)
        report.failed(DetachError(f"detach: {error}"))
        return
    supervise(report)
