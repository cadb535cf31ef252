"""What the runtime accepts in config.json and process.json is accepted by us, byte by byte."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import bundles, waiting
from tests.harness.engine import FORKSHIM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.runtime.conftest import MakeEngine, MakeExec

pytestmark = pytest.mark.runc


def with_field(name: str, value: str) -> Callable[[bytes], bytes]:
    """Return what adds a field, whose JSON is `value`, to an object's text."""
    return lambda text: text[:-1] + f', "{name}": {value}}}'.encode()


def changed(path: str, value: Any) -> Callable[[bytes], bytes]:
    """Return what sets a field; its value None is JSON's null."""

    def change(text: bytes) -> bytes:
        document = json.loads(text)
        *parents, name = path.split(".")
        place = document
        for parent in parents:
            place = place[parent]
        place[name] = value
        return json.dumps(document).encode()

    return change


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda text: text.replace(old, new)


ACCEPTED: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda text: text,
    "white space": lambda text: b"\n\t\r " + text + b"\n\n",
    "a brace too many": lambda text: text + b"}\n",
    "another document": lambda text: text + b' {"a": 1}',
    "a NUL": lambda text: text + b"\0",
    "no UTF-8": lambda text: text[:-1] + b', "x": "\xff"}',
    "half a pair": with_field("x", '"\\ud800"'),
    "unknown fields": with_field("x", '{"a": [1, null, {}, 1.5]}'),
    "250 deep": with_field("x", "[" * 250 + "]" * 250),
    "an endless integer": with_field("x", "1" * 100),
    "a field twice": with_field("ociVersion", '"1.0.2"'),
}
OF_A_CONFIG = {
    **{f"{name} null": changed(name, None) for name in (
        "hooks", "annotations", "process.user", "process.terminal", "process.rlimits",
        "linux.uidMappings", "linux.cgroupsPath", "linux.resources", "root.readonly")},
    "annotation null": changed("annotations", {"a": None}),
    "a newer version": changed("ociVersion", "1.2.0"),
    "no UTF-8 in a name": replaced(b'"box"', b'"b\xffx"'),
    "half a pair in the environment": replaced(b'"TERM=xterm"', b'"TERM=x\\udfff"'),
}  # fmt: skip
REFUSED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _text: b"",
    "no object": lambda _text: b"[]",
    "a byte order mark": lambda text: b"\xef\xbb\xbf" + text,
    "cut off": lambda text: text[:-1],
    "a comma too many": lambda text: text[:-1] + b",}",
    "a number for a word": changed("annotations", {"a": 1}),
}


def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*argv, bundles.fresh_id("accepted")],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=waiting.LIMIT_S,
    )  # fmt: skip


def bundle_with(directory: Path, rootfs: Path, change: Callable[[bytes], bytes]) -> Path:
    document = bundles.config(rootfs, bundles.shell("exit 7"))
    bundle = bundles.make_bundle(directory / "bundle", document)
    config = bundle / "config.json"
    config.write_bytes(change(config.read_bytes()))
    return bundle


@pytest.mark.parametrize("options", [(), ("-t",)], ids=["", "terminal"])
@pytest.mark.parametrize("name", [*ACCEPTED, *OF_A_CONFIG])
def test_a_config_that_runc_accepts_is_accepted(
    tmp_path: Path, rootfs: Path, name: str, options: tuple[str, ...]
) -> None:
    bundle = bundle_with(tmp_path, rootfs, {**ACCEPTED, **OF_A_CONFIG}[name])
    assert run("runc", "run", "--bundle", bundle).returncode == 7
    done = run(FORKSHIM, "run", "--root", tmp_path / "root", "--bundle", bundle, *options)
    assert (done.returncode, done.stderr) == (7, "")


@pytest.mark.parametrize("name", REFUSED)
def test_a_config_that_runc_refuses_is_refused_with_one_line_of_ours(
    tmp_path: Path, rootfs: Path, name: str
) -> None:
    bundle = bundle_with(tmp_path, rootfs, REFUSED[name])
    assert run("runc", "run", "--bundle", bundle).returncode == 1
    done = run(FORKSHIM, "run", "--root", tmp_path / "root", "--bundle", bundle)
    assert done.returncode in (1, 6)
    assert len([line for line in done.stderr.splitlines() if line.startswith("forkshim:")]) == 1


def test_what_is_nested_beyond_what_we_read_is_one_line(tmp_path: Path, rootfs: Path) -> None:
    """Go reads 10,000 levels, we 253: a bound that no bundle comes near."""
    deep = with_field("x", "[" * 5000 + "]" * 5000)
    done = run(
        *(FORKSHIM, "run", "--root", tmp_path / "root"),
        *("--bundle", bundle_with(tmp_path, rootfs, deep)),
    )
    assert done.returncode == 6
    assert done.stderr.endswith("config.json: not JSON: nested too deeply\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", [name for name in ACCEPTED if name != "a field twice"])
def test_a_process_json_that_runc_accepts_is_accepted(
    make_engine: MakeEngine, make_exec: MakeExec, name: str
) -> None:
    container = make_engine("read line", containerdStdin="stdin")
    container.run_attached()
    process = make_exec(container, "exit 3")
    path = process.dir / "process.json"
    path.write_bytes(ACCEPTED[name](path.read_bytes().strip()))
    process.run_attached()
    assert process.wait_end() == 3
