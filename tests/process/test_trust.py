"""Which directories are believed, with the files of real users."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from supervisor.linux.errors import UntrustedError
from supervisor.state import trust

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.process

SOMEBODY = 1000


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory of ours, with `a/b` in it."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    (tmp_path / "a" / "b").mkdir(parents=True)
    yield tmp_path
    os.chown(tmp_path / "a", 0, 0)


def opened(path: Path | str, **options: int) -> str:
    directory = trust.open_directory(str(path), **options)
    try:
        assert not os.get_inheritable(directory.fileno())
        os.listdir(directory.fileno())  # it can be read
        return os.readlink(f"/proc/self/fd/{directory.fileno()}")
    finally:
        directory.close()


def test_our_own_are_believed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened(place / "a/b") == f"{place}/a/b"
    assert opened(f"{place}//a/./b/../b/") == f"{place}/a/b"
    assert opened("/") == "/"
    monkeypatch.chdir(place)
    assert opened("a/b") == f"{place}/a/b"
    assert opened("") == str(place)
    assert opened("x/y/z", make=0o755) == f"{place}/x/y/z"


@pytest.mark.parametrize("name", ["a", "a/b"])
def test_what_belongs_to_another_is_refused_wherever_it_is_in_the_path(
    place: Path, name: str
) -> None:
    os.chown(place / name, SOMEBODY, SOMEBODY)
    with pytest.raises(UntrustedError, match=f"{name}: not trusted: it belongs to user {SOMEBODY}"):
        trust.open_directory(f"{place}/a/b")
    with pytest.raises(UntrustedError):
        trust.open_directory(f"{place}/a/b/c", make=0o755)
    assert not (place / "a/b/c").exists()


@pytest.mark.parametrize(
    ("mode", "group", "is_believed"),
    [
        (0o755, SOMEBODY, True), (0o700, 0, True), (0o775, 0, True), (0o1777, 0, True),
        (0o1775, SOMEBODY, True), (0o775, SOMEBODY, False), (0o757, 0, False), (0o777, 0, False),
        (0o2775, SOMEBODY, False), (0o1777, SOMEBODY, True), (0o2755, SOMEBODY, True),
    ],
)  # fmt: skip
def test_one_that_others_may_write_is_refused_unless_they_cannot_rename(
    place: Path, mode: int, group: int, *, is_believed: bool
) -> None:
    os.chown(place / "a", 0, group)
    (place / "a").chmod(mode)
    if is_believed:
        assert opened(place / "a/b") == f"{place}/a/b"
    else:
        with pytest.raises(UntrustedError, match="a: not trusted: others may write to it"):
            trust.open_directory(f"{place}/a/b")


@pytest.mark.parametrize("target", ["a/b", "/a/b", "other", "../{name}/a/b"])
def test_links_are_followed_if_they_are_ours(place: Path, target: str) -> None:
    (place / "other").symlink_to("a")
    link = place / "link"
    leads_to = target.format(name=place.name)
    link.symlink_to(f"{place}{leads_to}" if leads_to.startswith("/") else leads_to)
    below = "b" if target == "other" else ""
    assert opened(link / below) == f"{place}/a/b"
    os.chown(link, SOMEBODY, SOMEBODY, follow_symlinks=False)
    with pytest.raises(UntrustedError, match=f"the link 'link' belongs to user {SOMEBODY}"):
        trust.open_directory(str(link / below))


def test_a_link_in_a_sticky_directory_is_followed_only_if_it_is_ours(place: Path) -> None:
    (place / "a").chmod(0o1777)
    (place / "a/evil").symlink_to("/etc")
    os.chown(place / "a/evil", SOMEBODY, SOMEBODY, follow_symlinks=False)
    with pytest.raises(UntrustedError):
        trust.open_directory(f"{place}/a/evil")


def test_links_that_lead_in_a_circle_and_what_is_no_directory_are_errors(place: Path) -> None:
    (place / "one").symlink_to("two")
    (place / "two").symlink_to("one")
    (place / "file").touch()
    for name, error in (
        ("one", OSError),
        ("file", NotADirectoryError),
        ("file/x", NotADirectoryError),
        ("nothing/x", FileNotFoundError),
    ):
        with pytest.raises(error) as raised:
            trust.open_directory(f"{place}/{name}")
        assert isinstance(raised.value, OSError)
        assert raised.value.filename == f"{place}/{name}"
