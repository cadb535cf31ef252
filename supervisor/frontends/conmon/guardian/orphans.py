"""Orphans of a container without a pid namespace of its own, which the guardian inherits.

The guardian reaps no child while the wait status of a container may be among them. So zombies would
gather there without bound. While the container lives the guardian may reap all that have ended.
"""

from __future__ import annotations

import os
from contextlib import suppress

from supervisor.linux import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from supervisor.container.container import Container
    from supervisor.frontends.conmon.guardian.link import GuardianLink

_LOOK_S = 5.0
_MOST = 32


class OrphanWatch:
    """Looks at the guardian's children from time to time. Borrows everything."""

    def __init__(self, link: GuardianLink, container: Container) -> None:
        """Look at nothing before `begin`."""
        self._link = link
        self._container = container

    def begin(self) -> None:
        """Look from now on, if orphans of the container can come to the guardian."""
        with suppress(OSError):  # it has ended
            theirs = os.stat(f"/proc/{self._container.pid}/ns/pid").st_ino
            if theirs == os.stat("/proc/self/ns/pid").st_ino:
                self._look()

    def _look(self) -> None:
        container = self._container
        if not container.is_alive or procfs.is_dead(container.pid):
            return
        with suppress(OSError):  # the guardian was killed
            if len(procfs.children(self._link.guardian_pid)) > _MOST:
                self._link.reap()
        container.launch.loop.timer(self._look).start(_LOOK_S)
