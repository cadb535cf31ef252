"""process.json and a checkpoint's config.json are read, and what is wrong in them is named."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.linux.errors import BundleError, RecordError
from supervisor.oci import json_document, process_json
from supervisor.oci.bundle import read_bundle

if TYPE_CHECKING:
    from pyfakefs.fake_filesystem import FakeFilesystem

MOST_UID = 4294967294
PROCESS_PATH = "/state/process.json"


def _write(fs: FakeFilesystem, path: str, document: Any) -> None:
    fs.create_file(path, contents=json.dumps(document))


def test_an_empty_object_is_a_process_with_every_default(fs: FakeFilesystem) -> None:
    _write(fs, PROCESS_PATH, {})
    assert process_json.read_process(PROCESS_PATH) == process_json.ProcessConfig(
        terminal=False,
        is_exec=False,
        stdin="",
        stdout="",
        stderr="",
        runtime_args=(),
        no_pivot_root=False,
        checkpoint="",
        root_uid=0,
        root_gid=0,
    )


SHIM_FIELDS: dict[str, Any] = {
    "terminal": True,
    "exec": True,
    "containerdStdin": "in",
    "containerdStdout": "/out",
    "containerdStderr": "/err",
    "runtimeArgs": ["--a", "b"],
    "noPivotRoot": True,
    "checkpoint": "/cp",
    "rootUID": 1,
    "rootGID": MOST_UID,
}
RECORD = process_json.ProcessConfig(
    True,
    True,
    "in",
    "/out",
    "/err",
    ("--a", "b"),
    True,
    checkpoint="/cp",
    root_uid=1,
    root_gid=MOST_UID,
)


def test_each_field_is_read_and_the_runtimes_own_are_left_alone(fs: FakeFilesystem) -> None:
    _write(fs, PROCESS_PATH, {**SHIM_FIELDS, "capabilities": ["x"], "args": 7})
    assert process_json.read_process(PROCESS_PATH) == RECORD


def test_null_counts_as_absent(fs: FakeFilesystem) -> None:
    _write(fs, PROCESS_PATH, dict.fromkeys(SHIM_FIELDS))
    assert process_json.read_process(PROCESS_PATH) == process_json.ProcessConfig()


def test_what_is_written_is_read_again_beside_the_processs_own_fields(fs: FakeFilesystem) -> None:
    line = process_json.encode_process({"args": ["sh"], "terminal": False, "cwd": "/"}, RECORD)
    assert line.endswith(b"}\n")
    fs.create_file(PROCESS_PATH, contents=line)
    assert process_json.read_process(PROCESS_PATH) == RECORD
    assert json.loads(line) == {"args": ["sh"], "cwd": "/", **SHIM_FIELDS}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("terminal", "yes", "terminal: not a boolean: 'yes'"),
        ("terminal", 1, "terminal: not a boolean: 1"),
        ("exec", 0, "exec: not a boolean: 0"),
        ("containerdStdin", 7, "containerdStdin: not a string: 7"),
        ("containerdStdout", ["x"], "containerdStdout: not a string: ['x']"),
        ("containerdStderr", "a\0b", "containerdStderr: not a path, it has a NUL byte: 'a\\x00b'"),
        ("runtimeArgs", "--x", "runtimeArgs: not a list of strings: '--x'"),
        ("runtimeArgs", ["a", 1], "runtimeArgs: not a list of strings: ['a', 1]"),
        ("runtimeArgs", ["\0"], "runtimeArgs: not usable as arguments, one has a NUL byte"),
        ("noPivotRoot", {}, "noPivotRoot: not a boolean: {}"),
        ("checkpoint", "cp", "checkpoint: not an absolute path: 'cp'"),
        ("checkpoint", False, "checkpoint: not a string: False"),
        ("rootUID", -1, "rootUID: not an id from 0 to 4294967294: -1"),
        ("rootUID", True, "rootUID: not an id from 0 to 4294967294: True"),
        ("rootUID", 1.0, "rootUID: not an id from 0 to 4294967294: 1.0"),
        ("rootGID", MOST_UID + 1, "rootGID: not an id from 0 to 4294967294: 4294967295"),
        ("rootGID", "0", "rootGID: not an id from 0 to 4294967294: '0'"),
    ],
)
def test_a_field_of_the_wrong_shape_is_named_with_its_file_and_value(
    fs: FakeFilesystem, field: str, value: object, said: str
) -> None:
    _write(fs, PROCESS_PATH, {field: value})
    with pytest.raises(RecordError) as caught:
        process_json.read_process(PROCESS_PATH)
    assert str(caught.value).startswith(f"{PROCESS_PATH}: {said}")


def test_a_long_value_is_shown_in_short(fs: FakeFilesystem) -> None:
    _write(fs, PROCESS_PATH, {"terminal": "x" * 1000})
    with pytest.raises(RecordError, match=r"not a boolean: 'x{59}\.\.\.$"):
        process_json.read_process(PROCESS_PATH)


def test_a_value_that_just_fits_is_shown_whole(fs: FakeFilesystem) -> None:
    _write(fs, PROCESS_PATH, {"terminal": "x" * 58})
    with pytest.raises(RecordError, match=r"not a boolean: 'x{58}'$"):
        process_json.read_process(PROCESS_PATH)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'"{}"', "not a JSON object"),
    ],
)
def test_a_file_that_is_no_json_object_says_so(
    fs: FakeFilesystem, content: bytes, said: str
) -> None:
    fs.create_file(PROCESS_PATH, contents=content)
    fs.create_file("/cp/config.json", contents=content)
    with pytest.raises(RecordError, match=said):
        process_json.read_process(PROCESS_PATH)
    with pytest.raises(RecordError, match=said):
        process_json.read_checkpoint("/cp")
    with pytest.raises(BundleError, match=said):
        read_bundle("/cp")


def test_a_missing_file_is_named(fs: FakeFilesystem) -> None:
    fs.create_dir("/state")
    with pytest.raises(RecordError, match=r"^open /state/process\.json: no such file or dir"):
        process_json.read_process(PROCESS_PATH)
    with pytest.raises(BundleError, match=r"^open /b/config\.json: no such file or directory$"):
        read_bundle("/b")


@pytest.mark.parametrize("excess", [0, 1])
def test_16_mib_are_read_and_a_byte_more_is_refused(fs: FakeFilesystem, excess: int) -> None:
    fs.create_file(
        PROCESS_PATH, contents=b"{}" + b" " * (json_document.MOST_JSON_BYTES - 2 + excess)
    )
    if excess:
        with pytest.raises(RecordError, match=f"larger than {16 << 20} bytes"):
            process_json.read_process(PROCESS_PATH)
    else:
        assert process_json.read_process(PROCESS_PATH) == process_json.ProcessConfig()


@pytest.mark.parametrize(
    ("document", "record"),
    [
        ({}, process_json.CheckpointRecord()),
        ({"tcp": True}, process_json.CheckpointRecord(tcp=True)),
        ({"unixSockets": True}, process_json.CheckpointRecord(unix_sockets=True)),
        ({"shell": True}, process_json.CheckpointRecord(shell=True)),
        (
            {"emptyNS": ["network", "ipc"]},
            process_json.CheckpointRecord(empty_ns=("network", "ipc")),
        ),
        ({"emptyNS": None, "exit": True, "name": "x"}, process_json.CheckpointRecord()),
    ],
)
def test_a_checkpoint_tells_how_it_was_taken(
    fs: FakeFilesystem, document: dict[str, Any], record: process_json.CheckpointRecord
) -> None:
    _write(fs, "/cp/config.json", document)
    assert process_json.read_checkpoint("/cp") == record


def test_a_checkpoints_field_of_the_wrong_shape_is_named(fs: FakeFilesystem) -> None:
    _write(fs, "/cp/config.json", {"tcp": 1})
    with pytest.raises(RecordError, match=r"^/cp/config\.json: tcp: not a boolean: 1$"):
        process_json.read_checkpoint("/cp")
