"""/proc/PID/cgroup, with names that a container may choose."""

from __future__ import annotations

import pytest

from workers.common.cgroup_names import parse


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", {}),
        (b"0::/\n", {b"": b"/"}),
        (b"4:cpu,cpuacct:/a\n0::/b\n", {b"cpu": b"/a", b"cpuacct": b"/a", b"": b"/b"}),
        (b"0::/a:b\n", {b"": b"/a:b"}),
        *((b"0::/a%sb\n" % each, {b"": b"/a%sb" % each}) for each in (
            b"\v", b"\f", b"\r", b"\x1c", b"\x1d", b"\x1e", b"\x85",
            "\u2028".encode(), "\u2029".encode(), b"\xff",
        )),
    ],
)  # fmt: skip
def test_a_line_ends_at_a_line_feed_and_nowhere_else(
    content: bytes, found: dict[bytes, bytes]
) -> None:
    assert parse(content) == found
