"""The command line of conmon(8), read by the rules of GLib's option parser. Pure.

The rules, each measured with conmon 2.1.6:

- a value is the next word, whatever it begins with: `--runtime-arg --log-format=json`;
  `--option=value` means the same. A flag ignores such a value
- short options may stand together, `-tic ID`; the value of the one that takes a value is the next
  word. `-cID` and `-c=ID` are unknown options, and so are abbreviations such as `--ci`
- words that are no options are ignored, before `--` and after it. `--api-version` is a flag: the
  `1` that engines write behind it is such a word
- the last value of an option counts; options for many values keep all of them, in order
"""

from __future__ import annotations

import os
import re
from enum import Enum

from supervisor.frontends.conmon.option_table import BITS, LONG, MEANS, SHORT, TABLE, Kind, Option
from supervisor.linux.errors import ShimError
from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VERSION = "2.2.1"
"""The version of conmon whose options and files these are; engines compare it."""

_NUMBER = re.compile(r"\s*([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)")
_LEVELS = {
    **dict.fromkeys(("error", "fatal", "panic"), ("error",)),
    **dict.fromkeys(("warn", "warning"), ("error", "warn")),
    **dict.fromkeys(("info", "debug", "trace"), ("error", "warn", "info")),
}
_SHORTEST_JOURNAL_ID = 13
_LABEL_NAME = re.compile("[A-Z0-9_]+")


class OptionsError(ShimError):
    """The command line is wrong; the message is the whole line for stderr."""


class Ending(Exception):  # noqa: N818 -- no error: the command ends with 0
    """`--help` or `--version`: the text is for stdout, and the status is 0."""


class Driver(Enum):
    """What a `--log-path` names."""

    K8S_FILE = "k8s-file"
    JOURNALD = "journald"
    PASSTHROUGH = "passthrough"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class LogTarget:
    """One `--log-path`. `path` is only that of a k8s-file."""

    driver: Driver
    path: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line. Many attributes: each is an option of the same name.

    A string that was not given is "", which conmon takes for one that was not given, too.
    """

    api_version: bool = False
    bundle: str = ""
    cid: str = ""
    conmon_pidfile: str = ""
    container_pidfile: str = ""
    cuuid: str = ""
    exec: bool = False
    exec_attach: bool = False
    exec_process_spec: str = ""
    exit_command: str = ""
    exit_command_arg: tuple[str, ...] = ()
    exit_delay: int = 0
    exit_dir: str = ""
    full_attach: bool = False
    leave_stdin_open: bool = False
    log_allowlist_dir: tuple[str, ...] = ()
    log_global_size_max: int = -1
    log_label: tuple[str, ...] = ()
    log_level: str = "warn"
    log_max_files: int = 1
    log_path: tuple[str, ...] = ()
    log_rotate: bool = False
    log_size_max: int = -1
    log_tag: str = ""
    name: str = ""
    no_container_partial_message: bool = False
    no_new_keyring: bool = False
    no_pivot: bool = False
    no_sync_log: bool = False
    persist_dir: str = ""
    replace_listen_pid: bool = False
    restore: str = ""
    runtime: str = ""
    runtime_arg: tuple[str, ...] = ()
    runtime_opt: tuple[str, ...] = ()
    sdnotify_socket: str = ""
    seccomp_notify_plugins: str = ""
    seccomp_notify_socket: str = ""
    socket_dir_path: str = "/var/run/crio"
    stdin: bool = False
    sync: bool = False
    syslog: bool = False
    systemd_cgroup: bool = False
    terminal: bool = False
    timeout: int = 0
    version: bool = False

    @property
    def said_levels(self) -> tuple[str, ...]:
        """Which of the supervisor's messages go to stderr and to syslog: error, warn, info."""
        return _LEVELS[self.log_level.lower()]

    @property
    def bundle_path(self) -> str:
        """The absolute path of the bundle; "" for an exec without one."""
        bundle = self.bundle or ("" if self.exec else ".")
        return os.path.abspath(bundle) if bundle else ""

    @property
    def has_clients(self) -> bool:
        """Whether there is a directory for an attach socket: the first version of exec has none."""
        return bool(self.bundle) or not self.exec


