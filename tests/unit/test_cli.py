"""The command line of `forkshim`."""

from __future__ import annotations

import errno
import os
import sys
from typing import NoReturn

import pytest

from supervisor.cli import main
from supervisor.cli.commands import RunRequest
from supervisor.linux.errors import AlreadySupervisedError, ShimError


def test_an_id_alone_takes_every_default() -> None:
    assert main.parse(["run", "web"]) == RunRequest(
        container_id="web",
        bundle=".",
        runtime="runc",
        runtime_args=(),
        no_pivot=False,
        root="/run/forkshim",
        detach=False,
        terminal=False,
        interactive=False,
        stop_signal=15,
        stop_timeout_s=10.0,
        log=None,
    )


def test_each_option_reaches_its_field() -> None:
    words = [
        *("run", "--bundle", "/b", "--runtime", "crun", "--no-pivot", "--root", "/r", "--detach"),
        *("--runtime-arg=--systemd-cgroup", "--runtime-arg=--root=/r", "-t", "-i"),
        *("--stop-timeout", "2.5", "--stop-signal", "RTMIN+3", "--log", "file:/l", "web"),
    ]
    assert main.parse(words) == RunRequest(
        container_id="web",
        bundle="/b",
        runtime="crun",
        runtime_args=("--systemd-cgroup", "--root=/r"),
        no_pivot=True,
        root="/r",
        detach=True,
        terminal=True,
        interactive=True,
        stop_signal=37,
        stop_timeout_s=2.5,
        log="file:/l",
    )


def test_long_names_of_the_short_options() -> None:
    request = main.parse(["run", "--terminal", "--interactive", "web"])
    assert isinstance(request, RunRequest)
    assert (request.terminal, request.interactive) == (True, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "COMMAND"),
        (["run"], "ID"),
        (["start", "web"], "invalid choice"),
        (["run", "web", "more"], "unrecognized arguments: more"),
        (["run", "--det", "web"], "unrecognized arguments: --det"),
        (["run", "--stop-timeout", "-1", "web"], "not a number of seconds: '-1'"),
        (["run", "--stop-timeout", "nan", "web"], "not a number of seconds: 'nan'"),
        (["run", "--stop-timeout", "inf", "web"], "not a number of seconds: 'inf'"),
        (["run", "--stop-timeout", "1e999", "web"], "not a number of seconds: '1e999'"),
        (["run", "--stop-timeout", "soon", "web"], "not a number of seconds: 'soon'"),
        (["run", "--stop-signal", "65", "web"], "not a signal: '65'"),
        (["run", "--stop-signal", "NOPE", "web"], "not a signal: 'NOPE'"),
    ],
)
def test_a_wrong_line_ends_with_status_2_and_says_what_is_wrong(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main.parse(words)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_help_tells_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main.parse(["run", "--help"])
    assert caught.value.code == 0
    assert "75 the id is in use" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main.parse(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("forkshim ")


@pytest.mark.parametrize("timeout", ["0", "1e-9", "1e300"])
def test_any_finite_number_of_seconds_is_a_stop_timeout(timeout: str) -> None:
    request = main.parse(["run", "--stop-timeout", timeout, "web"])
    assert isinstance(request, RunRequest)
    assert request.stop_timeout_s == float(timeout)


def _main(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """Run the command `forkshim run web`, which fails with `error`."""

    def fails(request: RunRequest) -> NoReturn:
        assert request.container_id == "web"
        raise error

    monkeypatch.setattr(sys, "argv", ["forkshim", "run", "web"])
    monkeypatch.setattr(main, "run", fails)
    return main.run_command()


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ShimError("why"), 1, "why"),
        (AlreadySupervisedError("why"), 75, "why"),
        (
            OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
            71,
            "test_cli.fails: too many open files",
        ),
        (FileNotFoundError(errno.ENOENT, "gone", "/f"), 71, "/f: gone"),
    ],
)
def test_an_error_is_one_line_and_a_status_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    status: int,
    said: str,
) -> None:
    assert _main(monkeypatch, error) == status
    assert capsys.readouterr() == ("", f"forkshim: web: {said}\n")


def test_a_key_before_the_signals_are_routed_is_130_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr() == ("", "")


def test_the_containers_status_is_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["forkshim", "run", "web"])
    monkeypatch.setattr(main, "run", lambda _request: 7)
    assert main.run_command() == 7


def test_a_bug_is_one_line_and_the_status_of_software(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_request: RunRequest) -> NoReturn:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(main, "run", fail)
    monkeypatch.setattr(sys, "argv", ["forkshim", "run", "web"])
    assert main.run_command() == 70
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "forkshim: web: bug: ZeroDivisionError: by nothing (test_cli.fail, line "
    )


@pytest.mark.parametrize("option", ["--root", "--exit-dir", "--bundle"])
def test_an_empty_path_is_a_wrong_word(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.parse(["run", option, "", "web"])
    assert ended.value.code == 2
    assert f"argument {option}: an empty path: ''" in capsys.readouterr().err
