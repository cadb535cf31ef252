"""A dockerd of a test module's own, beside its containerd in the same sandbox."""

from __future__ import annotations

import json
import os
import shutil
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from tests.engines.image import IMAGE
from tests.harness import waiting

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from _typeshed import StrPath

    from tests.engines.containerd import Containerd

# A package's own: the machine may have another client in /usr/local/bin.
_CLIENT = "/usr/bin/docker"
_DAEMON = shutil.which("dockerd", path="/usr/sbin:/usr/bin") or "dockerd"
_RUN = ("run", "--network", "none")


class Docker:
    """One dockerd and its client. The images are those that `Containerd` imported, once more."""

    def __init__(self, cd: Containerd) -> None:
        """Write the settings. Borrows `cd`, whose namespace the daemon uses."""
        self.cd = cd
        self.directory = cd.directory / "docker"
        self.directory.mkdir()
        self.socket = self.directory / "d.sock"
        self.log = self.directory / "dockerd.log"
        self.pid = 0
        settings = {
            "data-root": str(self.directory / "data"),
            "exec-root": str(self.directory / "exec"),
            "pidfile": str(self.directory / "pid"),
            "hosts": [f"unix://{self.socket}"],
            "containerd": str(cd.address),
            "containerd-namespace": cd.namespace,
            "cgroup-parent": f"/{cd.cgroup}",
            "bridge": "none",
            "iptables": False,
            "ip6tables": False,
            "ip-forward": False,
            "ip-masq": False,
            "userland-proxy": False,
            "storage-driver": "overlay2",
        }
        (self.directory / "daemon.json").write_text(json.dumps(settings))

    def start(self) -> None:
        """Start the daemon, and wait until it answers."""
        self.pid = self.cd.sandbox.spawn_daemon(
            *(_DAEMON, "--config-file", self.directory / "daemon.json"),
            log=self.log,
            env=dict(os.environ),
        )
        waiting.wait_path(self.socket, lambda path: path.exists())
        waiting.wait_true(lambda: self.docker("version", check=False).returncode == 0)

    def close(self) -> None:
        """Kill the daemon."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def words(self, *words: StrPath) -> Sequence[StrPath]:
        """Return the command that runs `docker WORDS` in the sandbox."""
        return self.cd.sandbox.enter(_CLIENT, "-H", f"unix://{self.socket}", *words)

    def docker(self, *words: StrPath, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `docker WORDS` to its end; as `Sandbox.run`."""
        return self.cd.sandbox.run(_CLIENT, "-H", f"unix://{self.socket}", *words, **options)

    def run(
        self, *command: str, options: Sequence[str] = (), **run: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` in a new container of the image by `docker run`."""
        return self.docker(*_RUN, *options, IMAGE, *command, **run)

    def inspect(self, name: str, what: str = ".State") -> Any:
        """Return a part of `docker inspect`."""
        said = self.docker("inspect", "--format", f"{{{{json {what}}}}}", name).stdout
        return json.loads(said)

    def wait_state(self, name: str, status: str) -> None:
        """Wait until a container is running, exited, ..."""
        waiting.wait_true(lambda: self.inspect(name)["Status"] == status)


@contextmanager
def docker(cd: Containerd, archive: Path) -> Iterator[Docker]:
    """Run a dockerd with the image of `archive` beside `cd`."""
    made = Docker(cd)
    made.start()
    try:
        made.docker("load", "-i", archive)
        yield made
    finally:
        made.close()
