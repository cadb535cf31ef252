"""The files of the state directory."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from supervisor.linux.errors import ShimError
from supervisor.state.directory import ExitStatusFile, StateDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyfakefs.fake_filesystem import FakeFilesystem


@pytest.fixture
def state_dir(fs: FakeFilesystem) -> FakeFilesystem:
    fs.create_dir("/state")
    return fs


@pytest.fixture
def directory(state_dir: FakeFilesystem) -> Iterator[StateDirectory]:
    assert state_dir.exists("/state")
    opened = StateDirectory.open("/state")
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("content", "pid"), [("1", 1), ("4194304", 4194304), ("007", 7), ("9999999999", 9999999999)]
)
def test_a_pid_is_a_decimal_number(
    state_dir: FakeFilesystem, directory: StateDirectory, content: str, pid: int
) -> None:
    state_dir.create_file("/state/pid", contents=content)
    assert directory.read_pid() == pid


@pytest.mark.parametrize(
    "content",
    [
        "",
        "0",
        "000",
        "-1",
        "+1",
        " 7",
        "7\n",
        "1_0",
        "7 8",
        "0x7",
        "٣",
        "12345678901",
        "7\0",
        "\xff",
    ],
)
def test_anything_else_is_no_pid(
    state_dir: FakeFilesystem, directory: StateDirectory, content: str
) -> None:
    state_dir.create_file("/state/pid", contents=content, encoding="utf-8")
    with pytest.raises(ShimError, match=r"^pid: not a process id: '"):
        directory.read_pid()


def test_a_missing_pid_is_said_as_an_open_that_failed(
    state_dir: FakeFilesystem, directory: StateDirectory
) -> None:
    assert not state_dir.exists("/state/pid")
    with pytest.raises(ShimError, match=r"^open pid: no such file or directory$"):
        directory.read_pid()


def test_a_stale_pid_is_removed_and_none_is_no_error(
    state_dir: FakeFilesystem, directory: StateDirectory
) -> None:
    state_dir.create_file("/state/pid", contents="7")
    directory.remove_stale_pid()
    assert not state_dir.exists("/state/pid")
    directory.remove_stale_pid()


@pytest.mark.parametrize("status", [0, 7, 137, 255])
def test_the_exit_status_is_decimal_without_a_newline(
    state_dir: FakeFilesystem, directory: StateDirectory, status: int
) -> None:
    reserved = ExitStatusFile(directory)
    assert not state_dir.exists("/state/exitStatus")
    reserved.write(str(status))
    reserved.close()
    assert state_dir.get_object("/state/exitStatus").contents == str(status)
    assert os.listdir("/state") == ["exitStatus"]


def test_an_exit_status_that_never_came_leaves_nothing(
    state_dir: FakeFilesystem, directory: StateDirectory
) -> None:
    ExitStatusFile(directory).close()
    assert os.listdir("/state") == []
    reserved = ExitStatusFile(directory)
    state_dir.remove_object(f"/state/.exitStatus.{os.getpid()}")
    reserved.close()


def test_a_file_is_replaced_whole_and_gets_its_mode(
    state_dir: FakeFilesystem, directory: StateDirectory
) -> None:
    state_dir.create_file("/state/name", contents="a long content that was there before")
    directory.write("name", b"new", 0o600)
    found = state_dir.get_object("/state/name")
    assert found.contents == "new"
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert os.listdir("/state") == ["name"]


def test_what_a_killed_supervisor_with_our_pid_left_is_no_obstacle(
    state_dir: FakeFilesystem,
    directory: StateDirectory,
) -> None:
    state_dir.create_file(f"/state/.name.{os.getpid()}", contents="half")
    directory.write("name", b"whole")
    assert os.listdir("/state") == ["name"]


def test_a_file_that_cannot_be_renamed_leaves_nothing_behind(
    state_dir: FakeFilesystem, directory: StateDirectory
) -> None:
    state_dir.create_dir("/state/name")
    with pytest.raises(IsADirectoryError):
        directory.write("name", b"x")
    assert os.listdir("/state") == ["name"]


def test_an_empty_file_can_be_written(state_dir: FakeFilesystem, directory: StateDirectory) -> None:
    directory.write("name", b"")
    assert state_dir.get_object("/state/name").contents == ""


def test_the_log_is_appended_to(state_dir: FakeFilesystem, directory: StateDirectory) -> None:
    state_dir.create_file("/state/shim-log.json", contents="before\n")
    log = directory.open_log()
    log.info("after")
    log.close()
    content = state_dir.get_object("/state/shim-log.json").contents
    assert content is not None
    assert content.startswith('before\n{"level":"info","msg":"after","time":"')


def test_a_log_that_cannot_be_opened_is_an_error(
    state_dir: FakeFilesystem, directory: StateDirectory
) -> None:
    state_dir.create_dir("/state/shim-log.json")
    with pytest.raises(ShimError, match=r"^open shim-log\.json: is a directory$"):
        directory.open_log()


def test_a_missing_fifo_is_an_error(state_dir: FakeFilesystem, directory: StateDirectory) -> None:
    assert not state_dir.exists("/state/exit")
    with pytest.raises(ShimError, match=r"^open exit: no such file or directory$"):
        directory.open_fifo("exit")
