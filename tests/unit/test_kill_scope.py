"""Whether a kill by cgroup may be used, as a table."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor.oci import kill_scope
from supervisor.oci.kill_scope import KillScope
from supervisor.systemd import delegation

OWN_V1 = {"systemd": "/", "pids": "/", "devices": "/unit/own", "memory": "/unit/own", "": "/"}
OWN_V2 = {"": "/system.slice/web.service/supervisor"}
ROOTS_V1 = {"systemd": "/", "pids": "/", "devices": "/", "memory": "/"}


@pytest.mark.parametrize(
    ("linux", "is_shared"),
    [
        (None, True),
        ({}, True),
        ({"namespaces": None}, True),
        ({"namespaces": "pid"}, True),
        ({"namespaces": [{"type": "mount"}, "pid"]}, True),
        ({"namespaces": [{"type": "pid"}]}, False),
        ({"namespaces": [{"type": "pid", "path": ""}]}, False),
        ({"namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}]}, True),
    ],
)
def test_pids_are_shared_without_a_pid_namespace_or_with_one_that_has_a_path(
    linux: Any, is_shared: bool
) -> None:
    assert kill_scope.shares({} if linux is None else {"linux": linux}) is is_shared


@pytest.mark.parametrize(
    ("own", "places", "wanted", "danger"),
    [
        (OWN_V2, {"": "/system.slice/web.service/payload"}, "", ""),
        (OWN_V2, {"": "/system.slice/web.service/supervisor/below"}, "", ""),
        (OWN_V2, {"": "/system.slice/web.service/super"}, "", ""),
        (OWN_V2, {"": "/elsewhere"}, "/", ""),  # what is known counts
        (OWN_V2, {"": "/"}, "", "/"),
        (OWN_V2, {"": "/system.slice/web.service/supervisor"}, "",
         "/system.slice/web.service/supervisor"),
        (OWN_V2, {"": "/system.slice"}, "", "/system.slice"),
        (OWN_V2, {}, "", ""),
        (OWN_V2, {}, "/", "/"),
        (OWN_V2, {}, "//", "/"),
        (OWN_V2, {}, "a/..", "/"),
        (OWN_V2, {}, "system.slice/../system.slice", "/system.slice"),
        (OWN_V2, {}, "system.slice:runc:web", ""),
        # The unified hierarchy of a hybrid machine, and systemd's, are nobody's to kill by.
        (OWN_V1, {**OWN_V1, "pids": "/c", "devices": "/c", "memory": "/c"}, "", ""),
        (OWN_V1, {**OWN_V1, "pids": "/c", "devices": "/unit", "memory": "/c"}, "", "/unit"),
        (OWN_V1, {**OWN_V1, "pids": "/", "devices": "/c", "memory": "/c"}, "", "/"),
        (OWN_V1, {}, "/unit", "/unit"),
        # A bed on a hybrid machine: cgroup v2 is mounted, /proc names the machine's v1 as well.
        ({**ROOTS_V1, **OWN_V2}, {**ROOTS_V1, "": "/system.slice/web.service/payload"}, "", ""),
        ({**ROOTS_V1, **OWN_V2}, {**ROOTS_V1, "": "/system.slice"}, "", "/system.slice"),
    ],
)  # fmt: skip
def test_the_root_our_own_cgroup_and_those_above_it_are_dangerous(
    monkeypatch: pytest.MonkeyPatch,
    own: dict[str, str],
    places: dict[str, str],
    wanted: str,
    danger: str,
) -> None:
    monkeypatch.setattr(delegation, "membership", lambda _pid: own)
    monkeypatch.setattr(delegation, "is_unified", lambda: own is not OWN_V1)
    assert KillScope(True, places, wanted).unsafe_cgroup() == danger
    assert KillScope(False, places, wanted).unsafe_cgroup() == ""


def test_a_name_that_is_no_utf_8_comes_back() -> None:
    packed = KillScope(True, {"pids": "/a\udcff"}, "").snapshot()
    assert kill_scope.restore(packed) == KillScope(True, {"pids": "/a\udcff"}, "")
