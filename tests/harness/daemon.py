"""A container under `forkshim run --detach`, and under those who adopt it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tests.harness import bundles, fd_stores, runtime_calls, shim_log, waiting
from tests.harness.engine import FORKSHIM

if TYPE_CHECKING:
    from pathlib import Path


class Daemon:
    """One container and its supervisors. Owns them until `close`.

    The test has to be a subreaper, as it is by the `no_leaks` fixture: they become its children.
    """

    def __init__(
        self,
        directory: Path,
        bundle: Path,
        *options: str | Path,
        stdin: int | None = None,
        successors: int = 0,
    ) -> None:
        """Run it until it could be adopted, and so it has to live for a moment.

        `directory` is for all of its own, `options` are those of `forkshim run`. With `stdin` it is
        no daemon at first, but has a session of its own. `successors`: as FORKSHIM_SUCCESSORS.
        """
        self.id = bundles.fresh_id("daemon")
        self._environment = {**os.environ, "FORKSHIM_SUCCESSORS": str(successors)}
        self.root = directory / "root"
        self.state_dir = self.root / self.id / "init"
        self._exits = directory / "exits"
        self._first: subprocess.Popen[bytes] | None = None
        words = ("--bundle", bundle, "--exit-dir", self._exits, *options)
        if stdin is None:
            self.succeed_in("run", *words, "--detach")
        else:
            self._first = subprocess.Popen(
                [FORKSHIM, "run", "-i", "--root", self.root, *words, self.id],
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        fd_stores.wait_published(self.state_dir)

    def command(self, verb: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
        """Run `forkshim VERB` on it, to the end of the command."""
        return subprocess.run(
            [FORKSHIM, verb, "--root", self.root, *options, self.id],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=waiting.LIMIT_S,
            env=self._environment,
        )

    def succeed_in(self, verb: str, *options: str | Path) -> None:
        """Run a command that has nothing to say."""
        done = self.command(verb, *options)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done

    @property
    def pid(self) -> int:
        """The supervisor's that it has now."""
        return int((self.root / self.id / "supervisor.pid").read_text())

    @property
    def payload_pid(self) -> int:
        """The pid of the container's process."""
        return int((self.state_dir / "pid").read_text())

    def kill(self) -> None:
        """Kill the supervisor, and nobody else."""
        pid = self.pid
        waiting.wait_worker(pid, "fds")
        os.kill(pid, signal.SIGKILL)
        waiting.wait_process(pid)
        if self._first is not None:
            self._first.wait()

    def adopt(self, *options: str | Path) -> None:
        """Start another supervisor; wait until its workers have their titles, or it has ended."""
        self.succeed_in("adopt", "--detach", *options)
        with suppress(FileNotFoundError):  # it has ended, and removed supervisor.pid
            pid = self.pid
            waiting.wait_true(
                lambda: all(
                    waiting.title_of(child).startswith("forkshim: ")
                    for child in waiting.children_of(pid)
                )
            )

    def reload(self) -> None:
        """Reload the supervisor, and wait until it has been done."""
        shim_log.reload(self.pid, self.state_dir / "shim-log.json")

    def log(self, level: str | None = None) -> list[str]:
        """Return the messages of shim-log.json."""
        return shim_log.messages(self.state_dir / "shim-log.json", level)

    def workers(self) -> list[int]:
        """Return those who have lost their supervisor."""
        return self._children(f"forkshim: {self.id} [")

    def wait_end(self) -> str:
        """Wait for the end of whoever supervises it; returns what it has written."""
        with suppress(FileNotFoundError):  # it has ended
            waiting.wait_process(self.pid)
        return (self.state_dir / "exitStatus").read_text()

    def wait_first(self) -> int:
        """Wait for the end of the supervisor that had the stdin; returns its exit status."""
        assert self._first is not None
        return self._first.wait()

    def record(self) -> dict[str, Any]:
        """Return the record of its end."""
        record: dict[str, Any] = json.loads((self._exits / f"{self.id}.json").read_text())
        return record

    def living(self) -> list[str]:
        """Return the titles of the supervisor and of orphaned workers."""
        return [waiting.title_of(pid) for pid in self._children(f"forkshim: {self.id}")]

    def close(self) -> None:
        """Leave nothing behind, however the test went."""
        # When the supervisor is killed, its workers and its fd holder become our children.
        while children := self._children(f"forkshim: {self.id}"):
            for pid in children:
                os.kill(pid, signal.SIGKILL)
                waiting.wait_process(pid)
        if self._first is not None:
            self._first.wait()
        runtime_calls.delete(self.id)

    @staticmethod
    def _children(prefix: str) -> list[int]:
        """Return our living children whose titles begin so."""
        return [
            pid
            for pid in waiting.children_of(os.getpid())
            if waiting.title_of(pid).startswith(prefix) and waiting.is_alive(pid)
        ]


def reap(pid: int) -> None:
    """Be the parent that a container has when its supervisor is gone, as PID 1 would."""
    waiting.wait_process(pid)
    os.waitid(os.P_PID, pid, os.WEXITED)
