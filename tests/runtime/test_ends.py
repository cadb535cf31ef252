"""Three ends that a shell's one number does not tell apart: exit 137, SIGKILL, out of memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import bundles, waiting
from tests.harness.engine import FORKSHIM
from tests.harness.runtime_calls import RUNTIME

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.runc

LIMIT = {"resources": {"memory": {"limit": 32 << 20, "swap": 32 << 20}}}
# A string that doubles, in the container's first process or in a child of it.
GROWS = 's=0123456789abcdef; while :; do s="$s$s"; done'


def command(tmp_path: Path, bundle: Path, *words: str) -> list[str | Path]:
    directories: list[str | Path] = ["--root", tmp_path / "root", "--exit-dir", tmp_path / "exits"]
    return [FORKSHIM, "run", "--runtime", RUNTIME, *directories, "--bundle", bundle, *words]


def run(
    tmp_path: Path, rootfs: Path, script: str, *options: str, linux: dict[str, Any] | None = None
) -> tuple[subprocess.Popen[str], Path]:
    """Start it with an exit directory; returns it and the path of its record."""
    document = bundles.config(rootfs, bundles.shell(script), linux=linux)
    bundle = bundles.make_bundle(tmp_path / "bundle", document)
    container_id = bundles.fresh_id("end")
    process = subprocess.Popen(
        command(tmp_path, bundle, *options, container_id),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return process, tmp_path / "exits" / f"{container_id}.json"


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=waiting.LIMIT_S)
    return process.returncode, out, err


def test_an_exit_with_137_is_an_exit(tmp_path: Path, rootfs: Path) -> None:
    process, path = run(tmp_path, rootfs, "echo some; exit 137")
    assert ended(process) == (137, "some\n", "")
    record = json.loads(path.read_text())
    assert record["began"] < record["ended"]
    assert {**record, "began": "", "ended": ""} == {
        "id": path.stem,
        "pid": record["pid"],
        "status": 137,
        "exitCode": 137,
        "signal": None,
        "coreDumped": False,
        "oomKills": 0,
        "stopRequested": False,
        "error": None,
        "began": "",
        "ended": "",
        "streams": {
            "stdout": {"bytes": 5, "respawned": 0, "droppedBytes": 0, "droppedLines": 0},
            "stderr": {"bytes": 0, "respawned": 0, "droppedBytes": 0, "droppedLines": 0},
        },
    }


def test_a_sigkill_from_outside_is_a_signal(tmp_path: Path, rootfs: Path) -> None:
    process, path = run(tmp_path, rootfs, "echo ready; sleep 1000")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(int((tmp_path / "root" / path.stem / "init" / "pid").read_text()), signal.SIGKILL)
    assert ended(process)[0] == 137
    record = json.loads(path.read_text())
    assert (record["exitCode"], record["signal"], record["oomKills"]) == (None, "SIGKILL", 0)
    assert not record["stopRequested"]


def test_a_stop_that_ends_in_a_kill_was_asked_for(tmp_path: Path, rootfs: Path) -> None:
    process, path = run(
        tmp_path, rootfs, "trap '' TERM; echo ready; while :; do sleep 1; done", "--stop-timeout=0"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert ended(process)[0] == 137
    record = json.loads(path.read_text())
    assert (record["signal"], record["stopRequested"]) == ("SIGKILL", True)


@pytest.mark.parametrize(
    ("script", "exit_code", "signal_name"),
    [(GROWS, None, "SIGKILL"), (f"( {GROWS} ); exit $?", 137, None)],
    ids=["its first process", "a child of it"],
)
def test_out_of_memory_is_said(
    tmp_path: Path, rootfs: Path, script: str, exit_code: int | None, signal_name: str | None
) -> None:
    process, path = run(tmp_path, rootfs, script, linux=LIMIT)
    code, out, err = ended(process)
    assert (code, out) == (137, "")
    record = json.loads(path.read_text())
    assert (record["exitCode"], record["signal"]) == (exit_code, signal_name)
    assert record["oomKills"] >= 1
    assert "; out of memory: the kernel killed 1 of its processes\n" in err


def test_a_container_that_never_ran_has_a_record_with_the_reason(
    tmp_path: Path, rootfs: Path
) -> None:
    document = bundles.config(rootfs, ["no-such-program"])
    bundle = bundles.make_bundle(tmp_path / "bundle", document)
    process = subprocess.run(command(tmp_path, bundle, "fst-never"), capture_output=True)
    assert process.returncode == 1
    record = json.loads((tmp_path / "exits" / "fst-never.json").read_text())
    assert (record["status"], record["pid"], record["exitCode"]) == (1, None, None)
    assert "no-such-program" in record["error"]


def test_the_next_run_replaces_the_record_and_what_a_kill_left(
    tmp_path: Path, rootfs: Path
) -> None:
    exits = tmp_path / "exits"
    for status in (3, 4):
        bundle = tmp_path / str(status)
        bundles.make_bundle(bundle, bundles.config(rootfs, bundles.shell(f"exit {status}")))
        done = subprocess.run(command(tmp_path, bundle, "fst-again"), capture_output=True)
        assert (done.returncode, done.stderr) == (status, b"")
        assert json.loads((exits / "fst-again.json").read_text())["status"] == status
        for left in (".fst-again.json.1", ".fst-again.json.json.1"):
            (exits / left).touch()
    assert sorted(os.listdir(exits)) == [
        ".fst-again.json.1",  # made after the last run
        ".fst-again.json.json.1",  # another's
        "fst-again.json",
    ]


def test_the_record_of_an_earlier_run_never_passes_for_that_of_this_one(
    tmp_path: Path, rootfs: Path
) -> None:
    """The disk gets full while it runs."""
    exits = tmp_path / "exits"
    exits.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", exits], check=True)
    try:
        path = exits / "fst-full.json"
        bundles.make_bundle(tmp_path / "1", bundles.config(rootfs, bundles.shell("exit 3")))
        subprocess.run(command(tmp_path, tmp_path / "1", "fst-full"), capture_output=True)
        assert json.loads(path.read_text())["status"] == 3
        script = bundles.shell("echo ready; read line; exit 7")
        bundle = bundles.make_bundle(tmp_path / "2", bundles.config(rootfs, script))
        process = subprocess.Popen(
            command(tmp_path, bundle, "-i", "fst-full"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert not path.exists()
        with pytest.raises(OSError, match="No space left"):
            (exits / "other").write_bytes(bytes(128 << 10))
        out, err = process.communicate("\n", timeout=waiting.LIMIT_S)
        assert (process.returncode, out) == (7, "")
        assert err == f"forkshim: fst-full: write {path}: no space left on device\n"
        assert os.listdir(exits) == ["other"]
    finally:
        subprocess.run(["umount", exits], check=True)


def test_a_run_that_is_refused_takes_no_record_away(tmp_path: Path, rootfs: Path) -> None:
    script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done"
    process, path = run(tmp_path, rootfs, script)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    path.touch()
    again = subprocess.run(command(tmp_path, tmp_path / "bundle", path.stem), capture_output=True)
    assert again.returncode == 75
    assert path.exists()
    process.send_signal(signal.SIGTERM)
    ended(process)
    assert json.loads(path.read_text())["stopRequested"]


def test_a_directory_that_cannot_be_is_told_before_anything_is_started(
    tmp_path: Path, rootfs: Path
) -> None:
    (tmp_path / "exits").touch()
    process, _path = run(tmp_path, rootfs, "echo never")
    code, out, err = ended(process)
    assert (code, out) == (71, "")
    assert err.endswith(f"--exit-dir {tmp_path}/exits: not a directory\n")
    assert not (tmp_path / "root").exists()


def test_a_record_that_cannot_be_written_is_said_and_costs_no_status(
    tmp_path: Path, rootfs: Path
) -> None:
    process, path = run(tmp_path, rootfs, "echo ready; read line; exit 5", "-i")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    path.parent.rmdir()
    process.send_signal(signal.SIGTERM)
    code, _out, err = ended(process)
    assert code in (5, 137, 143)
    assert err == f"forkshim: {path.stem}: write {path}: no such file or directory\n"


def test_a_record_that_cannot_be_removed_is_told_before_anything_is_started(
    tmp_path: Path, rootfs: Path
) -> None:
    bundle = bundles.make_bundle(tmp_path / "b", bundles.config(rootfs, bundles.shell("echo no")))
    (tmp_path / "exits" / "fst-odd.json").mkdir(parents=True)
    done = subprocess.run(command(tmp_path, bundle, "fst-odd"), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (71, "")
    assert done.stderr == f"forkshim: fst-odd: {tmp_path}/exits/fst-odd.json: is a directory\n"
    assert os.listdir(tmp_path / "root") == []
