"""The JSON that others write for us: process.json, a checkpoint's config.json, a bundle's.

Only the fields the shim uses are judged. The rest of the OCI process object is left alone: the
wild has two shapes of `capabilities`, and the runtime reads the very same file after us.

Source: runtime-spec config.md; containerd 0.2 `specs` for the fields it adds to process.json.
"""

from __future__ import annotations

import os
import stat

import orjson

from supervisor.linux import fds
from supervisor.linux.errors import BundleError, RecordError, ShimError, reason_of_access
from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NoReturn

_DEEPEST = 200
"""Less than orjson writes (254), which is less than it reads (1024)."""

MOST_JSON_BYTES = 16 << 20
"""No sane process.json comes near: execve(2) itself takes 6 MiB of arguments at the most."""

_MOST_UID = 2**32 - 2  # (uid_t)-1 means "leave as it is" to chown(2)


@dataclass(frozen=True, slots=True)
class ProcessConfig:
    """What process.json asks of the shim.

    Attributes:
        terminal: The process wants a pseudoterminal.
        is_exec: Another process in a running container, not the container's init.
        stdin: Path of the client's side; "" and /dev/null mean none. Relative to the state dir.
        stdout: A sink, see `supervisor.sinks.spec`.
        stderr: A sink; unused with a terminal.
        runtime_args: Global options, before the runtime's verb.
        no_pivot_root: Pass --no-pivot.
        checkpoint: Absolute path of the checkpoint to restore from; "" for none.
        root_uid: The host's uid of the container's root.
        root_gid: The host's gid of the container's root.
    """

    terminal: bool = False
    is_exec: bool = False
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    runtime_args: tuple[str, ...] = ()
    no_pivot_root: bool = False
    checkpoint: str = ""
    root_uid: int = 0
    root_gid: int = 0


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """What a checkpoint's config.json says of how it was taken."""

    tcp: bool = False
    unix_sockets: bool = False
    shell: bool = False
    empty_ns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bundle:
    """The parts of a bundle's config.json that a front end needs."""

    path: str
    terminal: bool
    root_uid: int
    root_gid: int
    cgroups_path: str
    document: Mapping[str, Any]


def read_process(path: str) -> ProcessConfig:
    """Read process.json.

    Raises:
        RecordError: Missing, too large, not JSON, or a field of the wrong shape; names both.
    """
    fields = _Fields(path, _read_object(path, RecordError), RecordError)
    checkpoint = fields.path("checkpoint")
    if checkpoint and not checkpoint.startswith("/"):
        # config.json would be looked for below the state directory, the images below the bundle.
        raise fields.wrong("checkpoint", "an absolute path", checkpoint)
    return ProcessConfig(
        terminal=fields.boolean("terminal"),
        is_exec=fields.boolean("exec"),
        stdin=fields.path("containerdStdin"),
        stdout=fields.path("containerdStdout"),
        stderr=fields.path("containerdStderr"),
        runtime_args=fields.strings("runtimeArgs"),
        no_pivot_root=fields.boolean("noPivotRoot"),
        checkpoint=checkpoint,
        root_uid=fields.uid("rootUID"),
        root_gid=fields.uid("rootGID"),
    )


def encode_process(process: Mapping[str, Any], record: ProcessConfig) -> bytes:
    """Return process.json: the OCI `process` object with the shim's fields beside its own."""
    shim_fields = {
        "terminal": record.terminal,
        "exec": record.is_exec,
        "containerdStdin": record.stdin,
        "containerdStdout": record.stdout,
        "containerdStderr": record.stderr,
        "runtimeArgs": list(record.runtime_args),
        "noPivotRoot": record.no_pivot_root,
        "checkpoint": record.checkpoint,
        "rootUID": record.root_uid,
        "rootGID": record.root_gid,
    }
    return orjson.dumps({**process, **shim_fields}) + b"\n"


def read_checkpoint(directory: str) -> CheckpointRecord:
    """Read the config.json of the checkpoint in `directory`.

    Raises:
        RecordError: As `read_process`.
    """
    path = os.path.join(directory, "config.json")
    fields = _Fields(path, _read_object(path, RecordError), RecordError)
    return CheckpointRecord(
        tcp=fields.boolean("tcp"),
        unix_sockets=fields.boolean("unixSockets"),
        shell=fields.boolean("shell"),
        empty_ns=fields.strings("emptyNS"),
    )


