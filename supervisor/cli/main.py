"""`forkshim`, the operator's command: parses arguments, returns one exit status, no traceback."""

from __future__ import annotations

import sys

from supervisor import __version__
from supervisor.cli import foreground, options
from supervisor.cli.commands import COMMANDS, AdoptRequest, AttachRequest
from supervisor.cli.run import run
from supervisor.handover.own_command import is_handed_over, is_successor
from supervisor.linux import fds
from supervisor.linux.errors import AbandonedError, ShimError, StoppedError, describe, describe_bug
from supervisor.linux.process_exit import exit_process
from supervisor.state.journal_log import ERR
from supervisor.state.log import line_for_stderr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from supervisor.cli.commands import Request

_MACHINE_STATUS = 71  # OSERR of systemd-analyze exit-status


def main() -> NoReturn:
    """Run the command and exit with its exit status."""
    exit_process(run_command())


def run_command() -> int:
    """Run the command that `sys.argv` names. Returns its exit status."""
    fds.ensure_stdio()
    request: Request = options.read(COMMANDS, sys.argv[1:]) or parse(sys.argv[1:])
    try:
        if is_handed_over():
            from supervisor.cli.adopt import run_after_reload

            return run_after_reload()
        if is_successor():
            from supervisor.cli.adopt import run_as_successor

            return run_as_successor()
        if isinstance(request, AdoptRequest):
            from supervisor.cli.adopt import adopt

            return adopt(request.container_id, request.root, detach=request.detach)
        if isinstance(request, AttachRequest):
            from supervisor.cli.attach import attach

            return attach(request.container_id, request.root)
        return run(request)
    except StoppedError as error:
        if foreground.is_main_process_with_manager():
            return 0  # systemd has requested the stop, so the unit has not failed
        _say(f"forkshim: {request.container_id}: {error}")
        return error.exit_status
    except ShimError as error:
        if not error.is_told:
            _say(f"forkshim: {request.container_id}: {error}")
        return error.exit_status
    except OSError as error:  # EMFILE, ENOMEM, ...
        _say(f"forkshim: {request.container_id}: {describe(error)}")
        return _MACHINE_STATUS
    except Exception as error:
        _say(f"forkshim: {request.container_id}: {describe_bug(error)}")
        return AbandonedError.exit_status
    except KeyboardInterrupt:  # SIGINT before `SignalRouter` has its handlers
        return 130


def parse(arguments: list[str]) -> Request:
    """Return the request. A wrong command line ends the process with status 2 and a usage line."""
    description = "Supervises one OCI container with forked IO workers."
    request: Request = options.parse("forkshim", __version__, description, COMMANDS, arguments)
    return request


def _say(message: str) -> None:
    print(line_for_stderr(message, ERR), file=sys.stderr)  # noqa: T201 -- a command reports there
