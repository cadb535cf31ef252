"""What an earlier supervisor left in ROOT/ID, and how it is cleared away."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.linux import fds
from supervisor.state.claim import Claim

if TYPE_CHECKING:
    from pyfakefs.fake_filesystem import FakeFilesystem

PATH = "/run/forkshim/web"


@pytest.fixture
def home(fs: FakeFilesystem) -> Claim:
    fs.create_dir(PATH)
    return Claim(PATH, fds.Fd(os.open(PATH, os.O_RDONLY | os.O_DIRECTORY)))


def test_the_state_of_an_earlier_supervisor_is_read(home: Claim, fs: FakeFilesystem) -> None:
    state: dict[str, Any] = {"bundle": "/b", "runtime": "runc", "runtimeArgs": ["x"]}
    fs.create_file(f"{PATH}/state.json", contents=json.dumps(state))
    assert home.left_state() == state


@pytest.mark.parametrize("content", [None, "", "{", "[]", "null", '"x"'])
def test_a_state_that_is_missing_or_torn_is_empty(
    home: Claim, fs: FakeFilesystem, content: str | None
) -> None:
    if content is not None:
        fs.create_file(f"{PATH}/state.json", contents=content)
    assert home.left_state() == {}


def test_a_home_is_stale_when_it_has_a_state_directory(home: Claim, fs: FakeFilesystem) -> None:
    assert home.state_dir == f"{PATH}/init"
    assert not home.is_stale
    fs.create_file(f"{PATH}/supervisor.pid")
    assert not home.is_stale
    fs.create_dir(f"{PATH}/init")
    assert home.is_stale


def test_a_home_with_a_dangling_link_for_its_state_directory_is_stale(
    home: Claim, fs: FakeFilesystem
) -> None:
    fs.create_symlink(f"{PATH}/init", "/nowhere")
    assert home.is_stale


def test_a_state_directory_is_made_private(home: Claim, fs: FakeFilesystem) -> None:
    home.make_state_dir({"bundle": "/b"})
    assert fs.get_object(f"{PATH}/init").st_mode & 0o777 == 0o700
    assert home.left_state() == {"bundle": "/b"}


def test_the_supervisors_pid_is_beside_the_state_directory(home: Claim, fs: FakeFilesystem) -> None:
    home.make_state_dir({})
    home.write_pid()
    assert fs.get_object(f"{PATH}/supervisor.pid").contents == f"{os.getpid()}\n"
