"""`delete` of the v2 shim with a real runc: everything goes, and the answer is the truth."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.frontends.containerd import delete
from supervisor.frontends.containerd.delete import clean_up, write_reply
from supervisor.linux.errors import ShimError
from supervisor.wire import messages
from supervisor.wire.protobuf import decode
from tests.harness import bundles, waiting

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.runc

AT = {"seconds": 5, "nanos": 6}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The runtime's root of this test."""
    return tmp_path / "root"


def _clean_up(bundle: Path, root: Path, container_id: str, **options: Any) -> dict[str, Any]:
    given = {"runtime": "runc", "environment": os.environ, **options}
    return decode(
        messages.DeleteResponse, clean_up(str(bundle), container_id, root=str(root), **given)
    )


def _runc(root: Path, *words: str, check: bool = True) -> str:
    done = subprocess.run(
        ["runc", "--root", root, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=check,
    )
    return done.stdout


def _start(bundle: Path, root: Path, container_id: str, *, runs: bool) -> int:
    """Create and maybe start a container whose shim is not there; returns its pid."""
    pid_file = str(bundle / "init.pid")
    subprocess.run(
        [
            "runc",
            "--root",
            root,
            "create",
            "--bundle",
            bundle,
            "--pid-file",
            pid_file,
            container_id,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    if runs:
        _runc(root, "start", container_id)
    return int((bundle / "init.pid").read_text())


@pytest.mark.parametrize("runs", [True, False], ids=["running", "created"])
def test_a_living_container_is_killed_and_its_mounts_go(
    make_bundle: Callable[..., Path], root: Path, runs: bool
) -> None:
    container_id = bundles.fresh_id("delete")
    bundle = make_bundle("sleep 1000")
    (bundle / "rootfs").mkdir(exist_ok=True)
    pid = _start(bundle, root, container_id, runs=runs)
    for _each in range(2):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", bundle / "rootfs"], check=True)
    pidfd = os.pidfd_open(pid)
    answer = _clean_up(bundle, root, container_id)
    waiting.wait_readable(pidfd)
    os.close(pidfd)
    assert (answer["pid"], answer["exit_status"]) == (pid, 137)
    assert answer["exited_at"]["seconds"] > 1_700_000_000
    assert not (root / container_id).exists()
    assert not os.path.ismount(bundle / "rootfs")
    again = _clean_up(bundle, root, container_id)
    assert (again["pid"], again["exit_status"]) == (pid, 255)


def test_the_exit_that_the_shim_has_written_is_told(
    make_bundle: Callable[..., Path], root: Path
) -> None:
    container_id = bundles.fresh_id("delete")
    bundle = make_bundle("exit 7")
    pid = _start(bundle, root, container_id, runs=True)
    waiting.wait_true(lambda: json.loads(_runc(root, "state", container_id))["status"] == "stopped")
    bundle_fd = os.open(bundle, os.O_RDONLY)
    told = {"pid": pid, "exit_status": 7, "exited_at": AT}
    write_reply(bundle_fd, delete.EXIT_REPLY_NAME, told)
    os.close(bundle_fd)
    assert _clean_up(bundle, root, container_id) == told
    assert not (root / container_id).exists()


def test_a_container_that_has_ended_unseen_has_an_unknown_status(
    make_bundle: Callable[..., Path], root: Path
) -> None:
    container_id = bundles.fresh_id("delete")
    bundle = make_bundle("exit 7")
    _start(bundle, root, container_id, runs=True)
    waiting.wait_true(lambda: json.loads(_runc(root, "state", container_id))["status"] == "stopped")
    assert _clean_up(bundle, root, container_id)["exit_status"] == 255


def test_after_a_clean_removal_its_answer_is_told_and_nothing_is_done(tmp_path: Path) -> None:
    bundle_fd = os.open(tmp_path, os.O_RDONLY)
    told = {"pid": 5, "exit_status": 3, "exited_at": AT}
    write_reply(bundle_fd, delete.DELETE_REPLY_NAME, told)
    os.close(bundle_fd)
    assert _clean_up(tmp_path, tmp_path / "none", "c", runtime="no-such-runtime") == told


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_an_empty_or_a_missing_bundle_is_no_error(tmp_path: Path, root: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    answer = _clean_up(tmp_path / name, root, "c")
    assert (answer["pid"], answer["exit_status"]) == (0, 255)


@pytest.mark.parametrize("content", [b"\xff", b"", b"\x18"])
def test_a_reply_that_is_none_is_not_told(tmp_path: Path, root: Path, content: bytes) -> None:
    for name in (delete.DELETE_REPLY_NAME, delete.EXIT_REPLY_NAME):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "init.pid").write_text("12x")
    answer = _clean_up(tmp_path, root, "c")
    assert (answer["pid"], answer["exit_status"]) == (0, 255)


def test_a_container_that_the_runtime_cannot_delete_keeps_its_bundle(
    tmp_path: Path, root: Path
) -> None:
    (root / "c").mkdir(parents=True)
    with pytest.raises(ShimError, match=r"true delete --force c: its state in .* is left"):
        _clean_up(tmp_path, root, "c", runtime="true")
    with pytest.raises(ShimError, match="no-such-runtime not installed on system"):
        _clean_up(tmp_path, root, "c", runtime="no-such-runtime")
