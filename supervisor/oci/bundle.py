"""A bundle's config.json: the fields that forkshim uses, and a modified copy for the runtime.

Source: runtime-spec config.md, config-linux.md.
"""

from __future__ import annotations

import os

from supervisor.linux import plain_json
from supervisor.linux.errors import BundleError
from supervisor.oci.json_document import Fields, read_object
from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


@dataclass(frozen=True, slots=True)
class Bundle:
    """The fields of a bundle's config.json that a front end needs.

    Attributes:
        path: Absolute path of the bundle, as given.
        terminal: `process.terminal`.
        root_uid: The host's uid of the container's uid 0.
        root_gid: The host's gid of the container's gid 0.
        cgroups_path: `linux.cgroupsPath`; "" for none.
        document: The whole document.
    """

    path: str
    terminal: bool
    root_uid: int
    root_gid: int
    cgroups_path: str
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Addition:
    """A directory of the supervisor to mount into the container, and variables that name it.

    Attributes:
        source: Absolute path of the directory.
        destination: The mount point; read-only.
        environment: Variables; they replace those of the bundle with the same names.
    """

    source: str
    destination: str
    environment: Mapping[str, str]


def read_bundle(path: str) -> Bundle:
    """Read the bundle's config.json.

    Raises:
        BundleError: The file is missing, too large or not JSON, or a field has the wrong type.
    """
    return read_config(os.path.join(path, "config.json"))


def read_config(config_path: str) -> Bundle:
    """Read a config.json; its directory counts as the bundle.

    Raises:
        BundleError: As `read_bundle`.
    """
    document = read_object(config_path, BundleError)
    process = Fields(config_path, _object(config_path, document, "process"), BundleError)
    linux = _object(config_path, document, "linux")
    return Bundle(
        path=os.path.dirname(config_path),
        terminal=process.boolean("terminal"),
        root_uid=_host_id(config_path, linux, "uidMappings"),
        root_gid=_host_id(config_path, linux, "gidMappings"),
        cgroups_path=Fields(f"{config_path}: linux", linux, BundleError).path("cgroupsPath"),
        document=document,
    )


def read_annotations(path: str) -> dict[str, str]:
    """Read the annotations of the bundle `path`. An annotation that is null becomes "".

    Raises:
        BundleError: As `read_bundle`.
    """
    config_path = os.path.join(path, "config.json")
    annotations = _object(config_path, read_object(config_path, BundleError), "annotations")
    for name, value in annotations.items():
        if value is not None and not isinstance(value, str):
            raise BundleError(f"{config_path}: annotations: {name}: not a string")
    return {name: value or "" for name, value in annotations.items()}


def destinations(bundle: Bundle) -> set[str]:
    """Return the mount points of the bundle as absolute paths (config.md, Mounts)."""
    mounts = bundle.document.get("mounts")
    found = mounts if isinstance(mounts, list) else []
    given = (str(mount.get("destination")) for mount in found if isinstance(mount, dict))
    # `/run`, `/run/`, `//run` and, in runc, `run` name the same mount point.
    return {os.path.normpath("/" + each.lstrip("/")) for each in given}


def modified_config(
    bundle: Bundle,
    *,
    terminal: bool,
    cgroups_path: str,
    addition: Addition | None = None,
    environment: Mapping[str, str] | None = None,
    is_elsewhere: bool = False,
) -> bytes | None:
    """Return the bundle's config.json with other settings; None if no setting changes.

    Args:
        bundle: From `read_bundle`.
        terminal: `process.terminal`.
        cgroups_path: `linux.cgroupsPath`, unless the bundle has its own; "" for none.
        addition: A directory to mount after all others.
        environment: Variables of the process; they replace those with the same names.
        is_elsewhere: The file will be in another directory. Paths that config.md defines as
            relative to the bundle become absolute.

    Raises:
        BundleError: `mounts` or `process.env` is not a list.
    """
    document = dict(bundle.document)
    if terminal != bundle.terminal:
        document["process"] = {**(document.get("process") or {}), "terminal": terminal}
    if cgroups_path and not bundle.cgroups_path:
        document["linux"] = {**(document.get("linux") or {}), "cgroupsPath": cgroups_path}
    if document == bundle.document and addition is None and not environment:
        return None
    if is_elsewhere:
        _make_absolute(document, bundle.path)
    config_path = os.path.join(bundle.path, "config.json")
    fields = Fields(config_path, document, BundleError)
    if addition is not None:
        _add_mount(fields, document, addition)
    if environment or addition is not None:
        added = addition.environment if addition is not None else {}
        _add_environment(fields, document, {**added, **(environment or {})})
    return plain_json.dumps(document)


def _make_absolute(document: dict[str, Any], bundle_path: str) -> None:
    root = document.get("root")
    if isinstance(root, dict) and isinstance(root.get("path"), str):
        document["root"] = {**root, "path": os.path.join(bundle_path, root["path"])}
    mounts = document.get("mounts")
    if isinstance(mounts, list):
        document["mounts"] = [_with_absolute_source(bundle_path, mount) for mount in mounts]


def _add_environment(
    fields: Fields, document: dict[str, Any], environment: Mapping[str, str]
) -> None:
    process = dict(document.get("process") or {})
    _expect_list(fields, "process.env", process.get("env"))
    names = tuple(f"{name}=" for name in environment)
    kept = [entry for entry in process.get("env") or () if not str(entry).startswith(names)]
    process["env"] = kept + [f"{name}={value}" for name, value in environment.items()]
    document["process"] = process


def _add_mount(fields: Fields, document: dict[str, Any], addition: Addition) -> None:
    _expect_list(fields, "mounts", document.get("mounts"))
    mount = {
        "destination": addition.destination,
        "type": "bind",
        "source": addition.source,
        "options": ["bind", "nosuid", "nodev", "noexec", "ro"],
    }
    document["mounts"] = [*(document.get("mounts") or ()), mount]


def _expect_list(fields: Fields, name: str, value: object) -> None:
    if value is not None and not isinstance(value, list):
        raise fields.wrong(name, "a list", value)


def _with_absolute_source(bundle_path: str, mount: object) -> object:
    if not isinstance(mount, dict) or not isinstance(mount.get("source"), str):
        return mount
    options = mount.get("options") or ()
    if mount.get("type") != "bind" and "bind" not in options and "rbind" not in options:
        return mount  # the source of a tmpfs or of proc is a word, not a path
    return {**mount, "source": os.path.join(bundle_path, mount["source"])}


def _host_id(config_path: str, linux: dict[str, Any], name: str) -> int:
    """Return the host's id of the container's id 0 (config-linux.md, User namespace mappings)."""
    mappings = linux.get(name)
    if mappings is None:
        return 0
    if not isinstance(mappings, list):
        raise BundleError(f"{config_path}: linux.{name}: not a list")
    for mapping in mappings:
        if isinstance(mapping, dict) and mapping.get("containerID") in (0, None):
            return Fields(config_path, mapping, BundleError).uid("hostID")
    return 0


def _object(config_path: str, document: dict[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BundleError(f"{config_path}: {name}: not an object")
    return value
