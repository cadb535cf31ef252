"""One supervisor process with three containers at once, and one exec in the third.

The scenario is the same with any runtime. It runs in a child of the test: a `Host` is a process.
"""

from __future__ import annotations

import json
import os
import resource
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

from supervisor.container.api import ContainerApi
from supervisor.container.container import Container
from supervisor.container.host import Host
from supervisor.container.lifecycle import Notice
from supervisor.container.request import ContainerSpec, Origin, Outcome, StartRequest, StopPolicy
from supervisor.linux.errors import ShimError
from supervisor.linux.exit_status import Exited, Killed
from supervisor.oci.process_json import ProcessConfig
from supervisor.state.directory import StateDirectory
from tests.harness import fd_stores, waiting
from tests.harness.forked import forked, has_no_children

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.state.log import Log

DEAF = "trap '' TERM; echo deaf; while :; do sleep 0.05; done"
OBEYS = "trap 'echo bye; exit 3' TERM; echo obeys; while :; do sleep 0.05; done"
STAYS = "trap 'exit 4' TERM; echo stays; while :; do sleep 0.05; done"
SECOND = "echo second; exit 5"
_GRACE_S = 0.5
_LONG_S = 3600.0


class Pod:
    """Three containers, and what they tell. Made and run in the supervisor's own process."""

    def __init__(self, directory: Path, runtime: str, bundles: dict[str, Path]) -> None:
        """Make a state directory for each of `deaf`, `obeys` and `stays`, by their ids."""
        self.outcomes: dict[str, Outcome] = {}
        self.notices: dict[str, list[Notice]] = {}
        self.directories: list[StateDirectory] = []
        self.logs: list[Log] = []
        self.directory = directory
        self.host: Host | None = None
        self.apis: dict[str, ContainerApi] = {}
        self.runtime = runtime
        self.bundles = bundles
        self.states_at_exec: list[str] = []
        self.refusals: list[str] = []
        self.published_at_start: list[bool] = []
        self.has_stopped_two = False

    def run(self, process: dict[str, Any]) -> None:
        """Run the scenario to its end; `process` is what is exec'd in the third."""
        self.process = process
        for name, container_id in zip(("deaf", "obeys", "stays"), self.bundles, strict=True):
            path = self.directory / container_id / "init"
            path.mkdir(parents=True)
            self.directories.append(StateDirectory.open(str(path)))
            self.logs.append(self.directories[-1].open_log())
            if self.host is None:
                self.host = Host(self.logs[0], os.environ)
            bundle = str(self.bundles[container_id])
            request = StartRequest(
                ContainerSpec(container_id, bundle, self.runtime, starts_container=True),
                StopPolicy(timeout_s=_GRACE_S if name == "deaf" else _LONG_S),
                Origin(
                    str(path.parent),
                    is_adoptable=name == "stays",
                    environment=os.environ,
                    on_started=partial(self._look_at_store, path),
                ),
            )
            sink = f"file:{self.directory / name}.log"
            container = Container(
                self.host,
                request,
                self.logs[-1],
                self.directories[-1],
                ProcessConfig(stdout=sink, stderr=sink),
            )
            self._follow(name, container)
            container.begin()
        assert self.host is not None
        limit = self.host.loop.timer(self._give_up)
        limit.start(waiting.LIMIT_S)
        self.host.run()
        limit.cancel()
        assert not self.host.loop.timers, "a timer outlives its container"
        assert has_no_children()
        self.host.close()
        for log in self.logs:
            log.close()
        for state_dir in self.directories:
            state_dir.close()

    def _look_at_store(self, state_dir: Path) -> None:
        """Note which container could be adopted when its front end hears that it runs."""
        self.published_at_start.append(fd_stores.is_published(state_dir))

    def _give_up(self) -> None:
        raise TimeoutError(f"{self.notices} {self.outcomes}")

    def _follow(self, name: str, container: Container) -> None:
        api = self.apis[name] = ContainerApi(container)
        told = self.notices[name] = []

        def on_notice(notice: Notice, _detail: str) -> None:
            told.append(notice)
            if notice is Notice.STARTED:
                self._look()

        def on_outcome(outcome: Outcome) -> None:
            self.outcomes[name] = outcome
            self._look()

        api.subscribe(on_notice)
        api.wait(on_outcome)

    def _look(self) -> None:
        """Take the next step of the scenario."""
        started = [name for name, told in self.notices.items() if Notice.STARTED in told]
        if not self.has_stopped_two and self._have_spoken() and len(started) == 3:
            self.has_stopped_two = True
            # The second stop must not touch the first one's grace period.
            self.apis["deaf"].stop()
            self.apis["obeys"].stop()
        elif len(started) == 3 and not self.has_stopped_two:
            assert self.host is not None
            self.host.loop.timer(self._look).start(0.01)
        elif "second" in self.outcomes and self.apis["stays"].state().status == "running":
            self.states_at_exec.append(self.apis["stays"].state().status)
            self.apis["stays"].stop()
        elif {"deaf", "obeys"} <= self.outcomes.keys() and "second" not in self.apis:
            self.states_at_exec.append(self.apis["stays"].state().status)
            sink = f"file:{self.directory / 'second'}.log"
            config = ProcessConfig(stdout=sink, stderr=sink)
            self._fail_to_exec(config)
            self._follow("second", self.apis["stays"].exec("second", self.process, config))

    def _fail_to_exec(self, config: ProcessConfig) -> None:
        """Try an exec whose process.json cannot be written: it leaves nothing behind."""
        before, limits = _open_fds(), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        try:
            self.apis["stays"].exec("second", self.process, config)
        except ShimError as error:
            self.refusals.append(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert _open_fds() == before

    def _have_spoken(self) -> bool:
        """Say whether each has installed its handlers, of which its first line tells."""
        logs = [self.directory / f"{name}.log" for name in ("deaf", "obeys", "stays")]
        return all(log.exists() and log.read_text() for log in logs)


def run(directory: Path, runtime: str, bundles: dict[str, Path], process: dict[str, Any]) -> None:
    """Run the scenario in a child, and check what came of it."""
    result = directory / "result"

    def work() -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        before = _open_fds()
        pod = Pod(directory, runtime, bundles)
        pod.run(process)
        assert _open_fds() == before
        ends = {name: str(outcome.termination) for name, outcome in pod.outcomes.items()}
        errors = [str(outcome.error) for outcome in pod.outcomes.values() if outcome.error]
        told = {name: [each.name for each in told] for name, told in pod.notices.items()}
        result.write_text(
            json.dumps(
                [ends, errors, told, pod.states_at_exec, pod.refusals, pod.published_at_start]
            )
        )

    with forked(work) as child:
        assert child.wait() == Exited(0)
    ends, errors, told, states, refusals, published = json.loads(result.read_text())
    assert ends == {
        "deaf": str(Killed(signal.SIGKILL)),
        "obeys": str(Exited(3)),
        "second": str(Exited(5)),
        "stays": str(Exited(4)),
    }, (ends, errors)
    assert errors == []
    assert sorted(published) == [False, False, True], "`stays` alone is adoptable"
    (refusal,) = refusals
    assert refusal.startswith("exec second: ")
    assert refusal.endswith("/second: file too large")
    assert states == ["running", "running"], "the third outlives both, and its exec"
    life = ["CREATED", "STARTED", "EXITED", "DRAINED", "DELETED"]
    assert told == {"deaf": life, "obeys": life, "stays": life, "second": life}
    texts = {name: (directory / f"{name}.log").read_text() for name in ends}
    assert texts == {
        "deaf": "deaf\n",
        "obeys": "obeys\nbye\n",
        "stays": "stays\n",
        "second": "second\n",
    }
    (stays,) = (path for path in directory.glob("*/second"))
    assert (stays / "exitStatus").read_text() == "5"


def _open_fds() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # that of the listing
            continue
    return found
