"""Where a container's notify socket is mounted."""

from __future__ import annotations

import pytest

from supervisor.relay import place_for


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
