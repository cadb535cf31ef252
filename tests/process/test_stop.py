"""The grace period of a stop: a successor goes on with it and does not begin it again."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from supervisor.container.stop import Stopper
from supervisor.oci.command_line import RuntimeCommand
from supervisor.oci.invoke import RuntimeInvoker

if TYPE_CHECKING:
    from tests.harness.rig import Rig

pytestmark = pytest.mark.process


def make(rig: Rig, sent: list[int]) -> Stopper:
    """Make one for an exec'd process, whose signals go to `sent`."""
    invoker = RuntimeInvoker(
        rig.loop,
        rig.reaper,
        name="true",
        cwd="/",
        null_fd=rig.null.fileno(),
        environment=os.environ,
    )
    command = RuntimeCommand(
        name="true", args=(), state_dir="/", bundle="/", container_id="web", config=""
    )
    return Stopper(
        rig.loop, invoker, command, rig.log, timeout_s=3600.0, is_exec=True, signal_init=sent.append
    )


def test_the_grace_period_of_a_killed_supervisor_is_not_begun_again(rig: Rig) -> None:
    over: list[str] = []
    sent: list[int] = []
    first = make(rig, sent)
    first.ask(signal.SIGTERM, lambda: over.append("first"))
    ends_at_s = first.grace_ends_at_s
    assert ends_at_s is not None
    assert ends_at_s > time.monotonic()
    first.over()
    later = make(rig, sent)
    later.grace_ends_at_s = ends_at_s - 3600
    later.ask(signal.SIGTERM, lambda: over.append("later"))
    rig.run_until(lambda: bool(over))
    assert over == ["later"]
    assert later.grace_ends_at_s == ends_at_s - 3600
    assert sent == [signal.SIGTERM, signal.SIGTERM], "it may have been killed before its signal"
