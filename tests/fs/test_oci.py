"""Reading the JSON of others: process.json, a checkpoint's config.json, a bundle's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.linux.errors import BundleError, RecordError
from supervisor.oci import documents

if TYPE_CHECKING:
    from pyfakefs.fake_filesystem import FakeFilesystem

MOST_UID = 4294967294
PROCESS_PATH = "/state/process.json"


def _write(fs: FakeFilesystem, path: str, document: Any) -> None:
    fs.create_file(path, contents=json.dumps(document))


def test_an_empty_object_is_a_process_with_every_default(fs: FakeFilesystem) -> None:
    _write(fs, PROCESS_PATH, {})
    assert documents.read_process(PROCESS_PATH) == documents.ProcessConfig(
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
RECORD = documents.ProcessConfig(
    True, True, "in", "/out", "/err", ("--a", "b"), True, "/cp", 1, MOST_UID
)


def test_each_field_is_read_and_the_runtimes_own_are_left_alone(fs: FakeFilesystem) -> None:
    _write(fs, PROCESS_PATH, {**SHIM_FIELDS, "capabilities": ["x"], "args": 7})
    assert documents.read_process(PROCESS_PATH) == RECORD


def test_null_counts_as_absent(fs: FakeFilesystem) -> None:
    _write(fs, PROCESS_PATH, dict.fromkeys(SHIM_FIELDS))
    assert documents.read_process(PROCESS_PATH) == documents.ProcessConfig()


def test_what_is_written_is_read_again_beside_the_processs_own_fields(fs: FakeFilesystem) -> None:
    line = documents.encode_process({"args": ["sh"], "terminal": False, "cwd": "/"}, RECORD)
    assert line.endswith(b"}\n")
    fs.create_file(PROCESS_PATH, contents=line)
    assert documents.read_process(PROCESS_PATH) == RECORD
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
        documents.read_process(PROCESS_PATH)
    assert str(caught.value).startswith(f"{PROCESS_PATH}: {said}")


def test_a_long_value_is_shown_in_short(fs: FakeFilesystem) -> None:
    _write(fs, PROCESS_PATH, {"terminal": "x" * 1000})
    with pytest.raises(RecordError, match=r"not a boolean: 'x{59}\.\.\.$"):
        documents.read_process(PROCESS_PATH)


def test_a_value_that_just_fits_is_shown_whole(fs: FakeFilesystem) -> None:
    _write(fs, PROCESS_PATH, {"terminal": "x" * 58})
    with pytest.raises(RecordError, match=r"not a boolean: 'x{58}'$"):
        documents.read_process(PROCESS_PATH)


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
        documents.read_process(PROCESS_PATH)
    with pytest.raises(RecordError, match=said):
        documents.read_checkpoint("/cp")
    with pytest.raises(BundleError, match=said):
        documents.read_bundle("/cp")


def test_a_missing_file_is_named(fs: FakeFilesystem) -> None:
    fs.create_dir("/state")
    with pytest.raises(RecordError, match=r"^open /state/process\.json: no such file or dir"):
        documents.read_process(PROCESS_PATH)
    with pytest.raises(BundleError, match=r"^open /b/config\.json: no such file or directory$"):
        documents.read_bundle("/b")


@pytest.mark.parametrize("excess", [0, 1])
def test_16_mib_are_read_and_a_byte_more_is_refused(fs: FakeFilesystem, excess: int) -> None:
    fs.create_file(PROCESS_PATH, contents=b"{}" + b" " * (documents.MOST_JSON_BYTES - 2 + excess))
    if excess:
        with pytest.raises(RecordError, match=f"larger than {16 << 20} bytes"):
            documents.read_process(PROCESS_PATH)
    else:
        assert documents.read_process(PROCESS_PATH) == documents.ProcessConfig()


@pytest.mark.parametrize(
    ("document", "record"),
    [
        ({}, documents.CheckpointRecord()),
        ({"tcp": True}, documents.CheckpointRecord(tcp=True)),
        ({"unixSockets": True}, documents.CheckpointRecord(unix_sockets=True)),
        ({"shell": True}, documents.CheckpointRecord(shell=True)),
        ({"emptyNS": ["network", "ipc"]}, documents.CheckpointRecord(empty_ns=("network", "ipc"))),
        ({"emptyNS": None, "exit": True, "name": "x"}, documents.CheckpointRecord()),
    ],
)
def test_a_checkpoint_tells_how_it_was_taken(
    fs: FakeFilesystem, document: dict[str, Any], record: documents.CheckpointRecord
) -> None:
    _write(fs, "/cp/config.json", document)
    assert documents.read_checkpoint("/cp") == record


def test_a_checkpoints_field_of_the_wrong_shape_is_named(fs: FakeFilesystem) -> None:
    _write(fs, "/cp/config.json", {"tcp": 1})
    with pytest.raises(RecordError, match=r"^/cp/config\.json: tcp: not a boolean: 1$"):
        documents.read_checkpoint("/cp")


@pytest.mark.parametrize(
    ("document", "terminal", "uid", "gid"),
    [
        ({}, False, 0, 0),
        ({"process": None, "linux": None}, False, 0, 0),
        ({"process": {"terminal": True}, "linux": {}}, True, 0, 0),
        ({"linux": {"uidMappings": [], "gidMappings": None}}, False, 0, 0),
        ({"linux": {"uidMappings": [{"hostID": 7, "size": 1}]}}, False, 7, 0),
        (
            {
                "linux": {
                    "uidMappings": [
                        "junk",
                        {"containerID": 1, "hostID": 7, "size": 1},
                        {"containerID": 0, "hostID": 1000, "size": 1},
                    ],
                    "gidMappings": [{"containerID": 0, "hostID": 2000, "size": 65536}],
                }
            },
            False,
            1000,
            2000,
        ),
    ],
)
def test_a_bundle_tells_its_terminal_and_who_its_root_is_on_the_host(
    fs: FakeFilesystem, document: dict[str, Any], terminal: bool, uid: int, gid: int
) -> None:
    _write(fs, "/b/config.json", document)
    assert documents.read_bundle("/b") == documents.Bundle("/b", terminal, uid, gid, "", document)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"process": []}, "process: not an object"),
        ({"process": {"terminal": "x"}}, "terminal: not a boolean: 'x'"),
        ({"linux": 7}, "linux: not an object"),
        ({"linux": {"uidMappings": {}}}, "linux.uidMappings: not a list"),
        ({"linux": {"cgroupsPath": 7}}, "linux: cgroupsPath: not a string: 7"),
        (
            {"linux": {"gidMappings": [{"containerID": 0, "hostID": "x"}]}},
            "hostID: not an id from 0 to 4294967294: 'x'",
        ),
    ],
)
def test_a_bundles_field_of_the_wrong_shape_is_named(
    fs: FakeFilesystem, document: dict[str, Any], said: str
) -> None:
    _write(fs, "/b/config.json", document)
    with pytest.raises(BundleError) as caught:
        documents.read_bundle("/b")
    assert str(caught.value) == f"/b/config.json: {said}"


def test_a_bundle_tells_its_cgroup(fs: FakeFilesystem) -> None:
    _write(fs, "/b/config.json", {"linux": {"cgroupsPath": "/own"}})
    assert documents.read_bundle("/b").cgroups_path == "/own"


def _bundle(document: dict[str, Any], cgroups_path: str = "") -> documents.Bundle:
    return documents.Bundle("/b", False, 0, 0, cgroups_path, document)


def _variant(bundle: documents.Bundle, *, terminal: bool = False, cgroups_path: str = "") -> object:
    variant = documents.variant(
        bundle, terminal=terminal, cgroups_path=cgroups_path, is_elsewhere=True
    )
    return None if variant is None else json.loads(variant)


def test_a_bundle_with_a_terminal_has_absolute_paths_and_is_otherwise_the_same() -> None:
    bind = {"source": "data", "destination": "/data"}
    document = {
        "process": {"args": ["sh"], "terminal": False},
        "root": {"path": "rootfs", "readonly": True},
        "hooks": {"x": 1},
        "mounts": [
            {**bind, "type": "bind"},
            {**bind, "options": ["ro", "rbind"]},
            {**bind, "options": ["bind"], "source": "/abs"},
            {**bind, "options": None},
            {"type": "tmpfs", "source": "tmpfs"},
            {"type": "bind"},
            "junk",
        ],
    }
    before = json.dumps(document)
    variant = _variant(_bundle(document), terminal=True)
    assert variant == {
        "process": {"args": ["sh"], "terminal": True},
        "root": {"path": "/b/rootfs", "readonly": True},
        "hooks": {"x": 1},
        "mounts": [
            {**bind, "type": "bind", "source": "/b/data"},
            {**bind, "options": ["ro", "rbind"], "source": "/b/data"},
            {**bind, "options": ["bind"], "source": "/abs"},
            {**bind, "options": None},
            {"type": "tmpfs", "source": "tmpfs"},
            {"type": "bind"},
            "junk",
        ],
    }
    assert json.dumps(document) == before


@pytest.mark.parametrize(
    "document",
    [{}, {"process": None}, {"root": None, "mounts": None}, {"root": {"path": 7}, "mounts": {}}],
)
def test_a_bundle_that_leaves_things_out_gets_a_terminal_all_the_same(
    document: dict[str, Any],
) -> None:
    variant = _variant(_bundle(document), terminal=True)
    assert variant == {**document, "process": {"terminal": True}}


@pytest.mark.parametrize("linux", [{}, {"linux": None}, {"linux": {"cgroupsPath": "", "x": 1}}])
def test_a_bundle_without_a_cgroup_gets_one(linux: dict[str, Any]) -> None:
    variant = _variant(_bundle({"root": {"path": "rootfs"}, **linux}), cgroups_path="/unit/payload")
    assert variant == {
        "root": {"path": "/b/rootfs"},
        "linux": {**(linux.get("linux") or {}), "cgroupsPath": "/unit/payload"},
    }


def test_a_bundles_own_cgroup_is_left_alone() -> None:
    bundle = _bundle({"linux": {"cgroupsPath": "own"}}, "own")
    assert _variant(bundle, cgroups_path="/unit/payload") is None


def test_a_config_that_stays_in_its_bundle_keeps_its_relative_paths() -> None:
    mounts = [{"source": "data", "destination": "/data", "type": "bind"}]
    document = {"root": {"path": "rootfs"}, "mounts": mounts}
    variant = documents.variant(_bundle(document), terminal=True, cgroups_path="")
    assert variant is not None
    assert json.loads(variant) == {**document, "process": {"terminal": True}}


def test_a_bundle_that_needs_no_change_is_used_as_it_is() -> None:
    assert _variant(_bundle({"root": {"path": "rootfs"}})) is None


ADDITION = documents.Addition("/state/notify", "/run/notify", {"NOTIFY_SOCKET": "/run/notify/sock"})


@pytest.mark.parametrize(
    ("document", "env", "mounts"),
    [
        ({}, [], []),
        ({"process": {"env": None}, "mounts": None}, [], []),
        ({"process": {"env": ["A=1", "NOTIFY_SOCKET=/theirs", "NOTIFY_SOCKETS=2"]}},
         ["A=1", "NOTIFY_SOCKETS=2"], []),
        ({"mounts": [{"destination": "/run"}]}, [], [{"destination": "/run"}]),
    ],
)  # fmt: skip
def test_an_addition_comes_last_and_takes_the_place_of_variables(
    fs: FakeFilesystem, document: dict[str, object], env: list[str], mounts: list[object]
) -> None:
    variant = documents.variant(
        _bundle(document), terminal=False, cgroups_path="", addition=ADDITION
    )
    assert variant is not None
    made = json.loads(variant)
    assert made["process"]["env"] == [*env, "NOTIFY_SOCKET=/run/notify/sock"]
    assert made["mounts"][:-1] == mounts
    assert made["mounts"][-1] == {
        "destination": "/run/notify",
        "type": "bind",
        "source": "/state/notify",
        "options": ["bind", "nosuid", "nodev", "noexec", "ro"],
    }


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"process": {"env": 5}}, "process.env: not a list: 5"),
        ({"mounts": {"a": 1}}, "mounts: not a list: {'a': 1}"),
    ],
)
def test_what_an_addition_cannot_be_added_to_is_named(
    fs: FakeFilesystem, document: dict[str, object], said: str
) -> None:
    with pytest.raises(BundleError) as caught:
        documents.variant(_bundle(document), terminal=False, cgroups_path="", addition=ADDITION)
    assert str(caught.value).endswith(f"config.json: {said}")
