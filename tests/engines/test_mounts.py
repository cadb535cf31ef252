"""Mounts of the real kernel, each test in a mount namespace of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.frontends.containerd import mounts
from supervisor.frontends.containerd.mounts import MountError, MountJob, mount_all, unmount_all
from supervisor.linux.exit_status import Exited
from supervisor.linux.reaper import Reaper
from tests.harness import waiting
from tests.harness.forked import forked
from tests.harness.mounts import make_private

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.engine, pytest.mark.process]


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    path = tmp_path / "bundle with space" / "rootfs"
    path.mkdir(parents=True)
    return path


def in_private(work: Callable[[], None]) -> None:
    """Do the work in a child with a mount namespace of its own; its assertions are the test's."""

    def run() -> None:
        make_private()
        work()

    with forked(run) as child:
        assert child.wait() == Exited(0), "see the traceback above"


def mount(kind: str, source: Path | str, *options: str, target: str = "") -> dict[str, Any]:
    return {"type": kind, "source": str(source), "target": target, "options": [*options]}


def tree(directory: Path, **files: str) -> Path:
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name).write_text(text)
    return directory


def is_mounted(place: Path) -> bool:
    return place.resolve().as_posix() in {
        mounts._unescaped(line.split(b" ")[4])
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines()
    }


def test_layers_become_one_tree_and_are_themselves_again(tmp_path: Path, rootfs: Path) -> None:
    lower = tree(tmp_path / "lower", a="of lower", b="of lower")
    upper, work = tree(tmp_path / "upper", b="of upper"), tree(tmp_path / "work")

    def check() -> None:
        options = (f"workdir={work}", f"upperdir={upper}", f"lowerdir={lower}", "index=off")
        mount_all([mount("overlay", "overlay", *options)], str(rootfs))
        assert (rootfs / "a").read_text() == "of lower"
        assert (rootfs / "b").read_text() == "of upper"
        (rootfs / "c").write_text("written")
        unmount_all(str(rootfs))
        assert not is_mounted(rootfs)
        assert (upper / "c").read_text() == "written"

    in_private(check)


def test_layers_whose_names_fill_more_than_a_page_are_mounted(tmp_path: Path, rootfs: Path) -> None:
    snapshots = tmp_path / ("snapshots-" + "x" * 100)
    layers = [tree(snapshots / str(n) / "fs", **{f"f{n}": str(n)}) for n in range(60)]
    option = "lowerdir=" + ":".join(str(layer) for layer in layers)
    assert len(option) > mounts._PAGE_BYTES

    def check() -> None:
        mount_all([mount("overlay", "overlay", option)], str(rootfs))
        assert sorted(os.listdir(rootfs)) == sorted(f"f{n}" for n in range(60))
        unmount_all(str(rootfs))

    in_private(check)


def test_layers_without_a_directory_in_common_may_be_too_many(tmp_path: Path, rootfs: Path) -> None:
    option = "lowerdir=/proc:" + ":".join(f"{tmp_path}/{n}" for n in range(200))

    def check() -> None:
        with pytest.raises(MountError, match=r"mount overlay at .*: argument list too long"):
            mount_all([mount("overlay", "overlay", option)], str(rootfs))
        assert not is_mounted(rootfs)

    in_private(check)


@pytest.mark.parametrize("options", [("rbind", "ro"), ("bind", "ro")])
def test_a_read_only_bind_is_read_only(
    tmp_path: Path, rootfs: Path, options: tuple[str, ...]
) -> None:
    source = tree(tmp_path / "source", a="here")

    def check() -> None:
        mount_all([mount("bind", source, *options)], str(rootfs))
        assert (rootfs / "a").read_text() == "here"
        with pytest.raises(OSError, match="Read-only"):
            (rootfs / "b").write_text("")
        (source / "c").write_text("")  # the source itself is not
        unmount_all(str(rootfs))

    in_private(check)


def test_a_writable_bind_is_writable(tmp_path: Path, rootfs: Path) -> None:
    source = tree(tmp_path / "source")

    def check() -> None:
        mount_all([mount("bind", source, "rbind", "rw")], str(rootfs))
        (rootfs / "b").write_text("written")
        assert (source / "b").read_text() == "written"
        unmount_all(str(rootfs))

    in_private(check)


def test_a_target_is_below_the_root_whatever_links_say(tmp_path: Path, rootfs: Path) -> None:
    base, inner = tmp_path / "base", tree(tmp_path / "inner", a="inner")
    (base / "real").mkdir(parents=True)
    (base / "link").symlink_to("/real")
    (base / "out").symlink_to(f"../../../../../../..{tmp_path}")

    def check() -> None:
        root = mount("bind", base, "rbind")
        mount_all([root, mount("bind", inner, "bind", target="/link")], str(rootfs))
        assert (rootfs / "real" / "a").read_text() == "inner"
        unmount_all(str(rootfs))
        assert not is_mounted(rootfs)
        with pytest.raises(MountError, match=r"mount bind at .*/out: no such file"):
            mount_all([root, mount("bind", inner, "bind", target="/out")], str(rootfs))
        assert not is_mounted(rootfs), "what came before the failure is unmounted"

    in_private(check)


