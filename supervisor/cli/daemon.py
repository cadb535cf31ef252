"""Detaches from the caller with python-daemon, and reports to the caller.

Never under systemd (NOTIFY_SOCKET is set): daemon(7) asks a service not to fork, and systemd
watches the process that it has started. Elsewhere `forkshim run --detach` forks. The child becomes
a daemon (own session, no controlling terminal) and supervises. The caller reads a pipe until the
daemon reports that the container runs, or an error. End of file without a report: the daemon died.
SIGINT (Ctrl-C) or SIGTERM to a caller that waits for a start stops what the daemon has begun.
"""

from __future__ import annotations

import json
import os
import select
import signal
from contextlib import suppress

from supervisor.linux import fds, signals, spawn
from supervisor.linux.errors import ShimError, StoppedError
from supervisor.linux.exit_status import signal_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

UMASK = 0o022

_STARTED = b"started\n"
_MOST_BYTES = 65536


class StartReport:
    """The daemon's one report to its caller. Owns the write end of the pipe."""

    def __init__(self, wfd: fds.Fd) -> None:
        """Own the write end."""
        self._wfd = wfd

    def ready(self) -> None:
        """Send this process's pid to the caller, which forwards stop signals to it."""
        self._write(b"%d\n" % os.getpid())

    def started(self) -> None:
        """Report that the container runs."""
        self._say(_STARTED)

    def failed(self, error: ShimError) -> None:
        """Report why the container does not run."""
        self._say(json.dumps([error.exit_status, str(error)]).encode())

    def _say(self, message: bytes) -> None:
        if self._wfd.is_open:
            self._write(message)
            self._wfd.close()

    def _write(self, message: bytes) -> None:
        with suppress(BrokenPipeError):  # the caller was killed while it waited
            os.write(self._wfd.fileno(), message)


class DetachError(ShimError):
    """The process cannot become a daemon: the machine refused a fork(2) or a descriptor."""

    exit_status = 71  # OSERR of systemd-analyze exit-status


class DetachedError(ShimError):
    """The error that the daemon reported, raised in its caller with the daemon's exit status."""

    def __init__(self, exit_status: int, message: str) -> None:
        """Take the status and the message from the report."""
        super().__init__(message)
        self.exit_status = exit_status


class _Wait:
    """The caller's wait for the report. Owns a pidfd of the daemon.

    Attributes:
        stop_signal: The last stop signal to this process; 0 for none.
        has_daemon: Whether the daemon has sent its pid.
    """

    def __init__(self, rfd: fds.Fd) -> None:
        """Borrow the read end of the pipe."""
        self._rfd = rfd
        self._daemon = fds.Fd(-1)
        self.stop_signal = 0
        self.has_daemon = False

    def pass_on(self, signum: int, _frame: FrameType | None = None) -> None:
        """Forward a stop signal to the daemon, now or as soon as its pid is known."""
        self.stop_signal = signum
        if self._daemon.is_open:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._daemon.fileno(), signum)

    def read(self) -> bytes:
        """Return the report; b"" if the daemon died without one."""
        report = b""
        while chunk := os.read(self._rfd.fileno(), _MOST_BYTES):
            report += chunk
            first, newline, rest = report.partition(b"\n")
            if newline and first.isdigit():
                self.has_daemon, report = True, rest
                with suppress(ProcessLookupError):
                    self._daemon = fds.Fd(os.pidfd_open(int(first)))
                if self.stop_signal:
                    self.pass_on(self.stop_signal)
        return report

    def until_dead(self) -> None:
        """Wait until the daemon has exited."""
        if self._daemon.is_open:
            poller = select.poll()
            poller.register(self._daemon.fileno(), select.POLLIN)
            poller.poll()

    def close(self) -> None:
        """Close the pidfd."""
        self._daemon.close()


def detach(
    supervise: Callable[[StartReport], None],
    *,
    working_directory: str,
    preserve_fds: Sequence[int],
    is_start: bool = False,
) -> None:
    """Run `supervise` in a daemon, and return when the daemon reports that the container runs.

    Args:
        supervise: Called in the daemon, which exits when it returns.
        working_directory: The daemon's working directory: a state directory.
        preserve_fds: Descriptors that the daemon keeps open, besides the pipe.
        is_start: A stop signal to this process stops what the daemon has begun. Without it such a
            signal ends only this process.

    Raises:
        DetachedError: The daemon reported an error, or died before its report (status 70).
        StoppedError: A stop signal has arrived, and the daemon has exited or never existed.
        OSError: EMFILE; EAGAIN, ENOMEM of fork(2).
    """
    rfd, wfd = fds.pipe(_MOST_BYTES)
    wait = _Wait(rfd)
    # The daemon is reparented. The kernel reaps the process between the daemon and this one.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        spawn.fork_worker(lambda: _be_daemon(supervise, working_directory, preserve_fds, wfd))
        wfd.close()
        for signum in signals.STOP_SIGNALS if is_start else ():
            signal.signal(signum, wait.pass_on)
        signals.unblock()  # the daemon has its own mask
        report = wait.read()
        for signum in signals.STOP_SIGNALS:  # a second Ctrl-C ends the wait for the daemon's exit
            signal.signal(signum, signal.SIG_DFL)
        # Without a daemon: Ctrl-C went to the process group, and has killed the fork as well.
        if wait.stop_signal and (report == _STARTED or not (report or wait.has_daemon)):
            wait.until_dead()
            raise StoppedError(f"stopped by {signal_name(wait.stop_signal)}")
    finally:
        rfd.close()
        wait.close()
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
    signals.block()
    # Imported here: a supervisor in the foreground never needs it.
    from daemon import DaemonContext
    from daemon.daemon import DaemonError

    context = DaemonContext(
        chroot_directory=None,
        working_directory=working_directory,
        umask=UMASK,  # with python-daemon's default of 0 every user could write to new files
        uid=os.getuid(),
        gid=os.getgid(),
        initgroups=False,
        prevent_core=False,  # the runtime and the container inherit RLIMIT_CORE
        detach_process=True,  # the default guesses from the parent process
        files_preserve=[*preserve_fds, wfd.fileno()],  # a copy, because python-daemon extends it
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
    report.ready()
    supervise(report)