def version_text() -> str:
    """Return what `--version` prints. Engines take the version from its third word."""
    from supervisor import __version__

    return f"conmon version {VERSION}\ncommit: forkshim {__version__}\n"


def help_text() -> str:
    """Return what `--help` prints."""
    lines = ["Usage:", "  conmon [OPTION…] - forkshim as the monitor of one OCI container", ""]
    lines += ["Options:", f"  {'-h, --help':29}Show this text"]
    for option in TABLE:
        names = f"-{option.short}, --{option.name}" if option.short else f"--{option.name}"
        lines.append(f"  {names:29}{option.help}" if len(names) < 29 else f"  {names}")
        if len(names) >= 29:
            lines.append(f"  {'':29}{option.help}")
    return "\n".join([*lines, ""])


def parse(words: Sequence[str]) -> Options:
    """Return the options; `check` has still to judge them.

    Raises:
        OptionsError: A word is no option, or its value is missing or no number.
        Ending: `--help`.
    """
    values: dict[str, bool | int | str | tuple[str, ...]] = {}
    for option, value in _given(words):
        name = option.name.replace("-", "_")
        name = MEANS.get(name, name)
        if option.kind is Kind.FLAG:
            values[name] = True
        elif option.kind is Kind.TEXT:
            values[name] = value
        elif option.kind is Kind.TEXTS:
            before = values.get(name, ())
            values[name] = (*(before if isinstance(before, tuple) else ()), value)
        else:
            values[name] = _number(option, value)
    return Options(**values)  # type: ignore[arg-type] # by the kinds of the table


def _given(words: Sequence[str]) -> Iterator[tuple[Option, str]]:
    """Give each option with its value; "" for a flag."""
    rest = iter(words)
    for word in rest:
        if word == "--":
            return
        if word in ("--help", "-h", "-?"):
            raise Ending(help_text())
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            option = LONG.get(name)
            if option is None:
                raise _error(f"Unknown option {word}")
            if option.kind is not Kind.FLAG and not equals:
                value = _next(rest, f"--{name}")
            yield option, value
        elif word.startswith("-") and len(word) > 1:
            yield from _cluster(word, rest)


def _cluster(word: str, rest: Iterator[str]) -> Iterator[tuple[Option, str]]:
    has_value = False
    for letter in word[1:]:
        option = SHORT.get(letter)
        if option is None:
            raise _error(f"Unknown option {word}")
        if option.kind is Kind.FLAG:
            yield option, ""
            continue
        if has_value:
            raise _error(f"Error parsing option -{letter}")
        has_value = True
        yield option, _next(rest, f"-{letter}")


def _next(rest: Iterator[str], shown: str) -> str:
    value = next(rest, None)
    if value is None:
        raise _error(f"Missing argument for {shown}")
    return value


def _number(option: Option, text: str) -> int:
    """Return the number as strtol(3) reads it with base 0: 010 is 8, 0x10 is 16."""
    match = _NUMBER.fullmatch(text)
    digits = match[2] if match else ""
    is_octal = len(digits) > 1 and digits.isdecimal() and digits[0] == "0"
    if match is None or (is_octal and not set(digits) <= set("01234567")):
        raise _error(f"Cannot parse integer value “{text}” for --{option.name}")
    number = int(digits, 8 if is_octal else 0) * (-1 if match[1] == "-" else 1)
    most = 1 << BITS[option.kind]
    if not -most <= number < most:
        raise _error(f"Integer value “{text}” for --{option.name} out of range")
    return number


def _error(text: str) -> OptionsError:
    return OptionsError(f"conmon: option parsing failed: {text}")


def check(options: Options) -> tuple[LogTarget, ...]:
    """Judge what was given, in the order of conmon; returns what the `--log-path` mean.

    The runtime's path is the caller's to look for, between `check_first` and this.

    Raises:
        OptionsError: Something is missing, or two options exclude each other.
    """
    if options.exec and not options.exec_process_spec:
        raise _refused("Exec process spec path not provided. Use --exec-process-spec")
    if options.exit_delay < 0:
        raise _refused("Delay before invoking exit command must be greater than or equal to 0")
    targets = log_targets(options.log_path)
    _check_logs(options, targets)
    if options.seccomp_notify_socket or options.seccomp_notify_plugins:
        raise _refused("seccomp notifications are not supported; conmon 2.2.2 has none, either")
    return targets


