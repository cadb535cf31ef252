"""Why the runtime has failed: all of its errors reach whoever waits, by real runc."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, runtimes, waiting
from tests.harness.engine import FORKSHIM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.runc

DEVICES = Path("/sys/fs/cgroup/devices")
REASON = "devices.deny: invalid argument"


@pytest.fixture
def occupied(tmp_path: Path) -> Iterator[str]:
    """Return a cgroup with a child in which a process lives: runc cannot use or remove it."""
    name = bundles.fresh_id("occupied")
    child = DEVICES / name / "child"
    child.mkdir(parents=True)
    with ExitStack() as stack:
        stack.callback(child.parent.rmdir)
        stack.callback(child.rmdir)
        sleeper = subprocess.Popen(["sleep", "1000"])
        stack.callback(sleeper.wait)
        stack.callback(sleeper.kill)
        (child / "cgroup.procs").write_text(str(sleeper.pid))
        yield f"/{name}"


@pytest.mark.parametrize("options", [(), ("--log", "passthrough"), ("--detach", "--log", "null")])
def test_the_reason_comes_with_the_first_error_and_each_once(
    tmp_path: Path, rootfs: Path, occupied: str, options: tuple[str, ...]
) -> None:
    document = bundles.config(rootfs, bundles.shell("exit 7"), linux={"cgroupsPath": occupied})
    bundle = bundles.make_bundle(tmp_path / "bundle", document)
    done = subprocess.run(
        [FORKSHIM, "run", "--root", tmp_path / "root", "--bundle", bundle, *options,
         bundles.fresh_id("reason")],
        capture_output=True, text=True, timeout=waiting.LIMIT_S,
    )  # fmt: skip
    (said,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert said.count("Failed to remove cgroup") == 1
    assert f"{occupied}/child: device or resource busy" in said
    assert said.endswith(REASON)


@pytest.mark.parametrize("is_one_file", [False, True])
def test_a_runtime_that_fails_leaves_its_words_in_no_log(
    tmp_path: Path, rootfs: Path, *, is_one_file: bool
) -> None:
    """They are told by our line; raw, they would be whatever an image has for them."""
    bundle = bundles.make_bundle(tmp_path / "bundle", bundles.config(rootfs, ["/no\x1bsuch"]))
    log = f"file:{tmp_path}/log" if is_one_file else f"cri:{tmp_path}/log"
    done = subprocess.run(
        [FORKSHIM, "run", "--root", tmp_path / "root", "--bundle", bundle, "--log", log,
         bundles.fresh_id("reason")],
        capture_output=True, text=True, timeout=waiting.LIMIT_S,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no such file or directory" in done.stderr
    assert (tmp_path / "log").read_bytes() == b""


def test_a_runtime_that_says_much_and_succeeds_is_heard(tmp_path: Path, rootfs: Path) -> None:
    """More than a pipe holds: it would wait for ever if nobody took it before the `create` ends."""
    chatty = "if [ $verb = create ]; then head -c 3000000 /dev/zero >&2; fi"
    runtime = runtimes.script(tmp_path / "chatty", chatty)
    document = bundles.config(rootfs, bundles.shell("echo last >&2; exit 7"))
    bundle = bundles.make_bundle(tmp_path / "bundle", document)
    done = subprocess.run(
        [FORKSHIM, "run", "--root", tmp_path / "root", "--bundle", bundle, "--runtime", runtime,
         bundles.fresh_id("reason")],
        capture_output=True, timeout=waiting.LIMIT_S,
    )  # fmt: skip
    assert done.returncode == 7
    assert done.stderr == bytes(3_000_000) + b"last\n"


def test_a_delete_that_fails_is_told_with_its_reason(
    make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    text = 'if [ $verb = delete ]; then runc "$@"; echo no; echo such >&2; exit 3; fi'
    runtime = runtimes.script(tmp_path / "cannot-delete", text)
    done = subprocess.run(
        [FORKSHIM, "run", "--root", tmp_path / "root", "--runtime", runtime, "--bundle",
         make_bundle("exit 7"), bundles.fresh_id("reason")],
        capture_output=True, text=True, timeout=waiting.LIMIT_S,
    )  # fmt: skip
    assert done.returncode == 7
    assert f"{runtime} delete: exit status 3: no; such\n" in done.stderr
