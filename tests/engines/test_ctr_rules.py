"""What clients of a shim rely on besides: orders, refusals, attached clients, crowds."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engines.image import IMAGE
from tests.engines.test_ctr import STAYS, detached
from tests.harness import waiting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.engines.containerd import Containerd, Events

pytestmark = [pytest.mark.engine, pytest.mark.process]

CROWD = 6
OWN = ["--rm"]
GROUPED = ["--rm", "--annotation", "io.containerd.runc.v2.group=g"]


def topics_of(events: Events, last: str, count: int) -> dict[str, list[str]]:
    """Wait for `count` events of a topic; returns the topics of each container in their order."""
    found: dict[str, list[str]] = defaultdict(list)
    for _each in range(count):
        for event in events.wait_for(last):
            found[event.fields["container_id"]].append(event.topic.removeprefix("/tasks/"))
    return found


def test_events_of_containers_that_end_at_once_are_in_order(cd: Containerd, runtime: str) -> None:
    """A process may be dead before the runtime's start has returned."""
    with cd.events() as events:
        for number in range(CROWD):
            cd.run(runtime, f"c{number}", "true", options=OWN)
        found = topics_of(events, "/tasks/delete", CROWD)
    assert found == {f"c{n}": ["create", "start", "exit", "delete"] for n in range(CROWD)}


def test_events_of_execs_that_end_at_once_are_in_order(cd: Containerd, runtime: str) -> None:
    with detached(cd, runtime, "a", *STAYS), cd.events() as events:
        for number in range(CROWD):
            cd.ctr("task", "exec", "--exec-id", f"e{number}", "a", "true")
        found = topics_of(events, "/tasks/exit", CROWD)
    assert found == {"a": ["exec-added", "exec-started", "exit"] * CROWD}


@pytest.mark.parametrize("options", [OWN, GROUPED], ids=["own shims", "one shim"])
def test_containers_that_run_at_once_keep_their_output_and_status(
    cd: Containerd, lossless: str, options: Sequence[str]
) -> None:
    with ExitStack() as stack:
        clients = []
        for number in range(CROWD):
            script = f"echo I am {number}; exit {number}"
            words = (
                "run",
                "--runtime",
                lossless,
                *options,
                IMAGE,
                f"c{number}",
                "sh",
                "-c",
                script,
            )
            client = subprocess.Popen(
                cd.words(*words),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            clients.append(stack.enter_context(client))
        ends = [
            (*client.communicate(timeout=waiting.LIMIT_S), client.returncode) for client in clients
        ]
    assert ends == [(f"I am {n}\n", "", n) for n in range(CROWD)]


def test_what_a_container_leaves_in_the_hosts_pid_namespace_dies_with_it(
    cd: Containerd, runtime: str
) -> None:
    options = ["--rm", "--with-ns", "pid:/proc/1/ns/pid"]
    script = "sleep 1000 </dev/null >/dev/null 2>&1 & exit 3"
    done = cd.run(runtime, "a", "sh", "-c", script, options=options, check=False)
    assert done.returncode == 3
    assert [each for each in cd.sandbox.processes() if "sleep 1000" in each.title] == []


def test_a_process_that_keeps_an_output_open_does_not_keep_the_client(
    cd: Containerd, lossless: str
) -> None:
    with detached(cd, lossless, "a", *STAYS):
        script = "sleep 1000 & echo said"
        done = cd.ctr("task", "exec", "--exec-id", "e", "a", "sh", "-c", script)
        assert done.stdout == "said\n"


def test_an_exec_has_a_terminal_if_the_client_has_one(cd: Containerd, runtime: str) -> None:
    leader, follower = os.openpty()
    try:
        with detached(cd, runtime, "a", *STAYS):
            script = "test -t 0 && echo ask && read -r line && echo got:$line && exit 4"
            words = cd.words("task", "exec", "-t", "--exec-id", "e", "a", "sh", "-c", script)
            with subprocess.Popen(
                words, stdin=follower, stdout=follower, stderr=follower
            ) as client:
                waiting.read_until(leader, b"ask")
                os.write(leader, b"word\n")
                waiting.read_until(leader, b"got:word")
                assert client.wait(waiting.LIMIT_S) == 4
    finally:
        os.close(leader)
        os.close(follower)


def test_a_client_may_go_and_another_come(cd: Containerd, runtime: str) -> None:
    script = "n=0; while sleep 0.02; do n=$((n+1)); echo line $n; done"
    with detached(cd, runtime, "a", "sh", "-c", script):
        for _each in range(2):
            words = cd.words("task", "attach", "a")
            with subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            ) as client:
                assert client.stdout is not None
                try:
                    said = waiting.read_until(client.stdout.fileno(), b"0\n")
                    assert b"line " in said
                finally:
                    for pid in waiting.children_of(client.pid):
                        os.kill(pid, signal.SIGKILL)
        assert cd.status("a") == "RUNNING"


