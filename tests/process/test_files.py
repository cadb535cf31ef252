"""The state directory and ROOT/ID where pyfakefs does not reach: fifos, locks, full disks."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from supervisor.linux import fds
from supervisor.linux.errors import AlreadySupervisedError, RecordError, ShimError
from supervisor.linux.exit_status import Exited
from supervisor.oci import process_json
from supervisor.state import claim
from supervisor.state.directory import ExitStatusFile, StateDirectory
from tests.harness import mounts, waiting
from tests.harness.forked import file_limit, forked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.process


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def directory(state_dir: Path) -> Iterator[StateDirectory]:
    opened = StateDirectory.open(str(state_dir))
    os.chdir("/")  # nothing below depends on it
    yield opened
    opened.close()


def test_the_fifos_of_a_state_directory_never_wait_and_never_end(
    state_dir: Path, directory: StateDirectory
) -> None:
    directory.make_fifos()
    for name in ("exit", "control"):
        fifo = directory.open_fifo(name)
        assert not os.get_inheritable(fifo.fileno())
        with pytest.raises(BlockingIOError):
            os.read(fifo.fileno(), 1)
        writer = os.open(state_dir / name, os.O_WRONLY)
        os.write(writer, b"x")
        os.close(writer)
        assert os.read(fifo.fileno(), 9) == b"x"
        with pytest.raises(BlockingIOError):
            os.read(fifo.fileno(), 1)
        fifo.close()


@pytest.mark.usefixtures("state_dir")
def test_a_file_in_place_of_a_fifo_is_refused_and_closed(directory: StateDirectory) -> None:
    directory.write("exit", b"")
    with pytest.raises(ShimError, match=r"^open exit: not a fifo$"):
        directory.open_fifo("exit")


@pytest.mark.usefixtures("state_dir")
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_fifo_or_a_directory_in_place_of_a_file_neither_holds_us_up_nor_leaks(
    state_dir: Path, directory: StateDirectory, make: object
) -> None:
    assert callable(make)
    for name in ("pid", "process.json"):
        make(state_dir / name)
    with pytest.raises(ShimError, match=r"^(open pid: is a directory|pid: not a process id: '')$"):
        directory.read_pid()
    with pytest.raises(RecordError, match=r"^open process\.json: (is a directory|not a regular)"):
        process_json.read_process("process.json", directory.fileno())


def test_a_link_in_place_of_the_log_is_not_followed(
    state_dir: Path, directory: StateDirectory
) -> None:
    (state_dir / "shim-log.json").symlink_to(state_dir / "elsewhere")
    with pytest.raises(ShimError, match=r"too many levels of symbolic links"):
        directory.open_log()


def test_a_disk_that_takes_only_a_part_leaves_the_old_file_whole(
    state_dir: Path, directory: StateDirectory
) -> None:
    directory.write("name", b"old")

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with file_limit(10), pytest.raises(OSError, match=r"File too large") as caught:
            directory.write("name", b"n" * 100)
        assert caught.value.errno == errno.EFBIG

    with forked(work) as child:
        assert child.wait() == Exited(0)
    assert os.listdir(state_dir) == ["name"]
    assert (state_dir / "name").read_bytes() == b"old"


def _on_a_small_disk(path: Path, work: Callable[[], None]) -> Exited:
    """Run `work` with `path`, a tmpfs of two pages, as its current directory."""

    def enter() -> None:
        mounts.make_private()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "small", path], check=True)
        os.chdir(path)
        work()

    with forked(enter) as child:
        ended = child.wait()
    assert isinstance(ended, Exited)
    return ended


def _fill() -> None:
    with open("full", "wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 4096):
            pass


@pytest.mark.runc  # it mounts: only root may
def test_an_exit_status_is_written_although_the_disk_has_become_full(tmp_path: Path) -> None:
    def reserved_in_time() -> None:
        reserved = ExitStatusFile(StateDirectory.open("."))
        _fill()
        reserved.write("37")
        with open("exitStatus") as file:
            assert file.read() == "37"
        assert sorted(os.listdir(".")) == ["exitStatus", "full"]

    assert _on_a_small_disk(tmp_path, reserved_in_time) == Exited(0)


@pytest.mark.runc
def test_an_exit_status_finds_its_room_late_or_is_an_error(tmp_path: Path) -> None:
    def full_from_the_start() -> None:
        _fill()
        reserved = ExitStatusFile(StateDirectory.open("."))
        with pytest.raises(OSError, match="No space left"):
            reserved.write("37")
        assert os.listdir(".") == ["full"]
        os.unlink("full")
        reserved.write("37")
        assert os.listdir(".") == ["exitStatus"]

    assert _on_a_small_disk(tmp_path, full_from_the_start) == Exited(0)


def test_an_id_can_be_claimed_once(tmp_path: Path) -> None:
    claimed = claim.claim(str(tmp_path / "root"), "web")
    path = tmp_path / "root" / "web"
    assert claimed.path == str(path)
    assert path.stat().st_mode & 0o777 == 0o700
    assert not os.get_inheritable(claimed.lock_fd)
    with pytest.raises(AlreadySupervisedError, match=r"already supervised$"):
        claim.claim(str(tmp_path / "root"), "web")
    (path / "supervisor.pid").write_text("1234\n")
    with pytest.raises(AlreadySupervisedError, match=r"already supervised by process 1234$"):
        claim.claim(str(tmp_path / "root"), "web")
    (path / "supervisor.pid").write_text("junk\n")
    with pytest.raises(AlreadySupervisedError, match=r"already supervised$"):
        claim.claim(str(tmp_path / "root"), "web")
    other = claim.claim(str(tmp_path / "root"), "other")
    other.release()
    claimed.release()
    again = claim.claim(str(tmp_path / "root"), "web")
    again.release()


def test_a_claim_outlives_its_maker_in_a_fork(tmp_path: Path) -> None:
    claimed = claim.claim(str(tmp_path), "web")
    with forked(signal.pause) as child:
        claimed.release()
        with pytest.raises(AlreadySupervisedError):
            claim.claim(str(tmp_path), "web")
        child.kill()
    claim.claim(str(tmp_path), "web").release()


def test_a_removed_home_leaves_nothing_and_can_be_claimed_again(
    tmp_path: Path, state_dir: Path
) -> None:
    claimed = claim.claim(str(tmp_path), "web")
    claimed.make_state_dir({})
    claimed.write_pid()
    claimed.remove()
    assert os.getcwd() == "/"
    assert not (state_dir / "web").exists()
    claim.claim(str(tmp_path), "web").release()


def test_a_home_removed_between_its_open_and_its_lock_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock
    removed: list[os.stat_result] = []

    def owner_removes_it_first(fd: int, operation: int) -> None:
        if not removed:
            removed.append(os.fstat(fd))
            (tmp_path / "web").rmdir()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", owner_removes_it_first)
    claimed = claim.claim(str(tmp_path), "web")
    assert len(removed) == 1
    assert os.path.samestat(os.fstat(claimed.lock_fd), (tmp_path / "web").stat())
    claimed.release()


def test_a_home_replaced_between_its_open_and_its_lock_is_not_taken_for_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock
    kept: list[int] = []

    def somebody_replaces_it_first(fd: int, operation: int) -> None:
        if not kept:
            kept.append(os.dup(fd))  # holds the inode's number
            (tmp_path / "web").rmdir()
            (tmp_path / "web").mkdir()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", somebody_replaces_it_first)
    claimed = claim.claim(str(tmp_path), "web")
    assert not os.path.samestat(os.fstat(claimed.lock_fd), os.fstat(kept[0]))
    claimed.release()
    os.close(kept[0])


def test_a_home_removed_between_its_mkdir_and_its_open_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_mkdir = os.mkdir
    times: list[str] = []

    def removed_at_once(path: str, mode: int = 0o777) -> None:
        real_mkdir(path, mode)
        times.append(path)
        if len(times) == 1:
            os.rmdir(path)

    monkeypatch.setattr(os, "mkdir", removed_at_once)
    claim.claim(str(tmp_path), "web").release()
    assert len(times) == 2


def test_a_home_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ShimError, match=f"^{tmp_path}/file/root: not a directory$"):
        claim.claim(str(tmp_path / "file" / "root"), "web")
    with pytest.raises(ShimError, match=f"^{tmp_path}/file: not a directory$"):
        claim.claim(str(tmp_path), "file")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ShimError, match=f"^{tmp_path}/link: (not a directory|too many levels)"):
        claim.claim(str(tmp_path), "link")


def test_the_lock_is_free_as_soon_as_its_holder_is_killed(tmp_path: Path) -> None:
    rfd, wfd = os.pipe2(os.O_CLOEXEC)

    def work() -> None:
        claim.claim(str(tmp_path), "web")
        os.write(wfd, b"claimed")
        signal.pause()

    def claim_and_say() -> None:
        claimed = claim.claim(str(tmp_path), "web")
        os.write(wfd, str(claimed.lock_fd).encode())
        signal.pause()

    for each in (work, claim_and_say):
        with forked(each) as child:
            waiting.wait_readable(rfd)
            os.read(rfd, 99)
            with pytest.raises(AlreadySupervisedError):
                claim.claim(str(tmp_path), "web")
            child.kill()
    os.close(rfd)
    os.close(wfd)
    claimed = claim.claim(str(tmp_path), "web")
    assert fds.Fd(claimed.lock_fd).is_open
    claimed.release()


def test_a_directory_that_cannot_be_synced_is_the_error_that_is_told(
    state_dir: Path, directory: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def fails_for_directories(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fails_for_directories)
    with pytest.raises(OSError, match="Input/output error"):
        directory.write("name", b"content")
    assert (state_dir / "name").read_bytes() == b"content"
    assert os.listdir(state_dir) == ["name"]


@pytest.mark.runc
def test_a_pid_file_on_a_full_disk_never_names_another_process(tmp_path: Path) -> None:
    def work() -> None:
        claimed = claim.claim(".", "web")
        _fill()
        with pytest.raises(OSError, match="No space left"):
            claimed.write_pid()
        assert os.listdir("web") == []
        os.unlink("full")
        for text in ("1\n", "4194304\n"):
            with open("web/supervisor.pid", "w") as file:
                file.write(text)
            _fill()
            claimed.write_pid()
            with open("web/supervisor.pid") as file:
                assert int(file.read()) == os.getpid()
            os.unlink("full")
        claimed.release()

    tmp_path.chmod(0o755)
    assert _on_a_small_disk(tmp_path, work) == Exited(0)
