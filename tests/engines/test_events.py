"""Our events in a real containerd: `ctr events` shows them, in order, across its death."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from supervisor.frontends.containerd.events import EventQueue, PublishCommand
from supervisor.oci.invoke import RuntimeInvoker
from tests.harness.rig import Rig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from tests.engines.containerd import Containerd, Event

pytestmark = [pytest.mark.engine, pytest.mark.process]

AT = {"seconds": 1_700_000_000, "nanos": 5}
LIFE: list[tuple[str, dict[str, Any]]] = [
    (
        "/tasks/create",
        {
            "bundle": "/b",
            "rootfs": [{"type": "bind", "source": "/r", "options": ["ro", "rbind"]}],
            "io": {"stdin": "/i", "stdout": "/o", "stderr": "/e", "terminal": True},
            "checkpoint": "/c",
            "pid": 4711,
        },
    ),
    ("/tasks/start", {"pid": 4711}),
    ("/tasks/exec-added", {"exec_id": "e"}),
    ("/tasks/exec-started", {"exec_id": "e", "pid": 4712}),
    ("/tasks/paused", {}),
    ("/tasks/resumed", {}),
    ("/tasks/checkpointed", {"checkpoint": "/c"}),
    ("/tasks/oom", {}),
    ("/tasks/exit", {"id": "a", "pid": 4711, "exit_status": 137, "exited_at": AT}),
    ("/tasks/delete", {"id": "a", "pid": 4711, "exit_status": 137, "exited_at": AT}),
]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """The loop of a shim, in this process."""
    made = Rig(tmp_path)
    yield made
    made.close()


def _queue(rig: Rig, cd: Containerd, **options: Any) -> EventQueue:
    options = {"ttrpc_address": f"unix://{cd.address}.ttrpc", **options}
    return EventQueue(rig.loop, rig.log, namespace=cd.namespace, **options)


def _publish(queue: EventQueue, container_id: str = "a") -> None:
    for topic, fields in LIFE:
        queue.publish(topic, {"container_id": container_id, **fields})


def test_containerd_reads_every_field_of_every_event(rig: Rig, cd: Containerd) -> None:
    queue = _queue(rig, cd)
    with cd.events() as events:
        _publish(queue)
        rig.run_until(lambda: not len(queue))
        seen = events.wait_for("/tasks/delete")
    assert [event.topic for event in seen] == [topic for topic, _fields in LIFE]
    for event, (_topic, fields) in zip(seen, LIFE, strict=True):
        shown = {"container_id": "a", **fields}
        if "exited_at" in shown:
            shown["exited_at"] = "2023-11-14T22:13:20.000000005Z"
        assert event.fields == shown
    assert not rig.messages()
    queue.close()


def test_events_wait_until_a_killed_containerd_is_back(rig: Rig, cd: Containerd) -> None:
    queue = _queue(rig, cd)
    with cd.events() as events:
        queue.publish("/tasks/start", {"container_id": "before", "pid": 1})
        rig.run_until(lambda: not len(queue))
        events.wait_for("/tasks/start")
    cd.end(signal.SIGKILL)
    for name in ("a", "b"):
        _publish(queue, name)
    rig.run_until(lambda: bool(rig.messages("warn")))
    cd.start()
    with cd.events() as events:  # before the next try: only this loop makes tries
        rig.run_until(lambda: not len(queue))
        seen: list[Event] = []
        while len(seen) < 2 * len(LIFE):
            seen += events.wait_for("/tasks/delete")
    topics = [topic for topic, _fields in LIFE]
    assert [event.topic for event in seen] == topics * 2
    assert [event.fields["container_id"] for event in seen] == ["a"] * 10 + ["b"] * 10
    assert rig.messages("info") == ["events: containerd takes them again, 19 waiting"]
    queue.close()


def test_the_publish_command_carries_the_same_events(rig: Rig, cd: Containerd) -> None:
    invoker = RuntimeInvoker(
        rig.loop,
        rig.reaper,
        name="true",
        cwd="/",
        null_fd=rig.null.fileno(),
        environment=os.environ,
    )
    program = shutil.which("containerd")
    assert program is not None
    command = PublishCommand(invoker, program, str(cd.address))
    queue = _queue(rig, cd, ttrpc_address="", command=command)
    with cd.events() as events:
        for topic, fields in LIFE[-2:]:
            queue.publish(topic, {"container_id": "a", **fields})
        rig.run_until(lambda: not len(queue))
        seen = events.wait_for("/tasks/delete")
    assert [event.topic for event in seen] == ["/tasks/exit", "/tasks/delete"]
    assert [event.fields["exit_status"] for event in seen] == [137, 137]
    queue.close()
