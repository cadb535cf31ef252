"""A podman of a test module's own: its storage, its directories, and our conmon."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.harness import conmon, leaks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IMAGE = "localhost/bb:latest"

# Without CAP_SYS_RESOURCE no process may have podman's own limits; a test has no network plugins.
_SETTINGS = """\
[containers]
default_ulimits = ["nofile=16384:16384", "nproc=8192:8192"]
netns = "none"
[engine]
conmon_path = ["{conmon}"]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
conmon_env_vars = ["PATH={path}", "FORKSHIM_SUCCESSORS={successors}"]
"""


@dataclass(frozen=True)
class Podman:
    """One installation below `directory`, with the conmon `program`."""

    directory: Path
    program: Path

    def command(self, *words: str | Path) -> list[str]:
        """Return the words of one podman command."""
        there = str(self.directory)
        return [
            *("env", f"CONTAINERS_CONF={there}/containers.conf"),
            *("podman", "--root", f"{there}/root", "--runroot", f"{there}/run"),
            *("--tmpdir", f"{there}/tmp", "--storage-driver", "vfs", *map(str, words)),
        ]

    def run(
        self, *words: str | Path, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end; `options` are those of subprocess.run.

        Raises:
            AssertionError: It failed, or podman has used another conmon.
        """
        settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120}
        done = subprocess.run(self.command(*words), check=False, **{**settings, **options})
        assert "conmon version" not in str(done.stderr), done.stderr
        assert not check or done.returncode == 0, (words, done.returncode, done.stderr)
        return done

    def out(self, *words: str | Path) -> str:
        """Return what a command prints."""
        return str(self.run(*words).stdout).strip()

    def set_successors(self, limit: int) -> None:
        """Set how many successors of a killed conmon are started within a minute."""
        text = _SETTINGS.format(conmon=self.program, path=os.environ["PATH"], successors=limit)
        (self.directory / "containers.conf").write_text(text)

    def inspect(self, name: str, field: str) -> str:
        """Return one field of a container."""
        return self.out("inspect", "--format", f"{{{{{field}}}}}", name)


@contextmanager
def podman(directory: Path, rootfs: Path) -> Iterator[Podman]:
    """Make one, with an image of busybox; remove all its containers at the end."""
    program = conmon.make_program(directory)
    (directory / "tmp").mkdir()
    made = Podman(directory, program)
    made.set_successors(5)
    archive = directory / "image.tar"
    subprocess.run(["tar", "-C", rootfs, "-cf", archive, "."], check=True)
    changes = ("--change", 'CMD ["/bin/sh"]', "--change", "ENV PATH=/bin")
    made.run("import", *changes, archive, IMAGE)
    archive.unlink()
    try:
        yield made
    finally:
        made.run("rm", "--all", "--force", "--time", "0")
        leaks.become_subreaper()
