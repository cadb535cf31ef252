"""What an engine sees, and what is left behind, when the runtime fails."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, runtime_calls, runtimes, waiting
from tests.harness.failing import SPOIL_PID, fail, fail_by_runtime

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runtime.conftest import MakeEngine, MakeExec

pytestmark = pytest.mark.runc


def test_a_runtime_that_is_not_in_path_is_an_error(make_engine: MakeEngine) -> None:
    assert fail(make_engine(runtime="no-such-runtime")) == "no-such-runtime not installed on system"


def test_a_missing_absolute_runtime_is_an_error(make_engine: MakeEngine, tmp_path: Path) -> None:
    runtime = tmp_path / "missing"
    error = fail(make_engine(runtime=runtime))
    assert error == f"fork/exec {runtime}: no such file or directory"


def test_a_runtime_that_is_not_executable_is_an_error(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    runtime = tmp_path / "plain"
    runtime.write_text("#!/bin/sh\n")
    assert fail(make_engine(runtime=runtime)) == f"fork/exec {runtime}: permission denied"


def test_a_runtime_of_a_wrong_format_is_an_error(make_engine: MakeEngine, tmp_path: Path) -> None:
    runtime = tmp_path / "wrong"
    runtime.write_bytes(b"\x7fno program")
    runtime.chmod(0o755)
    assert fail(make_engine(runtime=runtime)) == f"fork/exec {runtime}: exec format error"


def test_a_missing_bundle_is_an_error_that_names_runtime_and_bundle(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    missing = tmp_path / "no-bundle"
    error = fail(make_engine(bundle=missing))
    assert error.startswith("fork/exec ")
    assert error.endswith(f"/runc: chdir {missing}: no such file or directory")


def test_a_runtimes_own_failure_is_told_by_its_log_alone(
    make_engine: MakeEngine, rootfs: Path, tmp_path: Path
) -> None:
    document = bundles.config(rootfs, ["/no/such/program"])
    engine = make_engine(bundle=bundles.make_bundle(tmp_path / "broken", document))
    assert "/no/such/program" in fail_by_runtime(engine)
    assert engine.leftovers() == []


def test_a_bundle_without_a_config_is_the_runtimes_failure(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    engine = make_engine(bundle=tmp_path / "empty")
    assert "config.json" in fail_by_runtime(engine)
    assert engine.leftovers() == []


def test_what_a_failing_runtime_writes_reaches_the_client(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    runtime = runtimes.script(tmp_path / "talks", "echo words >&2; exit 3")
    engine = make_engine(runtime=runtime)
    _stdout, stderr = engine.attach("stdout", "stderr")
    engine.launch()
    assert waiting.read_to_end(stderr) == b"words\n"
    assert engine.wait_shim() == 0
    assert engine.log("error") == []
    assert engine.leftovers() == []


def test_a_runtime_killed_during_create_leaves_no_error_record(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    runtime = runtimes.script(tmp_path / "dies", "[ $verb = create ] && kill -9 $$")
    engine = make_engine(runtime=runtime)
    engine.attach("stdout", "stderr")
    engine.launch()
    assert engine.wait_shim() == 0
    assert engine.log("error") == []
    assert engine.leftovers() == []


def test_a_runtime_that_writes_no_pid_is_an_error(make_engine: MakeEngine, tmp_path: Path) -> None:
    runtime = runtimes.script(tmp_path / "lazy", "[ $verb = create ] && exit 0")
    assert fail(make_engine(runtime=runtime)) == "open pid: no such file or directory"


def test_a_pid_of_an_earlier_run_is_not_taken_for_the_runtimes(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    runtime = runtimes.script(tmp_path / "lazy", "[ $verb = create ] && exit 0")
    engine = make_engine(runtime=runtime)
    (engine.dir / "pid").write_text(str(os.getpid()))
    assert fail(engine) == "open pid: no such file or directory"


@pytest.mark.parametrize(
    "spoil",
    [
        'echo >> "$file"',
        ': > "$file"',
        'printf -- -1 > "$file"',
        'printf 0 > "$file"',
        'printf 12x > "$file"',
        'printf 99999999999999999999 > "$file"',
        'printf "\\377" > "$file"',
        'rm "$file"; mkfifo "$file"',
        'printf 1 > "$file"',
        'printf 9999999999 > "$file"',
    ],
    ids=[
        "newline",
        "empty",
        "negative",
        "zero",
        "letters",
        "overlong",
        "binary",
        "fifo",
        "stranger",
        "impossible",
    ],
)
def test_a_spoilt_pid_file_is_an_error_and_the_container_is_deleted(
    make_engine: MakeEngine, tmp_path: Path, spoil: str
) -> None:
    runtime = runtimes.script(tmp_path / "spoils", SPOIL_PID.replace("SPOIL", spoil))
    assert "pid: " in fail(make_engine("sleep 1000", runtime=runtime))


def test_a_runtime_gone_before_the_clean_up_is_survived(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    path = tmp_path / "vanishes"
    runtimes.script(path, f"[ $verb = create ] && rm {path} && exit 0")
    engine = make_engine(runtime=path)
    assert fail(engine) == "open pid: no such file or directory"
    (warning,) = engine.log("warn")
    assert warning == f"fork/exec {path}: no such file or directory"


def test_a_runtime_gone_after_create_does_not_keep_the_end_from_coming(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    path = tmp_path / "vanishes"
    runtimes.script(path, f'if [ $verb = create ]; then rm {path}; exec runc "$@"; fi')
    engine = make_engine("echo out; exit 7", runtime=path, host_pid=True)
    engine.run_attached()
    assert engine.read_end("stdout", "stderr") == [b"out\n", b""]
    assert engine.wait_end() == 7
    assert engine.wait_shim() == 0
    missing = f"fork/exec {path}: no such file or directory"
    assert engine.log("warn") == [missing, missing]  # kill --all, delete
    assert engine.log("error") == []


# The container of the same id that was there before.


def test_a_created_container_of_the_same_id_is_left_alone(make_engine: MakeEngine) -> None:
    other = make_engine("exit 9")
    other.attach("stdout", "stderr")
    other.launch()
    other.created()
    late = make_engine(container_id=other.id, bundle=other.bundle)
    assert "exists" in fail_by_runtime(late)
    assert late.leftovers() == ["container created"]
    other.start()
    assert other.wait_end() == 9


def test_a_running_container_of_the_same_id_is_left_alone(make_engine: MakeEngine) -> None:
    other = make_engine("read line; exit $line", containerdStdin="stdin")
    other.run_attached()
    late = make_engine(container_id=other.id)
    assert "exists" in fail_by_runtime(late)
    assert late.leftovers() == ["container running"]
    stdin = other.open("stdin", os.O_WRONLY)
    os.write(stdin, b"9\n")
    assert other.wait_end() == 9


def test_a_stopped_container_of_the_same_id_is_left_alone(make_engine: MakeEngine) -> None:
    other = make_engine()
    runtime_calls.call("create", "--bundle", other.bundle, other.id)
    before = other.runtime_state()
    assert before is not None
    os.kill(before["pid"], signal.SIGKILL)
    waiting.wait_process(before["pid"])
    late = make_engine(container_id=other.id, bundle=other.bundle)
    assert "exists" in fail_by_runtime(late)
    assert late.leftovers() == ["container stopped"]
    after = other.runtime_state()
    assert after is not None
    assert after["created"] == before["created"]


def test_an_exec_into_no_container_is_the_runtimes_failure(
    make_engine: MakeEngine, make_exec: MakeExec
) -> None:
    late = make_exec(make_engine(), "exit 0")
    assert "does not exist" in fail_by_runtime(late)
    assert late.leftovers() == []


def test_an_exec_that_fails_leaves_the_container_running(
    make_engine: MakeEngine, make_exec: MakeExec, tmp_path: Path
) -> None:
    container = make_engine("echo ready; read line; exit 9", containerdStdin="stdin")
    stdout, _stderr = container.run_attached()
    waiting.read_until(stdout, b"ready\n")
    lazy = runtimes.script(tmp_path / "lazy", "[ $verb = exec ] && exit 0")
    error = fail(make_exec(container, "exit 0", runtime=lazy))
    assert error == "open pid: no such file or directory"
    assert "/no/program" in fail_by_runtime(make_exec(container, ["/no/program"]))
    os.write(container.open("stdin", os.O_WRONLY), b"\n")
    assert container.wait_end() == 9
