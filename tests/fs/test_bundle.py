"""A bundle's config.json is read, and a variant of it is made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.linux.errors import BundleError
from supervisor.oci.bundle import Addition, Bundle, modified_config, read_bundle

if TYPE_CHECKING:
    from pyfakefs.fake_filesystem import FakeFilesystem


def _write(fs: FakeFilesystem, path: str, document: Any) -> None:
    fs.create_file(path, contents=json.dumps(document))


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
    assert read_bundle("/b") == Bundle("/b", terminal, uid, gid, "", document)


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
        read_bundle("/b")
    assert str(caught.value) == f"/b/config.json: {said}"


def test_a_bundle_tells_its_cgroup(fs: FakeFilesystem) -> None:
    _write(fs, "/b/config.json", {"linux": {"cgroupsPath": "/own"}})
    assert read_bundle("/b").cgroups_path == "/own"


def _bundle(document: dict[str, Any], cgroups_path: str = "") -> Bundle:
    return Bundle("/b", False, 0, 0, cgroups_path, document)


def _variant(bundle: Bundle, *, terminal: bool = False, cgroups_path: str = "") -> object:
    variant = modified_config(
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
    variant = modified_config(_bundle(document), terminal=True, cgroups_path="")
    assert variant is not None
    assert json.loads(variant) == {**document, "process": {"terminal": True}}


def test_a_bundle_that_needs_no_change_is_used_as_it_is() -> None:
    assert _variant(_bundle({"root": {"path": "rootfs"}})) is None


ADDITION = Addition("/state/notify", "/run/notify", {"NOTIFY_SOCKET": "/run/notify/sock"})


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
    variant = modified_config(_bundle(document), terminal=False, cgroups_path="", addition=ADDITION)
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
        modified_config(_bundle(document), terminal=False, cgroups_path="", addition=ADDITION)
    assert str(caught.value).endswith(f"config.json: {said}")