def test_a_stopped_task_takes_neither_a_signal_nor_a_process(cd: Containerd, runtime: str) -> None:
    with detached(cd, runtime, "a", "true"):
        cd.wait_status("a", "STOPPED")
        killed = cd.ctr("task", "kill", "a", check=False)
        assert killed.returncode != 0
        assert "process already finished" in killed.stderr or "not found" in killed.stderr
        started = cd.ctr("task", "exec", "--exec-id", "e", "a", "true", check=False)
        assert started.returncode != 0


def test_two_execs_of_one_name_are_refused(cd: Containerd, runtime: str) -> None:
    with detached(cd, runtime, "a", *STAYS):
        cd.ctr("task", "exec", "-d", "--exec-id", "e", "a", "sleep", "1000")
        again = cd.ctr("task", "exec", "--exec-id", "e", "a", "true", check=False)
        assert again.returncode != 0
        assert "already exists" in again.stderr
        cd.ctr("task", "kill", "-s", "KILL", "--exec-id", "e", "a")


def test_the_processes_of_a_container_end_with_it(cd: Containerd, runtime: str) -> None:
    with cd.events() as events, detached(cd, runtime, "a", *STAYS):
        cd.ctr("task", "exec", "-d", "--exec-id", "e", "a", "sleep", "1000")
        events.wait_for("/tasks/exec-started")
        cd.ctr("task", "kill", "-s", "TERM", "a")
        ends = [events.wait_for("/tasks/exit")[-1].fields for _each in range(2)]
        assert {end["id"]: end["exit_status"] for end in ends} == {"a": 3, "e": 137}


def test_the_shim_is_killed_by_the_kernel_before_containerd(cd: Containerd, runtime: str) -> None:
    """Of memory that runs out; TestShimOOMScore of containerd's own tests."""
    with detached(cd, runtime, "a", *STAYS):
        (shim,) = cd.shims()
        own, its = (
            int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (cd.pid, shim.pid)
        )
        assert its == min(own + 1, 1000)


def test_a_shim_that_gets_a_term_leaves_and_containerd_deletes_its_container(
    cd: Containerd, runtime: str
) -> None:
    with cd.events() as events:
        cd.run(runtime, "a", *STAYS, options=["-d"])
        (shim,) = cd.shims()
        init = cd.sandbox.pid_outside(cd.tasks()["a"].pid)
        os.kill(shim.pid, signal.SIGTERM)
        told = events.wait_for("/tasks/delete")
        waiting.wait_process(init)
        waiting.wait_process(shim.pid)
    assert [event.fields["exit_status"] for event in told[-2:]] == [137, 137]
    cd.ctr("container", "rm", "a")


def test_an_end_while_containerd_is_down_is_told_afterwards(cd: Containerd, runtime: str) -> None:
    with detached(cd, runtime, "a", *STAYS):
        init = cd.sandbox.pid_outside(cd.tasks()["a"].pid)
        cd.end(signal.SIGKILL)
        os.kill(init, signal.SIGTERM)
        waiting.wait_process(init)
        cd.start()
        with cd.events() as events:
            cd.wait_status("a", "STOPPED")
            assert cd.remove_task("a") == 3
            told = events.wait_for("/tasks/delete")
        assert [event.fields["exit_status"] for event in told][-1] == 3