def read_bundle(path: str) -> Bundle:
    """Read the bundle's config.json.

    Raises:
        BundleError: Missing, too large, not JSON, or a field of the wrong shape; names both.
    """
    return read_config(os.path.join(path, "config.json"))


def read_config(config_path: str) -> Bundle:
    """Read a config.json, as that of the directory that it is in.

    Raises:
        BundleError: As `read_bundle`.
    """
    document = _read_object(config_path, BundleError)
    process = _Fields(config_path, _object(config_path, document, "process"), BundleError)
    linux = _object(config_path, document, "linux")
    return Bundle(
        path=os.path.dirname(config_path),
        terminal=process.boolean("terminal"),
        root_uid=_host_id(config_path, linux, "uidMappings"),
        root_gid=_host_id(config_path, linux, "gidMappings"),
        cgroups_path=_Fields(f"{config_path}: linux", linux, BundleError).path("cgroupsPath"),
        document=document,
    )


def read_annotations(path: str) -> dict[str, str]:
    """Read the annotations of the bundle `path`.

    Raises:
        BundleError: As `read_bundle`.
    """
    config_path = os.path.join(path, "config.json")
    annotations = _object(config_path, _read_object(config_path, BundleError), "annotations")
    for name, value in annotations.items():
        if value is not None and not isinstance(value, str):
            raise BundleError(f"{config_path}: annotations: {name}: not a string")
    return {name: value or "" for name, value in annotations.items()}


@dataclass(frozen=True, slots=True)
class Addition:
    """A directory of ours for the container, and what its process is told of it.

    Attributes:
        source: The directory; absolute.
        destination: Where it is mounted, read-only.
        environment: Variables, in place of the bundle's of the same names.
    """

    source: str
    destination: str
    environment: Mapping[str, str]


def destinations(bundle: Bundle) -> set[str]:
    """Return where the bundle mounts something (config.md, Mounts)."""
    mounts = bundle.document.get("mounts")
    found = mounts if isinstance(mounts, list) else []
    given = (str(mount.get("destination")) for mount in found if isinstance(mount, dict))
    # `/run`, `/run/`, `//run` and, as runc reads it, `run` are the same.
    return {os.path.normpath("/" + each.lstrip("/")) for each in given}


