"""What is handed to the next supervisor: nothing is forgotten, and what was handed is restored."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.children.restart_policy import FailureHistory
from supervisor.io.client_stdio import Stdio
from supervisor.io.pipes import Pipes
from supervisor.linux import fds
from supervisor.oci.process_json import ProcessConfig
from supervisor.sinks.sink import Drops
from supervisor.state.fd_store import FdStore, FdWriter
from tests.harness.stream_site import Site
from workers.process.task import Task, TaskKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from supervisor.io.stream_copy import StreamCopy
    from tests.harness.rig import Rig

pytestmark = pytest.mark.process


def _attributes(thing: object) -> Iterable[str]:
    return vars(thing) if hasattr(thing, "__dict__") else type(thing).__slots__  # type: ignore[attr-defined]


def test_every_attribute_is_handed_over_or_listed_as_transient(site: Site) -> None:
    _writer, _reader, stream = site.output()
    slot = site.slot(stream)
    streams = site.stream_set
    things = [
        stream, slot, streams, streams.attach_clients, streams._stream_log, streams._reopener,
        Stdio(), Pipes(ProcessConfig(), None, -1), streams.serve_packets({}),
    ]  # fmt: skip
    for thing in things:
        kind: Any = type(thing)
        declared = [*kind.SNAPSHOT, *getattr(kind, "SNAPSHOT_FDS", ()), *kind.TRANSIENT]
        assert sorted(declared) == sorted(_attributes(thing)), kind.__name__


def _handed_over(slot: StreamCopy, rig: Rig) -> StreamCopy:
    """Return what the next supervisor makes of a slot, without its worker."""
    packed = slot.snapshot(FdWriter())
    successor = Site(rig)
    _writer, _reader, stream = successor.output()
    restored = successor.slot(stream)
    restored.restore(packed, fds.Fd(-1), is_parent=True)
    successor.close()
    return restored


def test_failures_trouble_and_losses_are_the_same_after_a_reload(site: Site, rig: Rig) -> None:
    _writer, _reader, stream = site.output()
    slot = site.slot(stream)
    slot.history = FailureHistory(5, 4, True, 3, 2)
    slot.trouble = "No space left on device"
    slot.left = Drops(12, 2)
    slot._copied_bytes_at_fork = 7
    restored = _handed_over(slot, rig)
    for name in ("history", "trouble", "left", "_copied_bytes_at_fork"):
        assert getattr(restored, name) == getattr(slot, name), name


def test_a_worker_that_backs_off_does_so_under_the_next_supervisor(site: Site) -> None:
    """Else it could be taken for a stuck one."""
    _writer, _reader, stream = site.output()
    slot = site.slot(stream)
    slot._fork(Task(TaskKind.WAIT_UNTIL, time.monotonic() + 3600))
    worker = slot.worker
    assert worker is not None
    packed = slot.snapshot(FdWriter())
    assert worker.task == Task(TaskKind(packed["task"][0]), packed["task"][1])
    slot.renew()
    assert slot.worker is not worker
    assert slot.worker is not None
    assert slot.worker.task == worker.task


def test_what_was_logged_is_not_logged_again_after_a_reload(site: Site, rig: Rig) -> None:
    from supervisor.io.stream_log import StreamLog

    _writer, _reader, stream = site.output()
    slot = site.slot(stream)
    slot.left = Drops(12, 2)
    site.stream_set._stream_log.drops(slot)
    said = rig.messages()
    restored = StreamLog(rig.log, lambda: None)
    with contextlib.closing(FdStore()) as store:  # as JSON, which has no tuples
        store.put({"log": site.stream_set._stream_log.snapshot()}, FdWriter())
        contents = store.look()
        restored.restore(contents.document["log"])
        contents.close()
    restored.drops(slot)
    assert rig.messages() == said
