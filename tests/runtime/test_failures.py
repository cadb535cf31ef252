"""What an engine sees, and what is left behind, when something goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import bundles, runtime_calls, runtimes, waiting

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.harness.engine import Engine
    from tests.runtime.conftest import MakeEngine, MakeExec

pytestmark = pytest.mark.runc


def fail(engine: Engine) -> str:
    """Launch a shim that is to fail by its own fault; returns the one error that it logs."""
    if "stdout" not in engine.attached:
        engine.attach(*(name for name in ("stdout", "stderr") if (engine.dir / name).exists()))
    engine.launch()
    assert engine.wait_shim() == 1
    (error,) = engine.log("error")
    assert not (engine.dir / "exitStatus").exists()
    assert engine.leftovers() == []
    return error


def fail_by_runtime(engine: Engine) -> str:
    """Launch a shim whose runtime is to fail; returns what the runtime's log says."""
    engine.attach("stdout", "stderr")
    engine.launch()
    assert engine.wait_shim() == 0
    assert engine.log("error") == []
    assert not (engine.dir / "exitStatus").exists()
    records = [json.loads(line) for line in (engine.dir / "log.json").read_text().splitlines()]
    return str(next(record["msg"] for record in records if record["level"] == "error"))


# The runtime.


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


SPOIL_PID = """
if [ $verb = create ] || [ $verb = exec ]; then
    runc "$@" || exit
    for word; do [ "$before" = --pid-file ] && file=$word; before=$word; done
    SPOIL
    exit 0
fi
"""


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


# The files of the state directory.


@pytest.mark.parametrize("name", ["exit", "control", "process.json"])
def test_a_missing_file_is_an_error_that_names_it(make_engine: MakeEngine, name: str) -> None:
    engine = make_engine()
    (engine.dir / name).unlink()
    assert fail(engine) == f"open {name}: no such file or directory"


@pytest.mark.parametrize("name", ["exit", "control"])
def test_a_fifo_that_is_a_link_to_nothing_is_told_from_a_missing_one(
    make_engine: MakeEngine, name: str
) -> None:
    engine = make_engine()
    (engine.dir / name).unlink()
    (engine.dir / name).symlink_to("nowhere")
    assert fail(engine) == f"open {name}: a symbolic link to nothing"


@pytest.mark.parametrize("name", ["exit", "control"])
def test_a_plain_file_in_place_of_a_fifo_is_an_error(make_engine: MakeEngine, name: str) -> None:
    engine = make_engine()
    (engine.dir / name).unlink()
    (engine.dir / name).touch()
    assert fail(engine) == f"open {name}: not a fifo"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_log_of_the_runtime_that_is_no_file_is_an_error(
    make_engine: MakeEngine, make: Callable[[Path], None]
) -> None:
    """To open a fifo for writing makes runc wait for ever."""
    engine = make_engine()
    make(engine.dir / "log.json")
    assert fail(engine) == "open log.json: not a regular file"


def test_a_pid_that_is_a_directory_is_an_error_that_names_it(make_engine: MakeEngine) -> None:
    engine = make_engine()
    (engine.dir / "pid").mkdir()
    assert fail(engine) == "remove pid: is a directory"


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_process_json_has_to_be_a_plain_file(make_engine: MakeEngine, kind: str) -> None:
    engine = make_engine()
    path = engine.dir / "process.json"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert fail(engine).startswith("open process.json: ")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"terminal": fal',
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"a": NaN}',
        b"[" * 100_000,
        b'"' + b"x" * (16 << 20) + b'"',
    ],
    ids=["empty", "truncated", "list", "null", "not-utf8", "nan", "deep", "over-16-mib"],
)
def test_a_process_json_that_is_no_object_is_an_error(
    make_engine: MakeEngine, content: bytes
) -> None:
    engine = make_engine()
    (engine.dir / "process.json").write_bytes(content)
    assert fail(engine).startswith("process.json: ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("terminal", "yes"),
        ("exec", 1),
        ("containerdStdin", 3),
        ("containerdStdout", ["stdout"]),
        ("containerdStderr", {}),
        ("containerdStdout", "std\0out"),
        ("runtimeArgs", "--debug"),
        ("runtimeArgs", [1]),
        ("runtimeArgs", ["a\0b"]),
        ("noPivotRoot", "no"),
        ("checkpoint", False),
        ("checkpoint", "relative/path"),
        ("rootUID", -1),
        ("rootUID", "0"),
        ("rootUID", True),
        ("rootGID", 1.5),
        ("rootGID", 2**32 - 1),
    ],
)
def test_a_field_of_a_wrong_shape_is_an_error_that_names_it(
    make_engine: MakeEngine, field: str, value: Any
) -> None:
    engine = make_engine()
    engine.rewrite_process(**{field: value})
    assert fail(engine).startswith(f"process.json: {field}: not ")


