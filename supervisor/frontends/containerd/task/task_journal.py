"""Notes each task where a kill -9 of the shim does not reach, before anyone is told of a change."""

from __future__ import annotations

from supervisor.frontends.containerd.task import snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from supervisor.frontends.containerd.events import EventQueue
    from supervisor.frontends.containerd.handover.group_journal import GroupJournal
    from supervisor.frontends.containerd.task.task import Task
    from supervisor.frontends.containerd.task.task_process import TaskProcess

REPLIES = "replies"


class TaskJournal:
    """What a change of a task is told to. Borrows both; without a journal only events are told."""

    def __init__(self, events: EventQueue, journal: GroupJournal | None) -> None:
        """`journal` is the one of the event queue, too: a record has both."""
        self._events = events
        self._journal = journal

    def publish(
        self, task: Task, process: TaskProcess, topic: str, values: Mapping[str, Any]
    ) -> None:
        """Queue an event, and note with it that its process is past it."""
        if self._journal is not None:
            self._journal.put({snapshot.part_name(task, process): snapshot.pack(task, process)})
        self._events.publish(topic, values)

    def note(self, task: Task, process: TaskProcess) -> None:
        """Note a change that is no event: a request that waits, a call of the runtime to come."""
        if self._journal is not None:
            self._journal.write({snapshot.part_name(task, process): snapshot.pack(task, process)})

    def forget(
        self, task: Task, process: TaskProcess, replies: Mapping[str, Any] | None = None
    ) -> None:
        """Note that a process is deleted; of an init also what is remembered of the deleted."""
        if self._journal is not None:
            parts = {snapshot.part_name(task, process): None}
            self._journal.write({**parts, **({} if replies is None else {REPLIES: replies})})
