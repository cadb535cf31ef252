"""Where a container's notify socket is mounted."""

from __future__ import annotations

import pytest

from supervisor.oci.bundle import Bundle, destinations
from supervisor.systemd.notify_proxy import place_for


@pytest.mark.parametrize(
    ("mounts", "place"),
    [
        ({"/proc", "/dev", "/run"}, "/run/notify"),
        ({"/proc", "/dev"}, "/dev/notify"),
        ({"/proc"}, "/run/notify"),
    ],
)
def test_its_place_is_in_a_mount_if_there_is_one(mounts: set[str], place: str) -> None:
    assert place_for(mounts) == place


@pytest.mark.parametrize("destination", ["/run", "/run/", "//run", "/run/.", "run"])
def test_the_same_place_may_be_written_in_many_ways(destination: str) -> None:
    bundle = Bundle(
        "/b",
        terminal=False,
        root_uid=0,
        root_gid=0,
        cgroups_path="",
        document={"mounts": [{"destination": destination}]},
    )
    assert destinations(bundle) == {"/run"}
