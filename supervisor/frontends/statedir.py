"""`forkshim-shim ID BUNDLE RUNTIME`: the state-directory protocol of containerd 0.2.

The current directory is the state directory. The engine has written process.json there and made
the fifos; see README.md. Exit status: 0 when the process has ended, with any status of its own. 0
also when the runtime has failed: its log.json says why. 1 after any other error: shim-log.json says
which.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack

from supervisor.container.host import supervise
from supervisor.container.request import ContainerSpec, Origin, Outcome, StartRequest, request_of
from supervisor.handover.own_command import is_handed_over, own_command
from supervisor.linux import fds, paths
from supervisor.linux.errors import (
    RuntimeFailedError,
    ShimError,
    UsageError,
    describe,
    describe_bug,
)
from supervisor.linux.process_exit import exit_process
from supervisor.linux.text import printable
from supervisor.oci.command_line import absolute
from supervisor.state.container_id import check_id
from supervisor.state.directory import StateDirectory
from supervisor.systemd.notify import SILENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from supervisor.handover import reexec
    from supervisor.state.log import Log

_USAGE = "usage: forkshim-shim ID BUNDLE RUNTIME  (in the state directory)"


def main() -> NoReturn:
    """Run the command and end the process with its exit status."""
    exit_process(run_command())


def run_command() -> int:
    """Run the command with `sys.argv` and return its exit status."""
    fds.ensure_stdio()
    arguments = sys.argv[1:]
    command = own_command()
    if len(arguments) != 3:
        print(_USAGE, file=sys.stderr)  # noqa: T201 -- nothing else is open yet
        return 1
    with ExitStack() as stack:
        return _main(arguments, command, stack)


def _main(arguments: list[str], command: tuple[str, ...], stack: ExitStack) -> int:
    try:
        arrival = _arrive()
        state_dir = StateDirectory.open(".")
        stack.callback(state_dir.close)
        if arrival is not None and arrival.is_rehearsal:
            _dry_run(arrival, command, state_dir)
        state_dir.check_trust()
        log = state_dir.open_log()
    except (ShimError, OSError) as error:
        print(f"forkshim-shim: {printable(describe(error))}", file=sys.stderr)  # noqa: T201 -- as above
        return 1
    try:
        if arrival is not None:
            _raise_error_of(_restore(arrival, command, log, state_dir))
        else:
            _raise_error_of(supervise(_request(*arguments, command=command), log, state_dir))
    except RuntimeFailedError as error:
        log.info(str(error))  # at level `error` the engine would show this line, not the runtime's
        return 0
    except (ShimError, OSError) as error:
        log.error(describe(error))
        return 1
    except Exception as error:  # a bug; stderr may be /dev/null, the log is not
        log.error(describe_bug(error))
        return 1
    finally:
        log.close()
    return 0


def _arrive() -> reexec.Arrival | None:
    if not is_handed_over():
        return None
    from supervisor.handover import reexec  # imports io.stream_set: 8 ms that a start saves

    return reexec.arrive()


def _dry_run(
    arrival: reexec.Arrival, command: tuple[str, ...], state_dir: StateDirectory
) -> NoReturn:
    from supervisor.container import restore
    from supervisor.handover import reexec

    restore.dry_run(_restored_request(arrival, command), state_dir, arrival.containers)
    reexec.end_rehearsal()


def _restore(
    arrival: reexec.Arrival, command: tuple[str, ...], log: Log, state_dir: StateDirectory
) -> Outcome:
    from supervisor.container import restore

    return restore.restore(_restored_request(arrival, command), log, state_dir, arrival.containers)


def _raise_error_of(outcome: Outcome) -> None:
    if outcome.error is not None:
        raise outcome.error


def _restored_request(arrival: reexec.Arrival, command: tuple[str, ...]) -> StartRequest:
    return request_of(
        arrival.containers[0].document,
        notifier=SILENT,
        command=command,
        environment=dict(os.environ),
    )


def _request(
    container_id: str, bundle: str, runtime: str, *, command: tuple[str, ...]
) -> StartRequest:
    check_id(container_id)
    if not bundle or "\0" in bundle or not runtime:
        raise UsageError("bundle and runtime must not be empty")
    return StartRequest(
        ContainerSpec(container_id, paths.absolute(bundle), absolute(runtime)),
        origin=Origin(command=command, environment=dict(os.environ)),
    )
