"""Calls back when the kernel's OOM killer kills in a running container.

cgroup v1 reports it on an eventfd, before the kill. cgroup v2 counts the kills in memory.events,
and reports a change as EPOLLERR.

Source: Documentation/admin-guide/cgroup-v1/memory.rst, "OOM Control", and cgroup-v2.rst,
"memory.events"; kernfs_generic_poll of the kernel.
"""

from __future__ import annotations

import os

from supervisor.linux.fds import Fd
from supervisor.systemd import delegation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from supervisor.linux.event_loop import Loop

_FEATURE = "oom"
_MOST_BYTES = 4096


class OomEvents:
    """Watches one cgroup. Owns its descriptors until `close`; borrows the loop."""

    def __init__(
        self, loop: Loop, membership: Mapping[str, str], on_oom: Callable[[], None]
    ) -> None:
        """Begin to watch.

        Args:
            loop: Watches the descriptor.
            membership: The cgroups of the container's init, by controller.
            on_oom: Called for each event.

        Raises:
            OSError: The cgroup has no memory controller, or is not visible here; EMFILE.
        """
        self._loop = loop
        self._on_oom = on_oom
        self._kills = 0
        self._watched = Fd(-1)
        if "memory" in membership:
            self._path = f"{delegation.ROOT}/memory{membership['memory']}/memory.oom_control"
            self._watch_v1()
        else:
            self._path = f"{delegation.ROOT}{membership.get('', '/')}/memory.events"
            self._watch_v2()

    def _watch_v1(self) -> None:
        counter = Fd(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC))
        event = Fd(-1)
        try:
            event = Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            registry = os.path.join(os.path.dirname(self._path), "cgroup.event_control")
            with open(registry, "wb", buffering=0) as file:
                file.write(b"%d %d" % (event.fileno(), counter.fileno()))
        except OSError:
            event.close()
            raise
        finally:
            counter.close()
        self._watched = event
        self._loop.watch(event.fileno(), self._on_v1, feature=_FEATURE)

    def _on_v1(self) -> None:
        os.eventfd_read(self._watched.fileno())
        if os.path.exists(self._path):
            self._on_oom()
        else:
            self.close()  # the removal of the cgroup is an event, too

    def _watch_v2(self) -> None:
        self._watched = Fd(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC))
        self._kills = self._count()
        self._loop.watch(self._watched.fileno(), self._on_v2, feature=_FEATURE, is_read=False)

    def _on_v2(self) -> None:
        try:
            kills = self._count()  # this read also clears EPOLLERR
        except OSError:  # ENODEV: the cgroup was removed
            self.close()
            return
        if kills > self._kills:
            self._kills = kills
            self._on_oom()

    def _count(self) -> int:
        text = os.pread(self._watched.fileno(), _MOST_BYTES, 0)
        counts = dict(line.split() for line in text.splitlines())
        return int(counts.get(b"oom_kill", 0))

    def close(self) -> None:
        """Stop watching. A second call does nothing."""
        if self._watched.is_open:
            self._loop.forget(self._watched.fileno())
            self._watched.close()
