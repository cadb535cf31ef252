"""What an engine sees when the state directory, process.json or the arguments are wrong."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import runtimes, waiting
from tests.harness.failing import fail

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.runtime.conftest import MakeEngine

pytestmark = pytest.mark.runc


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
