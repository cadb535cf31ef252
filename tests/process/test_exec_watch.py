"""The flag of an init that says whether it has executed a program, of real forks."""

from __future__ import annotations

import json
import os
import resource
from typing import TYPE_CHECKING

import pytest

from supervisor.linux.exit_status import Exited, Killed
from supervisor.oci import exec_watch
from supervisor.oci.exec_watch import ExecWatch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.harness.rig import Rig

pytestmark = pytest.mark.process


class Init:
    """A child that waits for a byte, and then does its work."""

    def __init__(self, work: Callable[[], None]) -> None:
        rfd, self.gate = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.gate)
            os.read(rfd, 1)
            work()
            os._exit(4)
        os.close(rfd)

    def go(self) -> None:
        os.close(self.gate)


def _watch(rig: Rig, init: Init, directory: Path, runtime: str = "runc") -> ExecWatch:
    return ExecWatch(
        rig.loop, init.pid, runtime=runtime, config_path=str(directory / "config.json")
    )


def _execute() -> None:
    os.execv("/bin/sh", ["sh", "-c", "exit 4"])


@pytest.mark.parametrize(("work", "has_run"), [(_execute, True), (lambda: None, False)])
def test_a_zombie_tells_whether_it_has_executed(
    rig: Rig, tmp_path: Path, work: Callable[[], None], *, has_run: bool
) -> None:
    init = Init(work)
    watch = _watch(rig, init, tmp_path)
    ends: list[object] = []
    rig.reaper.look_before(init.pid, watch.look)
    rig.reaper.expect(init.pid, ends.append)
    init.go()
    rig.run_until(lambda: bool(ends))
    assert watch.has_run(Exited(4), is_started=True) is has_run
    watch.close()


@pytest.mark.parametrize(("work", "has_run"), [(_execute, True), (lambda: None, False)])
def test_no_want_of_descriptors_hides_the_flag(
    rig: Rig, tmp_path: Path, work: Callable[[], None], *, has_run: bool
) -> None:
    init = Init(work)
    watch = _watch(rig, init, tmp_path)
    init.go()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        os.waitid(os.P_PID, init.pid, os.WEXITED | os.WNOWAIT)
        watch.look()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    os.waitid(os.P_PID, init.pid, os.WEXITED)
    assert watch.has_run(Exited(4), is_started=True) is has_run
    watch.close()


def test_an_init_that_executes_nothing_is_believed_after_the_limit(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exec_watch, "EXEC_LIMIT_S", 0.05)
    init = Init(lambda: None)
    watch = _watch(rig, init, tmp_path)
    told: list[None] = []
    watch.expect(lambda: told.append(None))
    assert not told
    rig.run_until(lambda: bool(told))
    init.go()
    os.waitid(os.P_PID, init.pid, os.WEXITED)
    watch.close()


def test_a_reaped_init_is_not_looked_at_again(rig: Rig, tmp_path: Path) -> None:
    init = Init(lambda: None)
    watch = _watch(rig, init, tmp_path)
    init.go()
    os.waitid(os.P_PID, init.pid, os.WEXITED)
    watch.expect(lambda: pytest.fail("it never ran"))
    assert not rig.loop.timers
    watch.close()


@pytest.mark.parametrize(
    ("runtime", "annotations", "end", "is_started", "has_run"),
    [
        ("crun", {"run.oci.handler": "wasm"}, Exited(3), True, True),
        ("crun", {"run.oci.handler": "wasm"}, Exited(3), False, False),
        ("crun", {"run.oci.handler": "wasm"}, Killed(9), True, False),
        ("runc", {"run.oci.handler": "wasm"}, Exited(0), True, False),
        ("crun", {"module.wasm.image/variant": "compat-smart"}, Exited(0), True, True),
        ("crun", {"other": "wasm"}, Exited(0), True, False),
        ("/usr/bin/krun", {}, Exited(0), True, True),
        ("/opt/crun-wasm", None, Exited(0), True, True),
        ("crun-", {}, Exited(0), True, False),
        ("crun", None, Exited(0), True, False),
    ],
)
def test_only_a_container_that_asks_for_a_handler_may_run_without_an_exec(
    rig: Rig, tmp_path: Path, runtime: str, annotations: dict[str, str] | None,
    end: Exited | Killed, *, is_started: bool, has_run: bool,
) -> None:  # fmt: skip
    if annotations is not None:
        document = json.dumps({"annotations": annotations})
        (tmp_path / "config.json").write_text(document)
    init = Init(lambda: None)
    watch = _watch(rig, init, tmp_path, runtime)
    init.go()
    os.waitid(os.P_PID, init.pid, os.WEXITED)
    assert watch.has_run(end, is_started=is_started) is has_run
    watch.close()
