"""The header at the beginning of a journal stream."""

from __future__ import annotations

import pytest

from workers.journal.stream import header, unit_of


@pytest.mark.parametrize(
    ("cgroups", "unit"),
    [
        ("0::/a.slice/x.service/\v0::/\u2028b\n", "x.service"),
        ("0::/system.slice/web.service\n", "web.service"),
        ("0::/system.slice/forkshim@a.service/supervisor\n", "forkshim@a.service"),
        ("0::/user.slice/user-1.slice/user@1.service/app.slice/x.service\n", "user@1.service"),
        ("0::/machine.slice/a.scope/payload/b.service\n", "a.scope"),
        ("3:memory:/other.service\n1:name=systemd:/system.slice/b.service\n0::/\n", "b.service"),
        ("0::/\n", ""),
        ("0::/a:b/c.service\n", "c.service"),
        ("", ""),
    ],
)
def test_the_unit_is_the_first_in_the_path_of_the_control_group(cgroups: str, unit: str) -> None:
    assert unit_of(cgroups.encode()) == unit


def test_the_header_has_seven_lines() -> None:
    assert header("web", "a.service", 5) == b"web\na.service\n5\n1\n0\n0\n0\n"