def test_every_mount_at_a_place_and_below_goes_at_once(
    rootfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)

    def check() -> None:
        for _each in range(3):
            mount_all([mount("tmpfs", "tmpfs", "size=64k")], str(rootfs))
        (rootfs / "below").mkdir()
        mount_all([mount("tmpfs", "tmpfs", "size=64k")], str(rootfs / "below"))
        unmount_all(str(rootfs))
        assert not is_mounted(rootfs)
        assert not is_mounted(rootfs / "below")
        unmount_all(str(rootfs))  # a second time
        unmount_all(str(rootfs / "nowhere"))
        assert pauses == []

    in_private(check)


def test_a_mount_in_use_is_detached(rootfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)

    def check() -> None:
        mount_all([mount("tmpfs", "tmpfs", "size=64k")], str(rootfs))
        with (rootfs / "in-use").open("w"):
            unmount_all(str(rootfs))
        assert not is_mounted(rootfs)
        assert len(pauses) == mounts._BUSY_TRIES

    in_private(check)


@pytest.mark.parametrize("access", ["rw", "ro"])
def test_an_image_in_a_file_is_mounted_by_a_device_that_goes_with_it(
    tmp_path: Path, rootfs: Path, access: str
) -> None:
    image = tmp_path / "image"
    subprocess.run(["mkfs.ext4", "-q", image, "4M"], check=True, capture_output=True)
    options = ("loop", access, "data=ordered")

    def check() -> None:
        mount_all([mount("ext4", image, *options)], str(rootfs))
        assert os.listdir(rootfs) == ["lost+found"]
        if access == "ro":
            with pytest.raises(OSError, match="Read-only"):
                (rootfs / "a").write_text("")
        else:
            (rootfs / "a").write_text("written")
        assert str(image) in loop_files()
        unmount_all(str(rootfs))

    in_private(check)
    waiting.wait_true(lambda: str(image) not in loop_files())


def loop_files() -> set[str]:
    """Return the files behind the loop devices (sysfs, /sys/block)."""
    found = set()
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # detached in the meantime
            found.add(path.read_text().rstrip("\n"))
    return found


def test_a_loop_without_a_file_is_an_error(tmp_path: Path, rootfs: Path) -> None:
    with pytest.raises(MountError, match=r"mount ext4 at .*: no such file or directory"):
        mount_all([mount("ext4", tmp_path / "nothing", "loop")], str(rootfs))


def test_an_unknown_type_is_an_error_that_names_it(rootfs: Path) -> None:
    def check() -> None:
        with pytest.raises(MountError, match=r"mount nosuchfs at .*rootfs: no such device"):
            mount_all([mount("nosuchfs", "x")], str(rootfs))

    in_private(check)


# -- in a child of the shim


class Job:
    """A reaper, /dev/null, and what a `MountJob` has told."""

    def __init__(self) -> None:
        self.reaper = Reaper()
        self.null_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self.told: list[str] = []

    def begin(self, work: Callable[[], None]) -> MountJob:
        return MountJob(self.reaper, "forkshim: a [mount]", self.null_fd, work, self.told.append)

    def wait(self, job: MountJob) -> list[str]:
        waiting.wait_process(job._pid)
        self.reaper.reap()
        assert not job.is_running
        return self.told


@pytest.fixture
def job() -> Iterator[Job]:
    made = Job()
    yield made
    os.close(made.null_fd)


def test_a_child_tells_that_it_has_mounted_or_why_not(job: Job, rootfs: Path) -> None:
    unmount = partial(unmount_all, str(rootfs))
    assert job.wait(job.begin(unmount)) == [""]
    refused = partial(mount_all, [mount("nosuchfs", "x")], str(rootfs))
    assert job.wait(job.begin(refused)) == ["", f"mount nosuchfs at {rootfs}: no such device"]


def test_a_child_that_hangs_is_killed_and_holds_nothing_of_the_shims(job: Job) -> None:
    rfd, wfd = os.pipe()
    try:
        running = job.begin(signal.pause)
        waiting.wait_title(running._pid, "forkshim: a [mount]")
        held = {os.readlink(path) for path in Path(f"/proc/{running._pid}/fd").iterdir()}
        assert os.readlink(f"/proc/self/fd/{wfd}") not in held
        job.reaper.reap()
        assert running.is_running
        running.cancel()
        (told,) = job.wait(running)
        assert told.startswith("the process that mounts ended: ")
        assert "SIGKILL" in told
    finally:
        os.close(rfd)
        os.close(wfd)
