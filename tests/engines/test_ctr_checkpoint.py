"""Checkpoints of running containers through a real containerd, with a real CRIU."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.wire import messages
from supervisor.wire.protobuf import pack_any
from tests.beds.criu import ensure_criu
from tests.engines.containerd import OURS, Containerd, containerd
from tests.engines.shim_client import ShimClient, socket_of
from tests.engines.test_ctr import STAYS, detached

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.engine, pytest.mark.criu, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def daemon(rootfs: Path) -> Iterator[Containerd]:
    """A containerd whose runtimes find CRIU."""
    first = f"{Path(sys.executable).parent}:{ensure_criu().parent}"
    with (
        tempfile.TemporaryDirectory(prefix="cd-") as name,
        containerd(Path(name), rootfs, first_on_path=first) as started,
    ):
        yield started


def values(path: Path, **options: object) -> dict[str, Any]:
    """Return the values of a request for a checkpoint of `a`."""
    packed = pack_any(messages.CheckpointOptions, options)
    return {"id": "a", "path": str(path), "options": packed}


def test_a_checkpoint_is_written_and_the_container_goes_on_or_ends(
    cd: Containerd, tmp_path: Path
) -> None:
    with (
        detached(cd, OURS, "a", *STAYS),
        cd.events() as events,
        ShimClient(socket_of(cd)) as client,
    ):
        for name, is_exit, status in (("on", False, "RUNNING"), ("end", True, "STOPPED")):
            images = tmp_path / name
            client.ask("Checkpoint", values(images, exit=is_exit))
            told = events.wait_for("/tasks/checkpointed")
            assert told[-1].fields == {"container_id": "a", "checkpoint": str(images)}
            assert (images / "inventory.img").exists()
            cd.wait_status("a", status)
        assert not (cd.bundle("a") / "work" / "criu-work").exists()


def test_a_checkpoint_that_fails_leaves_the_container_and_the_log(
    cd: Containerd, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with detached(cd, OURS, "a", *STAYS), ShimClient(socket_of(cd)) as client:
        with pytest.raises(AssertionError, match=r"exit status 1: .*criu-dump\.log: unknown"):
            client.ask("Checkpoint", values(tmp_path / "file" / "below"))
        assert cd.status("a") == "RUNNING"


def test_a_container_is_restored_where_it_was(cd: Containerd, tmp_path: Path) -> None:
    script = "n=0; trap 'echo $n >/count; exit 5' TERM; while :; do n=$((n+1)); sleep 0.01; done"
    with detached(cd, OURS, "a", "sh", "-c", script):
        cd.ctr("container", "checkpoint", "--image", "--rw", "--task", "a", "checkpoint")
    with cd.events() as events:
        cd.ctr("container", "restore", "--rw", "--live", "b", "checkpoint")
        task = cd.tasks()["b"]
        assert task.status == "RUNNING"
        cd.ctr("task", "kill", "-s", "TERM", "b")
        told = events.wait_for("/tasks/exit")
    topics = [event.topic for event in told]
    assert topics == ["/tasks/create", "/tasks/start", "/tasks/exit"]
    # Its shell has the trap that it had set.
    assert [event.fields.get("exit_status") for event in told] == [None, None, 5]
    assert [event.fields.get("pid") for event in told[1:]] == [task.pid, task.pid]
    cd.wait_status("b", "STOPPED")
    assert int((cd.bundle("b") / "rootfs" / "count").read_text()) > 1
    assert cd.remove_task("b") == 5
    cd.ctr("container", "rm", "b")