def check_first(options: Options) -> None:
    """Judge what conmon looks at before it looks for the runtime.

    Raises:
        Ending: `--version`.
        OptionsError: As `check`.
    """
    if options.version:
        raise Ending(version_text())
    if options.log_max_files < 0:
        count = options.log_max_files
        raise OptionsError(f"conmon: log-max-files must be non-negative, got {count}")
    if options.log_rotate and options.log_max_files == 0:
        raise OptionsError(
            "conmon: log-max-files must be at least 1 when log-rotate is enabled, got 0"
        )
    if not options.cid:
        raise OptionsError("conmon: Container ID not provided. Use --cid")
    if options.log_level.lower() not in _LEVELS:
        raise _refused(f"No such log level {options.log_level}")
    if options.restore and options.exec:
        raise _refused("Cannot use 'exec' and 'restore' at the same time")
    if options.exec_attach and not options.exec:
        raise _refused("Attach can only be specified with exec")
    if options.exec_attach and not options.api_version:
        raise _refused("Attach can only be specified for a non-legacy exec session")
    if not options.cuuid and (options.api_version or not options.exec):
        raise _refused("Container UUID not provided. Use --cuuid")
    if not options.runtime:
        raise _refused("Runtime path not provided. Use --runtime")


def log_targets(settings: Sequence[str]) -> tuple[LogTarget, ...]:
    """Return what the `--log-path` mean.

    Raises:
        OptionsError: There is none, or it names no driver.
    """
    if not settings:
        raise _refused("Log driver not provided. Use --log-path")
    return tuple(_log_target(setting) for setting in settings)


def _log_target(setting: str) -> LogTarget:
    # Colons divide words, and several of them divide like one; `:none` is a file, `none` is not.
    words = [word for word in setting.split(":") if word]
    if not words:
        raise _refused("log-path must not be empty")
    head, path = words[0], words[1] if len(words) > 1 else ""
    if not path and setting.startswith(":"):
        return LogTarget(Driver.K8S_FILE, head)
    if head in ("off", "null", "none"):
        return LogTarget(Driver.NONE)
    if head in (Driver.PASSTHROUGH.value, Driver.JOURNALD.value):
        return LogTarget(Driver(head))
    if head == Driver.K8S_FILE.value:
        if not path:
            raise _refused("k8s-file requires a filename")
        return LogTarget(Driver.K8S_FILE, path)
    if ":" not in setting:
        return LogTarget(Driver.K8S_FILE, head)
    raise _refused(f"No such log driver {head}")


def _check_logs(options: Options, targets: Sequence[LogTarget]) -> None:
    drivers = {target.driver for target in targets}
    if Driver.K8S_FILE in drivers and Driver.JOURNALD not in drivers:
        if options.log_tag:
            raise _refused("k8s-file doesn't support --log-tag")
        if options.log_label:
            raise _refused("k8s-file doesn't support --log-label")
    if Driver.JOURNALD in drivers:
        if len(options.cid) < _SHORTEST_JOURNAL_ID:
            raise _refused("Container ID must be longer than 12 characters")
        for label in options.log_label:
            _check_label(label)


def _check_label(label: str) -> None:
    rule = "Container labels must be in format LABEL=VALUE"
    if label.startswith("="):
        raise _refused(f"{rule} (no LABEL present in '{label}')")
    if label.count("=") != 1:
        raise _refused(f"{rule} (none or more than one '=' present in '{label}')")
    if not _LABEL_NAME.fullmatch(label.partition("=")[0]):
        raise _refused(
            "Container label names must contain only uppercase letters, numbers and underscore "
            f"(in '{label}')"
        )


def warnings(options: Options, targets: Sequence[LogTarget]) -> Iterator[str]:
    """Give what is said on stderr about options that do nothing."""
    has_journal = any(target.driver is Driver.JOURNALD for target in targets)
    if options.no_container_partial_message and not has_journal:
        yield "--no-container-partial-message has no effect without journald log driver"


def _refused(text: str) -> OptionsError:
    return OptionsError(f"[conmon:e]: {text}")
