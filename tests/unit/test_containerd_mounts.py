"""Mount options, as containerd's snapshotters write them."""

from __future__ import annotations

import pytest

from supervisor.frontends.containerd import mounts
from supervisor.frontends.containerd.mounts import MountError, parse_options, with_short_layers

RDONLY, NOSUID, NODEV, BIND, REC, PRIVATE = 1, 2, 4, 1 << 12, 1 << 14, 1 << 18


@pytest.mark.parametrize(
    ("options", "flags", "data"),
    [
        ([], 0, ""),
        (["rbind", "rw"], BIND | REC, ""),
        (["rbind", "ro"], BIND | REC | RDONLY, ""),
        (["ro", "rw"], 0, ""),
        (["rw", "ro"], RDONLY, ""),
        (["nosuid", "nodev", "suid"], NODEV, ""),
        (["defaults", "rprivate"], PRIVATE | REC, ""),
        (["index=off", "ro", "lowerdir=/a:/b"], RDONLY, "index=off,lowerdir=/a:/b"),
        (["size=64k", "mode=755"], 0, "size=64k,mode=755"),
    ],
)
def test_options_are_flags_or_the_file_systems_own(
    options: list[str], flags: int, data: str
) -> None:
    assert parse_options(options) == (flags, data)


@pytest.mark.parametrize("option", ["uidmap=0:1000:1", "gidmap=0:1000:1"])
def test_an_option_that_needs_more_than_mount_2_is_an_error(option: str) -> None:
    with pytest.raises(MountError, match=option):
        parse_options(["rw", option])


@pytest.mark.parametrize(
    ("layers", "directory", "short"),
    [
        ("/s/3/fs:/s/2/fs:/s/1/fs", "/s", "3/fs:2/fs:1/fs"),
        ("/s/12/fs:/s/1/fs", "/s", "12/fs:1/fs"),
        ("/s/1/fs", "/s/1", "fs"),
        ("/s/a:/s/a/b", "/s", "a:a/b"),
        (r"/s/x\:y/fs:/s/1/fs", "/s", r"x\:y/fs:1/fs"),
        ("/a/fs:/b/fs", "", "/a/fs:/b/fs"),
        ("/s/1/fs::/s/2/fs", "", "/s/1/fs::/s/2/fs"),
    ],
)
def test_layers_with_a_directory_in_common_get_short_names(
    layers: str, directory: str, short: str
) -> None:
    options = ["workdir=/w", f"lowerdir={layers}", "upperdir=/u"]
    assert with_short_layers(options) == (
        directory,
        ["workdir=/w", f"lowerdir={short}", "upperdir=/u"],
    )


def test_options_without_layers_stay() -> None:
    assert with_short_layers(["rw"]) == ("", ["rw"])


def test_a_mount_points_name_is_read_as_the_kernel_writes_it() -> None:
    assert mounts._unescaped(rb"/a\040b\134c") == "/a b\\c"
