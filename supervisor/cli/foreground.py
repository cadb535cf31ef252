"""Runs the supervisor in the foreground or as a daemon. Returns its outcome as an exit status.

In the foreground the exit status is the container's. A daemon writes it to its state directory.
Both write the exit record for --exit-dir.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from supervisor.cli import exit_record
from supervisor.linux.errors import (
    AbandonedError,
    MachineError,
    ShimError,
    StoppedError,
    UntrustedError,
    describe,
    reason,
)
from supervisor.linux.exit_status import shell_status
from supervisor.state.directory import EXIT_STATUS_NAME
from supervisor.state.journal_log import WARNING
from supervisor.state.log import line_for_stderr
from supervisor.systemd.notify import SOCKET_VARIABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from supervisor.container.request import Outcome, StartRequest
    from supervisor.state.claim import Claim
    from supervisor.state.directory import StateDirectory
    from supervisor.state.log import Log

    SuperviseIt = Callable[[Log, StateDirectory], Outcome]


def supervise_in_foreground(
    claimed: Claim,
    request: StartRequest,
    supervise_it: SuperviseIt,
    *,
    is_restored: bool = False,
) -> int:
    """Supervise in the foreground. Returns the exit status of this process.

    The state directory is removed at the end. It stays after an unforeseen exception, and if a
    running container could not be restored (`is_restored`: after a reload, or by an adopter).

    Raises:
        ShimError: The container did not run, or the supervisor abandoned it.
    """
    prefix = f"forkshim: {request.spec.container_id}"
    state_dir, log = _open(claimed, prefix, is_restored=is_restored)
    is_over = False  # an unforeseen exception removes nothing
    try:
        outcome = _supervise_on_record(request, log, state_dir, supervise_it)
        is_over = True
        if request.origin.notifier.has_manager and _is_requested_stop(outcome, request):
            return 0
        return _exit_status(outcome)
    except (ShimError, OSError) as error:
        if not isinstance(error, AbandonedError):  # supervising never began
            is_over = is_over or not is_restored
        # `cli.main` decides what a stop before the container existed means, and reports it.
        if isinstance(error, ShimError) and not isinstance(error, StoppedError):
            error.is_told = log.tell(str(error))
        raise
    finally:
        log.close()
        state_dir.close()
        claimed.remove_pid()
        (claimed.remove if is_over else claimed.release)()


def supervise_in_daemon(
    claimed: Claim,
    request: StartRequest,
    supervise_it: SuperviseIt,
    *,
    is_restored: bool = False,
) -> ShimError | None:
    """Supervise in a daemon. Returns the error that ended it; None if the container ended.

    The state directory stays if the container has run, with the file `exitStatus`.
    """
    try:
        state_dir, log = _open(claimed, None, is_restored=is_restored)
    except ShimError as untold:
        return untold
    try:
        _exit_status(_supervise_on_record(request, log, state_dir, supervise_it))
    except (ShimError, OSError) as caught:
        error = caught if isinstance(caught, ShimError) else MachineError(describe(caught))
        log.error(str(error))
        has_run = is_restored or os.path.exists(os.path.join(claimed.state_dir, EXIT_STATUS_NAME))
        if not has_run and not isinstance(error, AbandonedError):
            claimed.remove()
        return error
    finally:
        log.close()
        state_dir.close()
        claimed.remove_pid()
        claimed.release()
    return None


def _open(
    claimed: Claim, mirror_prefix: str | None, *, is_restored: bool
) -> tuple[StateDirectory, Log]:
    """Return the state directory and its log.

    Raises:
        ShimError: open(2) failed. The state directory was removed, unless `is_restored`.
    """
    try:
        state_dir = claimed.open_state_dir()
        try:
            return state_dir, state_dir.open_log(mirror_prefix)
        except ShimError:
            state_dir.close()
            raise
    except ShimError:
        (claimed.release if is_restored else claimed.remove)()
        raise


def environment_of_a_main_process() -> Mapping[str, str]:
    """Return the environment; {} if systemd made it for an ancestor of this process.

    A script of a unit may run this program. Source: systemd.exec(5), SYSTEMD_EXEC_PID (v248).
    """
    pid = os.environ.get("SYSTEMD_EXEC_PID", "")
    return os.environ if pid in ("", str(os.getpid())) else {}


def is_main_process_with_manager() -> bool:
    """Return whether systemd waits for READY=1 of this process: a unit of Type=notify."""
    return bool(environment_of_a_main_process().get(SOCKET_VARIABLE))


def has_controlling_terminal() -> bool:
    """Return whether this process has a controlling terminal: SIGHUP may be its hang-up."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def say(message: str) -> None:
    """Print a warning to stderr, for the user who typed the command."""
    line = line_for_stderr(f"forkshim: {message}", WARNING)
    print(line, file=sys.stderr)  # noqa: T201 -- a command reports on stderr


def _supervise_on_record(
    request: StartRequest, log: Log, state_dir: StateDirectory, supervise_it: SuperviseIt
) -> Outcome:
    """Supervise, then write the exit record if there is an --exit-dir."""
    outcome = supervise_it(log, state_dir)
    exit_dir, began_ns = request.origin.exit_dir, request.origin.began_ns
    if exit_dir is not None:
        record = exit_record.fields(request.spec.container_id, outcome, began_ns, time.time_ns())
        try:
            exit_record.write(exit_dir, record)
        except OSError as error:
            log.warning(f"write {exit_dir}/{request.spec.container_id}.json: {reason(error)}")
        except UntrustedError as error:
            log.warning(f"write {exit_dir}/{request.spec.container_id}.json: {error}")
    return outcome


def _is_requested_stop(outcome: Outcome, request: StartRequest) -> bool:
    """Return whether systemd's stop has ended the container: the unit has not failed.

    For systemd a death by SIGTERM is clean, but the status 143 is a failure, systemd.service(5).
    systemd cannot distinguish a 137 that the supervisor caused from the container's own 137.
    """
    if outcome.error is not None or outcome.termination is None:
        return False
    return outcome.was_asked_to_stop and shell_status(outcome.termination) in (
        128 + request.stop.signal,
        128 + signal.SIGKILL,
    )


def _exit_status(outcome: Outcome) -> int:
    if outcome.error is not None:
        raise outcome.error
    if outcome.termination is None:
        raise AssertionError("neither an end nor an error")
    return shell_status(outcome.termination)
