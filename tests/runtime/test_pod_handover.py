"""A supervisor of three real containers and an exec: it reloads with all, and all are adopted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, fd_stores, pod, runtime_calls, shim_log, waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.runc, pytest.mark.usefixtures("no_leaks")]

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "programs" / "pod_host.py"
COUNTS = (
    "trap 'echo end; exit 4' TERM; read -r i; while :; do i=$((i+1)); echo $i; sleep 0.01; done"
)
SECOND = "trap 'echo end; exit 5' USR1; echo second; while :; do sleep 0.05; done"
COUNTED = 20


class PodHost:
    """The containers and their supervisors. Owns them until `close`."""

    def __init__(self, directory: Path, make_bundle: Callable[..., Path]) -> None:
        """Make the documents and the bundles."""
        self.directory = directory
        made = [
            (bundles.fresh_id(f"pod{number}"), make_bundle(script))
            for number, script in enumerate((pod.DEAF, pod.OBEYS, COUNTS))
        ]
        self.ids = [container_id for container_id, _bundle in made]
        (directory / "process.json").write_text(
            json.dumps(
                {
                    "args": bundles.shell(SECOND),
                    "cwd": "/",
                    "env": ["PATH=/bin"],
                    "user": {"uid": 0, "gid": 0},
                }
            )
        )
        pairs = [f"{container_id}={bundle}" for container_id, bundle in made]
        self._start_words = ("start", runtime_calls.RUNTIME, *pairs)
        self.supervisor: subprocess.Popen[bytes]
        self.second_pid = 0

    def start(self, **environment: str) -> None:
        """Start the three, and the exec in the last."""
        self.supervisor = self._run(*self._start_words, **environment)

    def wait_for_all(self) -> None:
        """Wait until each has spoken, and is published."""
        for name in (*self.ids, "second"):
            waiting.wait_path(
                self.directory / f"{name}.log",
                lambda path: path.exists() and bool(path.read_text()),
            )
        for state_dir in self.state_dirs[:3]:
            fd_stores.wait_published(state_dir)
        waiting.wait_path(self.directory / "second.published", lambda path: path.exists())
        self.second_pid = int((self.state_dirs[3] / "pid").read_text())

    @property
    def state_dirs(self) -> list[Path]:
        """Those of the containers, then that of the exec."""
        found = [self.directory / each / "init" for each in self.ids]
        return [*found, self.directory / self.ids[2] / "second"]

    def _run(self, *words: str, **environment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, PROGRAM, self.directory, *words],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )

    def text(self, number: int) -> str:
        """Return what a container has said."""
        return (self.directory / f"{self.ids[number]}.log").read_text()

    def wait_counted(self) -> None:
        """Wait until the third has counted further."""
        path = self.directory / f"{self.ids[2]}.log"
        waiting.wait_path(path, lambda path: path.exists())
        before = path.read_text().count("\n")
        waiting.wait_path(path, lambda path: path.read_text().count("\n") > before + COUNTED)

    def count(self, words: str) -> list[int]:
        """Return how often each log has these words."""
        return [
            sum(words in message for message in shim_log.messages(each / "shim-log.json"))
            for each in self.state_dirs
        ]

    def reload(self) -> None:
        """Reload all four."""
        before = self.count("reloaded: version")
        self.supervisor.send_signal(signal.SIGHUP)
        waiting.wait_true(lambda: self.count("reloaded: version") == [each + 1 for each in before])

    def adopt(self) -> None:
        """Kill the supervisor, and start another one for all four."""
        before = self.count("adopted: version")
        self.supervisor.kill()
        self.supervisor.wait()
        self.supervisor = self._run("adopt", *self.ids)
        waiting.wait_true(lambda: self.count("adopted: version") == [each + 1 for each in before])

    def end(self) -> dict[str, str]:
        """End the exec, then stop the containers; return how each has ended, by its number."""
        ends = self.directory / "ends"
        os.kill(self.second_pid, signal.SIGUSR1)
        waiting.wait_path(ends, lambda path: path.exists() and path.read_text().count("\n") == 1)
        with suppress(ChildProcessError):
            # A container ends after the zombies of its pid namespace. This test is the subreaper.
            os.waitpid(self.second_pid, 0)
        self.supervisor.send_signal(signal.SIGTERM)
        assert self.supervisor.wait(waiting.LIMIT_S) == 0
        found = dict(line.split(" ", 1) for line in ends.read_text().splitlines())
        names = {**{each: str(number) for number, each in enumerate(self.ids)}, "second": "second"}
        return {names[each]: end for each, end in found.items()}

    def close(self) -> None:
        """Kill what is left, and delete the containers."""
        with suppress(ProcessLookupError):
            self.supervisor.kill()
        self.supervisor.wait()
        if self.second_pid:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.second_pid, signal.SIGKILL)
                os.waitpid(self.second_pid, 0)
        for container_id in self.ids:
            runtime_calls.delete(container_id)


@pytest.fixture
def new_pod_host(tmp_path: Path, make_bundle: Callable[..., Path]) -> Iterator[PodHost]:
    """Three containers and an exec, which are not started yet."""
    made = PodHost(tmp_path, make_bundle)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def pod_host(new_pod_host: PodHost) -> PodHost:
    """Three containers and an exec, which run."""
    new_pod_host.start()
    new_pod_host.wait_for_all()
    return new_pod_host


ENDS = {
    "0": "killed by SIGKILL",
    "1": "exit status 3",
    "2": "exit status 4",
    "second": "exit status 5",
}


def check(pod_host: PodHost, first: int = 1) -> None:
    """Check that each ends as it does by itself, with every byte in its log.

    `first`: the number that the third begins to count with.
    """
    pod_host.wait_counted()
    assert pod_host.end() == ENDS
    assert pod_host.text(0) == "deaf\n"
    assert pod_host.text(1) == "obeys\nbye\n"
    *numbers, end = pod_host.text(2).split()
    assert end == "end"
    assert numbers == [str(number) for number in range(first, first + len(numbers))]
    assert (pod_host.directory / "second.log").read_text() == "second\nend\n"
    statuses = [(each / "exitStatus").read_text() for each in pod_host.state_dirs]
    assert statuses == ["137", "3", "4", "5"]


def test_a_reload_hands_over_every_container_and_exec(pod_host: PodHost) -> None:
    for _ in range(3):
        pod_host.reload()
        pod_host.wait_counted()
    check(pod_host)


def test_every_container_and_exec_of_a_killed_supervisor_is_adopted(pod_host: PodHost) -> None:
    for _ in range(2):
        pod_host.adopt()
        pod_host.wait_counted()
    check(pod_host)


def test_adopted_containers_and_execs_are_reloaded_too(pod_host: PodHost) -> None:
    pod_host.adopt()
    pod_host.reload()
    pod_host.adopt()
    check(pod_host)


def test_a_container_that_waits_for_its_start_is_reloaded_with_the_others(
    new_pod_host: PodHost,
) -> None:
    """Its stdin, which is opened at its start, too."""
    stdin = new_pod_host.directory / "stdin"
    os.mkfifo(stdin)
    new_pod_host.start(POD_AWAITS_START=str(stdin))
    deaf, obeys, awaits, _second = new_pod_host.state_dirs
    for state_dir in (deaf, obeys):
        fd_stores.wait_published(state_dir)
    waiting.wait_path(awaits / "pid", lambda path: path.exists())
    with pytest.raises(OSError, match="No such device or address"):
        os.open(stdin, os.O_WRONLY | os.O_NONBLOCK)
    new_pod_host.supervisor.send_signal(signal.SIGHUP)
    stdin.write_text("41\n")
    new_pod_host.wait_for_all()
    for state_dir in (deaf, obeys, awaits):
        messages = shim_log.messages(state_dir / "shim-log.json")
        assert sum("reloaded: version" in message for message in messages) == 1
    check(new_pod_host, first=42)
