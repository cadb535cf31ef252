"""The lock of a home, on the real kernel."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from supervisor.linux.errors import AlreadySupervisedError, ShimError
from supervisor.linux.exit_status import Exited
from supervisor.state import claim as home
from tests.harness import waiting
from tests.harness.forked import forked

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process


def claim(root: Path) -> None:
    home.claim(str(root), "web").release()


def test_a_lock_that_a_dead_supervisors_worker_still_has_is_waited_for(tmp_path: Path) -> None:
    """It was being forked when the supervisor was killed, and closes it as soon as it can."""
    mine = home.claim(str(tmp_path), "web")
    with forked(lambda: None) as dead:
        pid = dead.pid
        dead.wait()
    (tmp_path / "web" / "supervisor.pid").write_text(str(pid))

    def work() -> None:
        os.close(mine.lock_fd)  # which the fork has as well
        claim(tmp_path)

    with forked(work) as child:
        waiting.wait_true(lambda: waiting.state_of(child.pid) == "S")
        mine.release()
        assert child.wait() == Exited(0)


def test_a_lock_of_the_living_is_not(tmp_path: Path) -> None:
    mine = home.claim(str(tmp_path), "web")
    (tmp_path / "web" / "supervisor.pid").write_text(str(os.getpid()))
    with pytest.raises(AlreadySupervisedError, match=f"by process {os.getpid()}"):
        claim(tmp_path)
    mine.release()
    claim(tmp_path)


def test_clearing_removes_what_is_ours_and_not_what_links_lead_to(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    mine = home.claim(str(tmp_path / "root"), "web")
    path = tmp_path / "root" / "web"
    (path / "state.json").touch()
    (path / ".state.json.17").touch()
    (path / "init/bundle/deep/deeper").mkdir(parents=True)
    (path / "init/bundle/config.json").touch()
    (path / "init/link").symlink_to(precious)
    (path / "init/dangling").symlink_to("nowhere")
    (path / "init/bundle/link").symlink_to(precious / "file")
    os.mkfifo(path / "init/control")
    mine.clear()
    assert os.listdir(path) == []
    assert os.listdir(precious) == ["file"]
    mine.remove()
    assert not path.exists()


def test_a_directory_with_anything_of_somebody_elses_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mysql").mkdir()
    (tmp_path / "mysql" / "precious").touch()
    with pytest.raises(ShimError, match="not a directory of forkshim: it contains 'precious'"):
        home.claim(str(tmp_path), "mysql")
    assert os.listdir(tmp_path / "mysql") == ["precious"]
