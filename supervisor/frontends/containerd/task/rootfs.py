"""The mounts of a task's root file system, and what a killed shim may have left of a task."""

from __future__ import annotations

import os
from functools import partial

from supervisor.frontends.containerd import delete
from supervisor.frontends.containerd.mounts import MountError, MountJob, mount_all, unmount_all
from supervisor.linux.errors import ShimError, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from supervisor.container.host import Host


class Rootfs:
    """Mounts and unmounts, each in a child: mount(2) may wait for a server. Borrows the host."""

    def __init__(
        self, host: Host, container_id: str, bundle: str, mounts: Sequence[Mapping[str, Any]]
    ) -> None:
        """Nothing is mounted. `mounts`: those of the CreateTaskRequest."""
        self._host = host
        self._container_id = container_id
        self._bundle = bundle
        self._mounts = mounts
        self._path = os.path.join(bundle, "rootfs")

    def _run(self, work: Callable[[], None], on_done: Callable[[str], None]) -> None:
        title = f"forkshim: {self._container_id}"
        try:
            MountJob(self._host.reaper, title, self._host.null.fileno(), work, on_done)
        except OSError as error:
            on_done(f"fork: {reason(error)}")

    def mount(self, on_done: Callable[[str], None]) -> None:
        """Mount all. `on_done` gets "" or why that has failed; then nothing is mounted."""
        if self._mounts:
            self._run(partial(mount_all, self._mounts, self._path), on_done)
        else:
            on_done("")

    def unmount(self, then: Callable[[], None]) -> None:
        """Unmount all; `then` follows, whatever came of it."""
        if self._mounts:
            self._run(partial(unmount_all, self._path), partial(self._log_and, then, "unmount: "))
        else:
            then()

    def _log_and(self, then: Callable[[], None], what: str, error: str) -> None:
        if error:
            self._host.log.warning(f"{self._container_id}: {what}{error}")
        then()

    def clean_up(self, runtime: str, runtime_args: Sequence[str], then: Callable[[], None]) -> None:
        """Do what `delete` does, for a container that the core does not have; `then` follows."""

        def work() -> None:
            root, *args = runtime_args[1:]
            try:
                delete.clean_up(
                    self._bundle,
                    self._container_id,
                    runtime=runtime,
                    root=root,
                    global_args=args,
                    environment=self._host.environment,
                )
            except ShimError as error:
                raise MountError(str(error)) from error

        self._run(work, partial(self._log_and, then, ""))
