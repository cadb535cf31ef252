"""The options of conmon(8): one row each. Pure."""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple


class Kind(Enum):
    """What follows an option: nothing, one text, one of several texts, a number."""

    FLAG = auto()
    TEXT = auto()
    TEXTS = auto()
    INT = auto()
    INT64 = auto()


BITS = {Kind.INT: 31, Kind.INT64: 63}


class Option(NamedTuple):
    """One option. `short` is its letter or ""; `help` its line of `--help`."""

    name: str
    short: str
    kind: Kind
    help: str


TABLE = (
    Option("api-version", "", Kind.FLAG, "Report pid and exit status of an exec as JSON `data`"),
    Option("bundle", "b", Kind.TEXT, "Directory of the OCI bundle"),
    Option("cid", "c", Kind.TEXT, "Id of the container"),
    Option("conmon-pidfile", "P", Kind.TEXT, "File for the pid of this supervisor"),
    Option("container-pidfile", "p", Kind.TEXT, "File for the pid of the container's process"),
    Option("cuuid", "u", Kind.TEXT, "Name of the attach socket's directory"),
    Option("exec", "e", Kind.FLAG, "Execute a process in a running container"),
    Option("exec-attach", "", Kind.FLAG, "Let clients attach before the process is executed"),
    Option("exec-process-spec", "", Kind.TEXT, "The OCI process object of --exec"),
    Option("exit-command", "", Kind.TEXT, "Program to execute when all is over"),
    Option("exit-command-arg", "", Kind.TEXTS, "One argument of --exit-command; repeatable"),
    Option("exit-delay", "", Kind.INT, "Seconds to wait before --exit-command"),
    Option("exit-dir", "", Kind.TEXT, "Directory for the exit status"),
    Option("full-attach", "", Kind.FLAG, "Attach socket in the bundle, without a link to it"),
    Option("leave-stdin-open", "", Kind.FLAG, "Keep stdin open when a client has left"),
    Option("log-allowlist-dir", "", Kind.TEXTS, "Directory for --log-rotate; repeatable"),
    Option("log-global-size-max", "", Kind.INT64, "Bytes of log in all; what follows is dropped"),
    Option("log-label", "", Kind.TEXTS, "NAME=VALUE for each journald record; repeatable"),
    Option("log-level", "", Kind.TEXT, "Which messages go to stderr and syslog: error, warn, info"),
    Option("log-max-files", "", Kind.INT, "Old log files that --log-rotate keeps (default: 1)"),
    Option("log-path", "l", Kind.TEXTS, "k8s-file:PATH, journald, passthrough or none"),
    Option("log-rotate", "", Kind.FLAG, "Rotate a full log file instead of replacing it"),
    Option("log-size-max", "", Kind.INT64, "Bytes of a log file"),
    Option("log-tag", "", Kind.TEXT, "Tag of each journald record"),
    Option("name", "n", Kind.TEXT, "Name of the container"),
    Option("no-container-partial-message", "", Kind.FLAG, "Do not mark parts of journald lines"),
    Option("no-new-keyring", "", Kind.FLAG, "Passed to the runtime"),
    Option("no-pivot", "", Kind.FLAG, "Passed to the runtime"),
    Option("no-sync-log", "", Kind.FLAG, "Do not sync the log to disk at the end"),
    Option("persist-dir", "0", Kind.TEXT, "Directory for `exit` and `oom`"),
    Option("replace-listen-pid", "", Kind.FLAG, "Set LISTEN_PID to the runtime's pid"),
    Option("restore", "", Kind.TEXT, "Restore the container from this checkpoint"),
    Option("runtime", "r", Kind.TEXT, "Path of the OCI runtime"),
    Option("runtime-arg", "", Kind.TEXTS, "One word before the runtime's verb; repeatable"),
    Option("runtime-opt", "", Kind.TEXTS, "One word after the runtime's verb; repeatable"),
    Option("sdnotify-socket", "", Kind.TEXT, "Where the container's sd_notify words go"),
    Option("socket-dir-path", "", Kind.TEXT, "Directory of links to attach sockets"),
    Option("stdin", "i", Kind.FLAG, "Give the container a stdin"),
    Option("sync", "", Kind.FLAG, "Stay the caller's child"),
    Option("syslog", "", Kind.FLAG, "Messages of this supervisor to syslog, too"),
    Option("systemd-cgroup", "s", Kind.FLAG, "Passed to the runtime"),
    Option("terminal", "t", Kind.FLAG, "Give the container a terminal"),
    Option("timeout", "T", Kind.INT, "Kill the container after so many seconds"),
    Option("version", "", Kind.FLAG, "Print the version"),
)
HIDDEN = (
    Option("pidfile", "", Kind.TEXT, "--container-pidfile"),
    Option("restore-arg", "", Kind.TEXTS, "--runtime-opt"),
    Option("seccomp-notify-socket", "", Kind.TEXT, ""),
    Option("seccomp-notify-plugins", "", Kind.TEXT, ""),
)
MEANS = {"pidfile": "container_pidfile", "restore_arg": "runtime_opt"}
LONG = {option.name: option for option in (*TABLE, *HIDDEN)}
SHORT = {option.short: option for option in TABLE if option.short}