def variant(
    bundle: Bundle,
    *,
    terminal: bool,
    cgroups_path: str,
    addition: Addition | None = None,
    environment: Mapping[str, str] | None = None,
    is_elsewhere: bool = False,
) -> bytes | None:
    """Return the bundle's config.json with other settings.

    Args:
        bundle: As read.
        environment: Variables of its process, in place of the bundle's of the same names.
        is_elsewhere: It will be in another directory, so paths that config.md reads relative to
            the bundle are made absolute.
        terminal: `process.terminal`.
        cgroups_path: `linux.cgroupsPath`, unless the bundle has its own; "" for none.
        addition: Is mounted after all others.

    Returns:
        None if the bundle says so already.
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
    fields = _Fields(config_path, document, BundleError)
    if addition is not None:
        _add_mount(fields, document, addition)
    if environment or addition is not None:
        added = addition.environment if addition is not None else {}
        _add_environment(fields, document, {**added, **(environment or {})})
    return orjson.dumps(document)


def _make_absolute(document: dict[str, Any], bundle_path: str) -> None:
    root = document.get("root")
    if isinstance(root, dict) and isinstance(root.get("path"), str):
        document["root"] = {**root, "path": os.path.join(bundle_path, root["path"])}
    mounts = document.get("mounts")
    if isinstance(mounts, list):
        document["mounts"] = [_with_absolute_source(bundle_path, mount) for mount in mounts]


def _add_environment(
    fields: _Fields, document: dict[str, Any], environment: Mapping[str, str]
) -> None:
    process = dict(document.get("process") or {})
    _expect_list(fields, "process.env", process.get("env"))
    names = tuple(f"{name}=" for name in environment)
    kept = [entry for entry in process.get("env") or () if not str(entry).startswith(names)]
    process["env"] = kept + [f"{name}={value}" for name, value in environment.items()]
    document["process"] = process


def _add_mount(fields: _Fields, document: dict[str, Any], addition: Addition) -> None:
    _expect_list(fields, "mounts", document.get("mounts"))
    mount = {
        "destination": addition.destination,
        "type": "bind",
        "source": addition.source,
        "options": ["bind", "nosuid", "nodev", "noexec", "ro"],
    }
    document["mounts"] = [*(document.get("mounts") or ()), mount]


def _expect_list(fields: _Fields, name: str, value: object) -> None:
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
    """Return what 0 in the container is on the host (config-linux.md, user namespace mappings)."""
    mappings = linux.get(name)
    if mappings is None:
        return 0
    if not isinstance(mappings, list):
        raise BundleError(f"{config_path}: linux.{name}: not a list")
    for mapping in mappings:
        if isinstance(mapping, dict) and mapping.get("containerID") in (0, None):
            return _Fields(config_path, mapping, BundleError).uid("hostID")
    return 0


def _object(config_path: str, document: dict[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BundleError(f"{config_path}: {name}: not an object")
    return value


def _read_object(path: str, error_class: type[ShimError]) -> dict[str, Any]:
    try:
        with open(path, "rb", opener=fds.open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise error_class(f"open {path}: not a regular file")
            content = file.read(MOST_JSON_BYTES + 1)
    except OSError as error:
        raise error_class(f"open {path}: {reason_of_access(error)}") from error
    if len(content) > MOST_JSON_BYTES:
        raise error_class(f"{path}: larger than {MOST_JSON_BYTES} bytes")
    try:
        document = _loads(content)
    except RecursionError as error:
        raise error_class(f"{path}: not JSON: nested too deeply") from error
    except ValueError as error:
        raise error_class(f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise error_class(f"{path}: not a JSON object")
    if content.count(b"{") + content.count(b"[") >= _DEEPEST:
        try:
            orjson.dumps(document)  # as we have to, where something in it is changed
        except TypeError as error:
            raise error_class(f"{path}: nested too deeply") from error
    return document


def _loads(content: bytes) -> object:
    """Return what is in `content`, as the runtimes read it.

    Go and crun's yajl take more than orjson does: something behind the document, text that is no
    UTF-8, half a surrogate pair, numbers beyond a double.

    Raises:
        ValueError: It is no JSON.
        RecursionError: It is nested too deeply.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        import json  # 3 ms, for those who have such a file

        text = content.decode("utf-8", "replace").lstrip(" \t\r\n")
        decoder = json.JSONDecoder(parse_constant=_refuse_constant)
        return _without_half_pairs(decoder.raw_decode(text)[0])


def _refuse_constant(name: str) -> NoReturn:
    """Refuse NaN and Infinity: Python's decoder takes them, JSON has no such numbers."""
    raise ValueError(f"{name} is no JSON number")


def _without_half_pairs(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_without_half_pairs(item) for item in value]
    if isinstance(value, dict):
        return {
            str(_without_half_pairs(name)): _without_half_pairs(item)
            for name, item in value.items()
        }
    return value


class _Fields:
    """One object's fields, each judged when it is asked for; null counts as absent."""

    def __init__(
        self, path: str, document: Mapping[str, Any], error_class: type[ShimError]
    ) -> None:
        self._path = path
        self._document = document
        self._error_class = error_class

    def wrong(self, name: str, wanted: str, value: object) -> ShimError:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:60] + "..."
        return self._error_class(f"{self._path}: {name}: not {wanted}: {shown}")

    def boolean(self, name: str) -> bool:
        value = self._document.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self.wrong(name, "a boolean", value)
        return value

    def path(self, name: str) -> str:
        value = self._document.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.wrong(name, "a string", value)
        if "\0" in value:
            raise self.wrong(name, "a path, it has a NUL byte", value)
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        value = self._document.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, "a list of strings", value)
        if any("\0" in item for item in value):
            raise self.wrong(name, "usable as arguments, one has a NUL byte", value)
        return tuple(value)

    def uid(self, name: str) -> int:
        value = self._document.get(name)
        if value is None:
            return 0
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST_UID:
            raise self.wrong(name, f"an id from 0 to {_MOST_UID}", value)
        return value