def test_fields_of_other_versions_are_not_judged(make_engine: MakeEngine) -> None:
    engine = make_engine(capabilities=["CAP_KILL"], user="odd", newField=[{}], rootUID=None)
    engine.run_attached()
    assert engine.wait_end() == 7


@pytest.mark.parametrize("stream", ["Stdin", "Stdout", "Stderr"])
def test_a_missing_stdio_path_is_an_error_that_names_it(
    make_engine: MakeEngine, stream: str
) -> None:
    field: dict[str, Any] = {f"containerd{stream}": "no/such"}
    engine = make_engine(**field)
    assert fail(engine) == "stat no/such: no such file or directory"


def test_a_stdio_path_that_is_a_directory_is_an_error(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    error = fail(make_engine(containerdStdout=str(tmp_path)))
    assert error == f"open {tmp_path}: is a directory"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, "open {}: no such file or directory"),
        (b"{", "{}: not JSON"),
        (b'{"tcp": 1}', "{}: tcp: not a boolean"),
        (b'{"emptyNS": "network"}', "{}: emptyNS: not a list of strings"),
    ],
    ids=["missing", "truncated", "bool", "list"],
)
def test_a_checkpoints_config_is_judged(
    make_engine: MakeEngine, tmp_path: Path, content: bytes | None, error: str
) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    assert fail(make_engine(checkpoint=str(tmp_path))).startswith(error.format(path))


@pytest.mark.parametrize("container_id", ["-x", "a/b", "..", "", "a b", "\N{SNOWMAN}", "x" * 256])
def test_a_container_id_that_is_no_name_is_an_error(
    make_engine: MakeEngine, container_id: str
) -> None:
    engine = make_engine()
    engine.launch(argv=[container_id, str(engine.bundle), "runc"])
    assert engine.wait_shim() == 1
    (error,) = engine.log("error")
    assert error.startswith("container id ")
    assert engine.leftovers() == []


def test_an_error_with_quotes_and_control_characters_is_still_json(make_engine: MakeEngine) -> None:
    engine = make_engine(containerdStdout='no/"such"\n\t\x01')
    assert 'no/"such"\\n\\t\\x01' in fail(engine)


def test_a_shim_log_that_exists_is_appended_to(make_engine: MakeEngine) -> None:
    engine = make_engine(runtime="no-such-runtime")
    (engine.dir / "shim-log.json").write_text('{"level": "info", "msg": "before"}\n')
    fail(engine)
    assert engine.log()[0] == "before"


def test_without_a_shim_log_nothing_is_begun(make_engine: MakeEngine, tmp_path: Path) -> None:
    recorder = runtimes.recorder(tmp_path, tmp_path)
    engine = make_engine(runtime=recorder.path)
    (engine.dir / "shim-log.json").mkdir()
    engine.attach("stdout", "stderr")
    engine.launch()
    assert engine.wait_shim() == 1
    assert not waiting.has_hung_up(engine.exit_fd)
    assert recorder.calls() == []


@pytest.mark.parametrize("argv", [[], ["id"], ["id", "bundle"], ["id", "bundle", "runc", "more"]])
def test_anything_but_three_arguments_ends_with_1(make_engine: MakeEngine, argv: list[str]) -> None:
    engine = make_engine()
    engine.launch(argv=argv)
    assert engine.wait_shim() == 1
    assert not waiting.has_hung_up(engine.exit_fd)


# Readers that do not come.


