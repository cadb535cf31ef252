"""conmon's command line: GLib's rules, each error text, and what `--log-path` may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from supervisor.frontends.conmon import option_table, options
from supervisor.frontends.conmon.options import Driver, Ending, LogTarget, Options, OptionsError

if TYPE_CHECKING:
    from collections.abc import Callable

ID = "d290b693a9239d4a40d9002ead56310d5d2c063fff6302cb0cd2bdf0037bdea8"
RUN = ["-c", ID, "-u", ID, "-r", "/usr/sbin/runc"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {}),
        (["--api-version", "1", "-c", "x"], {"api_version": True, "cid": "x"}),
        (["--api-version=1"], {"api_version": True}),
        (["--terminal=no"], {"terminal": True}),
        (["-tic", "x"], {"terminal": True, "stdin": True, "cid": "x"}),
        (["-ct", "x"], {"terminal": True, "cid": "x"}),
        (["-c", "x", "-c", "y"], {"cid": "y"}),
        (["--cid", "-u"], {"cid": "-u"}),
        (["--cid=", "--cuuid=a=b"], {"cid": "", "cuuid": "a=b"}),
        (["stray", "-", "-t", "more"], {"terminal": True}),
        (["-c", "x", "--", "-t", "--nonsense"], {"cid": "x"}),
        (
            ["--runtime-arg", "--log-format=json", "--runtime-arg", "--log", "--runtime-arg=/x"],
            {"runtime_arg": ("--log-format=json", "--log", "/x")},
        ),
        (
            ["--restore-arg", "a", "--runtime-opt", "--preserve-fds", "--runtime-opt", "1"],
            {"runtime_opt": ("a", "--preserve-fds", "1")},
        ),
        (["--pidfile", "/p"], {"container_pidfile": "/p"}),
        (["-0", "/d", "-P", "/c", "-p", "/p"],
         {"persist_dir": "/d", "conmon_pidfile": "/c", "container_pidfile": "/p"}),
        (["-T", "0x10", "--exit-delay", "010"], {"timeout": 16, "exit_delay": 8}),
        (["--log-size-max", " +12", "--log-max-files=-1"],
         {"log_size_max": 12, "log_max_files": -1}),
        (["--log-global-size-max", str(2**63 - 1)], {"log_global_size_max": 2**63 - 1}),
        (["--timeout", str(-(2**31))], {"timeout": -(2**31)}),
    ],
)  # fmt: skip
def test_a_command_line_is_read_by_the_rules_of_glib(
    words: list[str], expected: dict[str, Any]
) -> None:
    assert options.parse(words) == Options(**expected)


PARSING = "conmon: option parsing failed: "


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--ci", "x"], "Unknown option --ci"),
        (["--foo=3"], "Unknown option --foo=3"),
        (["-x"], "Unknown option -x"),
        (["-v"], "Unknown option -v"),
        (["--help=3"], "Unknown option --help=3"),
        (["-cABC", "x"], "Unknown option -cABC"),
        (["-c=x"], "Missing argument for -c"),
        (["-cABC"], "Missing argument for -c"),
        (["-tic"], "Missing argument for -c"),
        (["--cid"], "Missing argument for --cid"),
        (["-cu", "a", "b"], "Error parsing option -u"),
        (["--timeout="], "Cannot parse integer value “” for --timeout"),
        (["--log-size-max", "12 "], "Cannot parse integer value “12 ” for --log-size-max"),
        (["--exit-delay", "08"], "Cannot parse integer value “08” for --exit-delay"),
        (["-T", str(2**31)], "Integer value “2147483648” for --timeout out of range"),
        (
            ["--log-size-max", str(2**63)],
            "Integer value “9223372036854775808” for --log-size-max out of range",
        ),
    ],
)
def test_a_word_that_cannot_be_read_is_named(words: list[str], text: str) -> None:
    with pytest.raises(OptionsError) as raised:
        options.parse(words)
    assert str(raised.value) == PARSING + text


FIRST, THEN = options.check_first, options.check


@pytest.mark.parametrize(
    ("check", "words", "text"),
    [
        (FIRST, [], "conmon: Container ID not provided. Use --cid"),
        (FIRST, ["--cid="], "conmon: Container ID not provided. Use --cid"),
        (FIRST, ["--log-max-files=-2"], "conmon: log-max-files must be non-negative, got -2"),
        (FIRST, ["--log-max-files=0", "--log-rotate"],
         "conmon: log-max-files must be at least 1 when log-rotate is enabled, got 0"),
        (FIRST, ["-c", "x", "--log-level", "loud"], "[conmon:e]: No such log level loud"),
        (FIRST, ["-c", "x", "-e", "--restore", "d"],
         "[conmon:e]: Cannot use 'exec' and 'restore' at the same time"),
        (FIRST, ["-c", "x", "--exec-attach"], "[conmon:e]: Attach can only be specified with exec"),
        (FIRST, ["-c", "x", "-e", "--exec-attach"],
         "[conmon:e]: Attach can only be specified for a non-legacy exec session"),
        (FIRST, ["-c", "x"], "[conmon:e]: Container UUID not provided. Use --cuuid"),
        (FIRST, ["-c", "x", "-e", "--api-version"],
         "[conmon:e]: Container UUID not provided. Use --cuuid"),
        (FIRST, ["-c", "x", "-e"], "[conmon:e]: Runtime path not provided. Use --runtime"),
        (THEN, [*RUN, "-e"],
         "[conmon:e]: Exec process spec path not provided. Use --exec-process-spec"),
        (THEN, [*RUN, "--exit-delay=-1"],
         "[conmon:e]: Delay before invoking exit command must be greater than or equal to 0"),
        (THEN, RUN, "[conmon:e]: Log driver not provided. Use --log-path"),
        (THEN, [*RUN, "-l", ""], "[conmon:e]: log-path must not be empty"),
        (THEN, [*RUN, "-l", ":"], "[conmon:e]: log-path must not be empty"),
        (THEN, [*RUN, "-l", "k8s-file"], "[conmon:e]: k8s-file requires a filename"),
        (THEN, [*RUN, "-l", "k8s-file:"], "[conmon:e]: k8s-file requires a filename"),
        (THEN, [*RUN, "-l", "syslog:/x"], "[conmon:e]: No such log driver syslog"),
        (THEN, [*RUN, "-l", "syslog:"], "[conmon:e]: No such log driver syslog"),
        (THEN, [*RUN, "-l", "/x", "--log-tag", "a"],
         "[conmon:e]: k8s-file doesn't support --log-tag"),
        (THEN, [*RUN, "-l", "/x", "--log-label", "A=b"],
         "[conmon:e]: k8s-file doesn't support --log-label"),
        (THEN, ["-c", "123456789012", "-l", "journald"],
         "[conmon:e]: Container ID must be longer than 12 characters"),
        (THEN, [*RUN, "-l", "journald", "--log-label", "=b"],
         "[conmon:e]: Container labels must be in format LABEL=VALUE (no LABEL present in '=b')"),
        (THEN, [*RUN, "-l", "journald", "--log-label", "A"],
         "[conmon:e]: Container labels must be in format LABEL=VALUE "
         "(none or more than one '=' present in 'A')"),
        (THEN, [*RUN, "-l", "journald", "--log-label", "a=b"],
         "[conmon:e]: Container label names must contain only uppercase letters, numbers and "
         "underscore (in 'a=b')"),
    ],
)  # fmt: skip
def test_what_is_missing_or_excluded_is_said_in_conmons_words(
    check: Callable[[Options], object], words: list[str], text: str
) -> None:
    with pytest.raises(OptionsError) as raised:
        check(options.parse(words))
    assert str(raised.value) == text


def test_seccomp_notifications_are_refused() -> None:
    given = options.parse([*RUN, "-l", "none", "--seccomp-notify-socket", "/s"])
    with pytest.raises(OptionsError, match="seccomp notifications are not supported"):
        options.check(given)


@pytest.mark.parametrize(
    ("setting", "target"),
    [
        ("/log", LogTarget(Driver.K8S_FILE, "/log")),
        (":/log", LogTarget(Driver.K8S_FILE, "/log")),
        ("k8s-file:/log", LogTarget(Driver.K8S_FILE, "/log")),
        ("k8s-file:/log:rest", LogTarget(Driver.K8S_FILE, "/log")),
        (":none", LogTarget(Driver.K8S_FILE, "none")),
        (":journald", LogTarget(Driver.K8S_FILE, "journald")),
        ("json-file", LogTarget(Driver.K8S_FILE, "json-file")),
        ("none", LogTarget(Driver.NONE)),
        ("off", LogTarget(Driver.NONE)),
        ("null:/x", LogTarget(Driver.NONE)),
        ("journald", LogTarget(Driver.JOURNALD)),
        ("journald:/x", LogTarget(Driver.JOURNALD)),
        ("passthrough", LogTarget(Driver.PASSTHROUGH)),
    ],
)
def test_a_log_path_names_a_driver_or_a_file(setting: str, target: LogTarget) -> None:
    assert options.log_targets([setting]) == (target,)


def test_the_version_is_what_engines_parse() -> None:
    with pytest.raises(Ending, match=r"^conmon version 2\.2\.1\ncommit: .+\n$"):
        options.check_first(options.parse(["--version"]))


@pytest.mark.parametrize("word", ["--help", "-h", "-?"])
def test_the_help_has_each_option_and_what_tests_look_for(word: str) -> None:
    with pytest.raises(Ending) as raised:
        options.parse(["-t", word])
    text = str(raised.value)
    assert all(f"--{option.name}" in text for option in option_table.TABLE)
    assert "journald" in text
    assert max(map(len, text.splitlines())) <= 100


def test_an_option_without_effect_is_warned_of() -> None:
    given = options.parse([*RUN, "--no-container-partial-message"])
    files, journal = options.log_targets(["/log"]), options.log_targets(["journald", "none"])
    assert [*options.warnings(given, files)] == [
        "--no-container-partial-message has no effect without journald log driver"
    ]
    assert [*options.warnings(given, journal)] == []


@pytest.mark.parametrize(
    ("word", "levels"),
    [
        ("error", "error"), ("Fatal", "error"), ("PANIC", "error"),
        ("warn", "error warn"), ("warning", "error warn"),
        ("info", "error warn info"), ("debug", "error warn info"), ("trace", "error warn info"),
    ],
)  # fmt: skip
def test_a_level_says_which_messages_are_said(word: str, levels: str) -> None:
    given = options.parse([*RUN, "--log-level", word])
    assert given.said_levels == tuple(levels.split())
    assert options.parse(RUN).said_levels == ("error", "warn")
