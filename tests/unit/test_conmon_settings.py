"""From conmon's options to the settings of the streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from supervisor.frontends.conmon import options
from supervisor.frontends.conmon.settings import log_settings, process_config
from supervisor.sinks.spec import SinkKind, SinkSpec, parse_sink

if TYPE_CHECKING:
    from pathlib import Path

_RUN = ["-c", "123456789012", "-u", "123456789012", "-r", "/bin/true"]


def _setting(*words: str, reads_priority: bool = True) -> SinkSpec:
    parsed = options.parse([*_RUN, *words])
    targets = options.log_targets(parsed.log_path)
    (setting,) = log_settings(parsed, targets, "/a,b:c", reads_priority=reads_priority)
    return parse_sink(setting)


@pytest.mark.parametrize(
    ("words", "sink"),
    [
        (["-l", "/x"], SinkSpec(SinkKind.K8S_FILE, "/a,b:c", keep=0, is_synced=True)),
        (
            ["-l", "/x", "--log-size-max", "10000", "--no-sync-log"],
            SinkSpec(SinkKind.K8S_FILE, "/a,b:c", max_bytes=10000, keep=0),
        ),
        (
            ["-l", "/x", "--log-rotate", "--log-max-files", "3", "--log-global-size-max", "99"],
            SinkSpec(SinkKind.K8S_FILE, "/a,b:c", keep=3, total_bytes=99, is_synced=True),
        ),
        (["-l", "journald"], SinkSpec(SinkKind.JOURNAL)),
        (
            ["-l", "journald", "-n", "we b", "--log-tag", "a,b", "--log-label", "A=1:2",
             "--no-container-partial-message"],
            SinkSpec(
                SinkKind.JOURNAL,
                name="we b", tag="a,b", labels=(("A", "1:2"),), marks_partial=False,
            ),
        ),
        (["-l", "none"], SinkSpec(SinkKind.ATTACH)),
    ],
)  # fmt: skip
def test_a_log_driver_is_a_sink(words: list[str], sink: SinkSpec) -> None:
    assert _setting(*words) == sink


@pytest.mark.parametrize("words", [["-l", "/x", "-l", "journald"], ["-l", "journald", "-l", "/x"]])
def test_a_file_and_the_journal_are_two_sinks(words: list[str]) -> None:
    parsed = options.parse([*_RUN, *words, "-l", "none", "--log-tag", "t"])
    targets = options.log_targets(parsed.log_path)
    config = process_config(parsed, targets, log_path="/x", uid=0, gid=0)
    assert parse_sink(config.stdout) == SinkSpec(SinkKind.K8S_FILE, "/x", keep=0, is_synced=True)
    assert parse_sink(config.second) == SinkSpec(SinkKind.JOURNAL, tag="t")


def test_a_prefix_may_stay_text() -> None:
    assert not _setting("-l", "journald", reads_priority=False).reads_priority


@pytest.mark.parametrize(
    ("words", "stdin"),
    [
        ([], ""),
        (["-i"], "attach"),
        (["-i", "--leave-stdin-open"], "attach,keep-open"),
        (["-t"], "attach,keep-open"),
        (["-i", "-t"], "attach"),
    ],
)
def test_only_the_end_of_a_wanted_input_is_the_end(words: list[str], stdin: str) -> None:
    parsed = options.parse([*_RUN, "-l", "/x", *words])
    targets = options.log_targets(parsed.log_path)
    config = process_config(parsed, targets, log_path="/x", uid=0, gid=0)
    assert config.stdin == stdin


@pytest.mark.parametrize(
    ("allowed", "keep", "max_bytes"),
    [
        ([], 3, 9),
        (["logs"], 3, 9),
        (["", "."], 3, 9),
        (["logs/web"], 0, 0),
        (["log"], 0, 0),
        (["linked"], 3, 9),
    ],
)
def test_a_log_is_rotated_in_the_allowed_directories_alone(
    tmp_path: Path, allowed: list[str], keep: int, max_bytes: int
) -> None:
    (tmp_path / "logs" / "web").mkdir(parents=True)
    (tmp_path / "log").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "logs")
    words = ["--log-rotate", "--log-max-files=3", "--log-size-max=9", "-l", "/x"]
    words += [f"--log-allowlist-dir={tmp_path / each if each else ''}" for each in allowed]
    parsed = options.parse([*_RUN, *words])
    targets = options.log_targets(parsed.log_path)
    log_path = str(tmp_path / "logs" / "ctr.log")
    sink = parse_sink(process_config(parsed, targets, log_path=log_path, uid=0, gid=0).stdout)
    assert (sink.keep, sink.max_bytes) == (keep, max_bytes)