@pytest.mark.slow
def test_outputs_without_a_reader_fail_before_any_runtime_ran(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    recorder = runtimes.recorder(tmp_path, tmp_path)
    waits_for_stdout = make_engine(runtime=recorder.path)
    waits_for_stderr = make_engine(runtime=recorder.path)
    waits_for_stderr.attach("stdout")
    waits_for_stdout.launch()
    waits_for_stderr.launch()
    for engine, path in ((waits_for_stdout, "stdout"), (waits_for_stderr, "stderr")):
        waiting.wait_hangup(engine.exit_fd)
        assert engine.wait_shim() == 1
        (error,) = engine.log("error")
        assert error.startswith(
            f"containerd-shim: opening {path} failed: context deadline exceeded"
        )
        assert engine.leftovers() == []
    assert recorder.calls() == []


def test_a_reader_may_come_late(make_engine: MakeEngine) -> None:
    engine = make_engine("echo out; echo err >&2; exit 7")
    engine.launch()
    for stream in ("stdout", "stderr"):
        engine.open_when_waited_for(stream)
    engine.created()
    engine.start()
    assert engine.read_end("stdout", "stderr") == [b"out\n", b"err\n"]
    assert engine.wait_end() == 7
    assert engine.leftovers() == []


def test_a_killed_helper_that_waits_for_a_reader_is_replaced(make_engine: MakeEngine) -> None:
    engine = make_engine()
    pid = engine.launch()
    first = waiting.wait_child(pid)
    os.kill(first, signal.SIGKILL)
    waiting.wait_child(pid, other_than=first)
    engine.attach("stdout", "stderr")
    engine.created()
    engine.start()
    assert engine.wait_end() == 7


# Stopped before there is a container.


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_waiting_for_a_reader_ends_at_once(
    make_engine: MakeEngine, signum: signal.Signals
) -> None:
    engine = make_engine()
    pid = engine.launch()
    waiting.wait_child(pid)
    os.kill(pid, signum)
    waiting.wait_hangup(engine.exit_fd)
    assert engine.wait_shim() == 1
    assert engine.log("error") == [f"stopped by {signum.name} before its creation"]
    assert engine.leftovers() == []


def test_a_stop_during_create_kills_the_runtime_and_leaves_nothing(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    runtime, fifo = runtimes.gate(tmp_path, "create")
    engine = make_engine(runtime=runtime)
    engine.attach("stdout", "stderr")
    pid = engine.launch()
    with fifo.open("wb"):
        os.kill(pid, signal.SIGTERM)
        waiting.wait_hangup(engine.exit_fd)
    assert engine.wait_shim() == 1
    assert engine.log("error") == ["stopped while the runtime's create ran"]
    assert engine.leftovers() == []


def test_a_runtime_that_finishes_after_a_stop_has_its_container_stopped_and_deleted(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    # It has made the container when the stop comes: a stopped create has 5 s, and no more.
    runtime, fifo = runtimes.lingering(tmp_path)
    engine = make_engine("sleep 1000", runtime=runtime)
    engine.attach("stdout", "stderr")
    pid = engine.launch()
    with fifo.open("wb"):
        os.kill(pid, signal.SIGTERM)
        wait_log(engine, "SIGTERM: stopping")
    assert engine.wait_end() == 2  # what runc's own init, a Go program, ends with
    assert engine.wait_shim() == 0
    assert engine.leftovers() == []


def test_a_second_stop_during_create_changes_nothing(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    runtime, fifo = runtimes.gate(tmp_path, "state")  # which the clean-up asks for
    create, create_fifo = runtimes.gate(tmp_path, "create")
    runtimes.script(runtime, _tests_of(create) + _tests_of(runtime))
    engine = make_engine(runtime=runtime)
    engine.attach("stdout", "stderr")
    pid = engine.launch()
    with create_fifo.open("wb"):
        os.kill(pid, signal.SIGTERM)
        with fifo.open("wb"):
            os.kill(pid, signal.SIGTERM)
            wait_log(engine, "a stop is under way already")
    assert engine.wait_shim() == 1
    assert engine.log("error") == ["stopped while the runtime's create ran"]
    assert engine.leftovers() == []


def _tests_of(runtime: Path) -> str:
    lines = runtime.read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith("if ")) + "\n"


def wait_log(engine: Engine, message: str) -> None:
    """Wait for a message in shim-log.json."""
    waiting.wait_path(engine.dir / "shim-log.json", lambda _path: message in engine.log())


def test_a_killed_shim_takes_its_runtime_with_it(make_engine: MakeEngine, tmp_path: Path) -> None:
    runtime, fifo = runtimes.gate(tmp_path, "create")
    engine = make_engine(runtime=runtime)
    engine.attach("stdout", "stderr")
    pid = engine.launch()
    with fifo.open("wb"):
        children = waiting.children_of(pid)
        assert [c for c in children if str(runtime) in waiting.title_of(c)]
        os.kill(pid, signal.SIGKILL)
        for child in children:  # the runtime
            waiting.wait_process(child)
        waiting.wait_hangup(engine.exit_fd)
    assert engine.runtime_state() is None


# The console.


def fail_by_console(make_engine: MakeEngine, path: Path, before: str = "") -> str:
    """Run a runtime whose create ends well with an impostor; returns the shim's one error.

    `before` is what the script does before that.
    """
    text = f"""
if [ $verb = create ]; then
    {before}
    sleep 1000 < /dev/null > /dev/null 2>&1 &
    for word; do [ "$before" = --pid-file ] && printf $! > "$word"; before=$word; done
    exit 0
fi
"""
    engine = make_engine(terminal=True, runtime=runtimes.script(path, text))
    engine.attach("stdout")
    engine.launch()
    waiting.wait_hangup(engine.exit_fd)
    assert engine.wait_shim() == 1
    (error,) = engine.log("error")
    impostor = int((engine.dir / "pid").read_text())  # which is not runc's to delete
    os.kill(impostor, signal.SIGKILL)
    waiting.wait_process(impostor)
    assert engine.leftovers() == []
    return error


@pytest.mark.slow
def test_a_runtime_that_sends_no_console_is_waited_for_boundedly(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    error = fail_by_console(make_engine, tmp_path / "mute")
    assert error.startswith("console: the runtime sent none within ")


@pytest.mark.parametrize(
    ("send", "error"),
    [
        ("pass", "console: the runtime hung up without sending a console"),
        ("s.send(b'x')", "console: the runtime sent 0 descriptors, wanted one terminal"),
        (
            "socket.send_fds(s, [b'x'], [0])",
            "console: the runtime sent 1 descriptors, wanted one terminal",
        ),
    ],
    ids=["hang-up", "no-descriptor", "no-terminal"],
)
def test_a_runtime_that_sends_anything_but_a_console_is_an_error(
    make_engine: MakeEngine, tmp_path: Path, send: str, error: str
) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "s.connect(sys.argv[sys.argv.index('--console-socket') + 1])\n"
        f"{send}\n"
    )
    said = fail_by_console(make_engine, tmp_path / "wrong", f'python3 {wrong} "$@"')
    assert said in (error, "console: the runtime hung up without sending one")


def test_a_console_container_whose_creation_fails_is_deleted(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    text = SPOIL_PID.replace("SPOIL", 'echo >> "$file"')
    runtime = runtimes.script(tmp_path / "spoils", text)
    assert "pid: " in fail(make_engine("sleep 1000", terminal=True, runtime=runtime))


def test_a_temporary_directory_that_cannot_be_written_fails_only_terminals(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path / "missing")}
    engine = make_engine(terminal=True)
    engine.attach("stdout")
    engine.launch(env=environment)
    assert engine.wait_shim() == 1
    (error,) = engine.log("error")
    assert error == "console socket: No such file or directory"
    assert engine.leftovers() == []
    plain = make_engine()
    plain.attach("stdout", "stderr")
    plain.launch(env=environment)
    plain.created()
    plain.start()
    assert plain.wait_end() == 7


def test_a_state_directory_removed_under_the_shim_still_ends_it(make_engine: MakeEngine) -> None:
    engine = make_engine("read line; exit 7", containerdStdin="stdin")
    engine.run_attached()
    stdin = engine.open("stdin", os.O_WRONLY)
    shutil.rmtree(engine.dir)
    os.write(stdin, b"\n")
    waiting.wait_hangup(engine.exit_fd)
    assert engine.wait_shim() == 0
