"""The commands of `forkshim`: the table of options and the parsed request of each."""

from __future__ import annotations

import math

from supervisor.cli.options import Command, Option
from supervisor.linux.signals import parse_signal
from supervisor.oci.command_line import absolute
from workers.common.records import dataclass

DEFAULT_ROOT = "/run/forkshim"


@dataclass(frozen=True, slots=True)
class RunRequest:
    """The command line of `forkshim run`, parsed. --help explains each option."""

    container_id: str
    bundle: str = "."
    runtime: str = "runc"
    runtime_args: tuple[str, ...] = ()
    no_pivot: bool = False
    root: str = DEFAULT_ROOT
    detach: bool = False
    terminal: bool = False
    interactive: bool = False
    stop_signal: int = 15
    stop_timeout_s: float = 10.0
    log: str | None = None
    exit_dir: str | None = None
    sdnotify: str = "supervisor"
    adopt: bool = False


@dataclass(frozen=True, slots=True)
class AdoptRequest:
    """The command line of `forkshim adopt`, parsed."""

    container_id: str
    root: str = DEFAULT_ROOT
    detach: bool = False


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """The command line of `forkshim attach`, parsed."""

    container_id: str
    root: str = DEFAULT_ROOT


Request = RunRequest | AdoptRequest | AttachRequest


def not_empty(text: str) -> str:
    """Return `text`, a path.

    Raises:
        ValueError: `text` is empty.
    """
    if not text:
        raise ValueError(text)
    return text


def seconds(text: str) -> float:
    """Return a number of seconds.

    Raises:
        ValueError: `text` is not a number, or is negative or infinite.
    """
    number = float(text)
    if not 0 <= number < math.inf:
        raise ValueError(text)
    return number


_STATUSES = """\
exit status: the container's own; 128+n if signal n ended it. Without a container:
  1 the runtime failed   2 usage   5 runtime not installed   6 bundle missing or not valid
  75 the id is in use    143 stopped before the container existed
"""
_NO_PATH = "an empty path"
_ID = Option("container_id", (), "the container's name: letters, digits, _ + . -", "ID")
_ROOT = Option(
    "root",
    ("--root",),
    f"where the state directories are (default: {DEFAULT_ROOT})",
    "DIR",
    not_empty,
    _NO_PATH,
)

RUN = Command(
    "run",
    RunRequest,
    (
        Option(
            "bundle", ("--bundle",), "the OCI bundle (default: here)", "DIR", not_empty, _NO_PATH
        ),
        Option(
            "runtime",
            ("--runtime",),
            "runc, crun or a path (default: runc)",
            "NAME",
            absolute,
            "not a path in UTF-8",
        ),
        Option(
            "runtime_args",
            ("--runtime-arg",),
            "a global option for the runtime, e.g. --runtime-arg=--systemd-cgroup; repeatable",
            "ARG",
            is_repeatable=True,
        ),
        Option("no_pivot", ("--no-pivot",), "pass --no-pivot: for a rootfs on a ramdisk"),
        Option("detach", ("--detach",), "return when the container runs; needs --log"),
        _ROOT,
        _ID,
        Option("terminal", ("-t", "--terminal"), "give the container a terminal"),
        Option(
            "interactive", ("-i", "--interactive"), "give the container the stdin of this command"
        ),
        Option(
            "stop_timeout_s",
            ("--stop-timeout",),
            "seconds from the stop signal to SIGKILL (default: 10)",
            "S",
            seconds,
            "not a number of seconds",
        ),
        Option(
            "stop_signal",
            ("--stop-signal",),
            "the signal that asks the container to stop: TERM, SIGQUIT, 3, RTMIN+3 (default: TERM)",
            "SIG",
            parse_signal,
            "not a signal",
        ),
        Option(
            "log",
            ("--log",),
            "where output goes: passthrough (default), journal, cri:PATH, file:PATH, null, or the "
            "path of a fifo; options as in file,max-size=10M,policy=drop-old:PATH and "
            "journal,tag=web",
            "SINK",
        ),
        Option(
            "exit_dir",
            ("--exit-dir",),
            "write the exit record DIR/ID.json: status, signal, out of memory, bytes, times",
            "DIR",
            not_empty,
            _NO_PATH,
        ),
        Option(
            "sdnotify",
            ("--sdnotify",),
            "which process sends READY=1 to systemd: the supervisor, when the container runs "
            "(default), or the container itself",
            choices=("supervisor", "container"),
        ),
        Option(
            "adopt",
            ("--adopt",),
            "adopt the container of ID if its supervisor was killed: for Restart=",
        ),
    ),
    help="create and start a container, and supervise it to its end",
    epilog=_STATUSES,
)
ADOPT = Command(
    "adopt",
    AdoptRequest,
    (Option("detach", ("--detach",), "return when the container is supervised"), _ROOT, _ID),
    help="adopt a container whose supervisor was killed, and supervise it to its end",
    epilog=_STATUSES,
)
ATTACH = Command(
    "attach",
    AttachRequest,
    (_ROOT, _ID),
    help="copy the output of a running container from now on, to its end or to Ctrl-C",
    epilog="The container never waits for an attach client.\n"
    "A client that reads too slowly loses output.",
)
COMMANDS = (RUN, ADOPT, ATTACH)
