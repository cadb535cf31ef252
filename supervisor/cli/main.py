"""`forkshim`: the operator's command. Arguments in, one exit status out; no traceback."""

from __future__ import annotations

import sys

from supervisor import __version__
from supervisor.cli import options
from supervisor.cli.run import DEFAULT_ROOT, RunRequest, run
from supervisor.handover.own_command import is_handed_over
from supervisor.linux import fds
from supervisor.linux.errors import ShimError
from supervisor.linux.process_exit import exit_process
from supervisor.linux.signals import parse_signal
from supervisor.oci.command_line import absolute
from supervisor.state.journal_log import ERR
from supervisor.state.log import line_for_stderr
from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import NoReturn

_STATUSES = """\
exit status: the container's own; 128+n if signal n ended it. Without a container:
  1 the runtime failed   2 usage   5 runtime not installed   6 bundle missing or not valid
  75 the id is in use    143 stopped before the container existed
"""

_MACHINE_STATUS = 71  # OSERR of systemd-analyze exit-status


def main() -> NoReturn:
    """Run the command and end the process with its exit status."""
    exit_process(run_command())


def run_command() -> int:
    """Run the command with `sys.argv`; returns its exit status."""
    fds.ensure_stdio()
    request = options.read(sys.argv[1:]) or parse(sys.argv[1:])
    try:
        if is_handed_over():
            from supervisor.cli.adopt import go_on

            return go_on()
        if isinstance(request, AdoptRequest):
            from supervisor.cli.adopt import adopt

            return adopt(request.container_id, request.root, detach=request.detach)
        if isinstance(request, AttachRequest):
            from supervisor.cli.attach import attach

            return attach(request.container_id, request.root)
        return run(request)
    except ShimError as error:
        if not error.is_told:
            _say(f"forkshim: {request.container_id}: {error}")
        return error.exit_status
    except OSError as error:  # EMFILE, ENOMEM, ...: the machine's trouble, said in one line
        _say(f"forkshim: {request.container_id}: {error}")
        return _MACHINE_STATUS
    except KeyboardInterrupt:  # before the signals were routed
        return 130


def _say(message: str) -> None:
    print(line_for_stderr(message, ERR), file=sys.stderr)  # noqa: T201 -- a command talks on stderr


@dataclass(frozen=True, slots=True)
class AdoptRequest:
    """The command line of `forkshim adopt`, parsed."""

    container_id: str
    root: str
    detach: bool


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """The command line of `forkshim attach`, parsed."""

    container_id: str
    root: str


Request = RunRequest | AdoptRequest | AttachRequest


def parse(arguments: list[str]) -> Request:
    """Read the command line; ends the process with status 2 and a usage line if it is wrong."""
    import argparse  # 5 ms, see `quick`

    parser = argparse.ArgumentParser(
        prog="forkshim",
        description="Supervises one OCI container with forked IO workers.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"forkshim {__version__}")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    command = commands.add_parser(
        "run",
        help="create and start a container, and supervise it to its end",
        epilog=_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_run_arguments(command)
    other = commands.add_parser(
        "adopt",
        help="go on with a container whose supervisor was killed, to its end",
        epilog=_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_common_arguments(other, "return when it is supervised")
    listening = commands.add_parser(
        "attach",
        help="hear what a running container says from now on, to its end or to Ctrl-C",
        epilog="Nobody waits for it: who reads too slowly misses something, and only he.",
        allow_abbrev=False,
    )
    _add_place(listening)
    for word in arguments:
        if not word.isprintable() and "\udc80" <= max(word) <= "\udcff":
            parser.error(f"not UTF-8: {word!r}")
    words = parser.parse_args(arguments)
    if words.command == "adopt":
        return AdoptRequest(words.id, words.root, words.detach)
    if words.command == "attach":
        return AttachRequest(words.id, words.root)
    return RunRequest(
        container_id=words.id,
        bundle=words.bundle,
        runtime=absolute(words.runtime),
        runtime_args=tuple(words.runtime_arg),
        no_pivot=words.no_pivot,
        root=words.root,
        detach=words.detach,
        terminal=words.terminal,
        interactive=words.interactive,
        stop_signal=words.stop_signal,
        stop_timeout_s=words.stop_timeout,
        log=words.log,
        exit_dir=words.exit_dir,
        sdnotify=words.sdnotify,
        adopt=words.adopt,
    )


def _add_run_arguments(command: argparse.ArgumentParser) -> None:
    import argparse

    def seconds(text: str) -> float:
        try:
            return options.seconds(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"not a number of seconds: {text!r}") from None

    def signal(text: str) -> int:
        try:
            return parse_signal(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"not a signal: {text!r}") from None

    add = command.add_argument
    add("--bundle", default=".", metavar="DIR", help="the OCI bundle (default: here)")
    add("--runtime", default="runc", metavar="NAME", help="runc, crun or a path (default: runc)")
    add(
        "--runtime-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="a global option for the runtime, e.g. --runtime-arg=--systemd-cgroup; repeatable",
    )
    add("--no-pivot", action="store_true", help="pass --no-pivot: for a rootfs on a ramdisk")
    _add_common_arguments(command, "return when the container runs; needs --log")
    add("-t", "--terminal", action="store_true", help="give the container a terminal")
    add("-i", "--interactive", action="store_true", help="give the container our stdin")
    add(
        "--stop-timeout",
        type=seconds,
        default=10.0,
        metavar="S",
        help="seconds from the stop signal to SIGKILL (default: 10)",
    )
    add(
        "--stop-signal",
        type=signal,
        default=15,
        metavar="SIG",
        help="what a stop sends: TERM, SIGQUIT, 3, RTMIN+3 (default: TERM)",
    )
    add(
        "--log",
        metavar="SINK",
        help="where output goes: passthrough (default), journal, cri:PATH, file:PATH, null, or the "
        "path of a fifo; options as in file,max-size=10M,policy=drop-old:PATH and journal,tag=web",
    )
    add(
        "--exit-dir",
        metavar="DIR",
        help="write DIR/ID.json, how it ended: status, signal, out of memory, bytes, times",
    )
    add(
        "--sdnotify",
        choices=options.WHO_NOTIFIES,
        default="supervisor",
        help="who says READY=1 to systemd: we, when it runs (default), or the container itself",
    )
    add(
        "--adopt",
        action="store_true",
        help="if ID's supervisor was killed and its container lives, go on with it: for Restart=",
    )


def _add_common_arguments(command: argparse.ArgumentParser, detach_help: str) -> None:
    command.add_argument("--detach", action="store_true", help=detach_help)
    _add_place(command)


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--root",
        default=DEFAULT_ROOT,
        metavar="DIR",
        help=f"where the state directories are (default: {DEFAULT_ROOT})",
    )
    command.add_argument("id", metavar="ID", help="the container's name: letters, digits, _ + . -")
