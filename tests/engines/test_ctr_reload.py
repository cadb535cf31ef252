"""Our shim is reloaded in place: no client and no container notices."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.wire import messages
from tests.engines.containerd import OURS
from tests.engines.image import IMAGE
from tests.engines.shim_client import ShimClient, exec_values, socket_of
from tests.engines.test_ctr import STAYS, detached
from tests.harness import waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engines.containerd import Containerd, Event
    from tests.engines.sandbox import Process

pytestmark = [pytest.mark.engine, pytest.mark.process]

GROUP = ["--annotation", "io.containerd.runc.v2.group=g"]
LINES = 4000
COUNTS = f"i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo $i; sleep 0.001; done; exit 7"
RELOADS = 3
E = {"id": "a", "exec_id": "e"}
LIFE = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


@pytest.fixture
def pod(cd: Containerd) -> Iterator[Containerd]:
    """A daemon with two containers of one group, `a` and `b`."""
    with ExitStack() as stack:
        for name in ("a", "b"):
            stack.enter_context(detached(cd, OURS, name, *STAYS, options=GROUP))
        yield cd


def shim_of(cd: Containerd) -> Process:
    """Return the one shim of the daemon."""
    (shim,) = cd.shims()
    return shim


def reloads(cd: Containerd, name: str) -> int:
    """Return how often the container's log says that the shim was reloaded."""
    return (cd.bundle(name) / "forkshim/init/shim-log.json").read_text().count("reloaded: version")


def reload(cd: Containerd, shim: Process, name: str = "a") -> None:
    """Reload the shim, and wait until the next program serves."""
    before = reloads(cd, name)
    os.kill(shim.pid, signal.SIGHUP)
    waiting.wait_true(lambda: reloads(cd, name) == before + 1)


@contextmanager
def client_of(cd: Containerd, *words: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run `ctr WORDS`; a failed test kills it."""
    options = {"stdin": subprocess.DEVNULL, **options}
    with subprocess.Popen(cd.words(*words), **options) as client:
        try:
            yield client
        finally:
            for pid in waiting.children_of(client.pid):  # of nsenter(1)
                os.kill(pid, signal.SIGKILL)


def told_of(events: list[Event]) -> list[tuple[str, str]]:
    """Return topic and id of each event."""
    return [
        (each.topic, each.fields.get("exec_id") or each.fields.get("id") or "") for each in events
    ]


def test_an_exec_and_its_waiting_client_do_not_notice_a_reload(pod: Containerd) -> None:
    shim = shim_of(pod)
    with pod.events() as events:
        words = ["task", "exec", "--exec-id", "e", "a", "sh", "-c", COUNTS]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with client_of(pod, *words, **pipes) as client:
            assert client.stdout is not None
            assert client.stderr is not None
            data = waiting.read_until(client.stdout.fileno(), b"\n100\n")
            for _ in range(RELOADS):
                reload(pod, shim)
            rest, errors = client.communicate(timeout=waiting.LIMIT_S)
        told = events.wait_for("/tasks/exit")
    assert (client.returncode, errors) == (7, b"")
    assert (data + rest).split() == [b"%d" % number for number in range(1, LINES + 1)]
    assert told_of(told) == [
        ("/tasks/exec-added", "e"),
        ("/tasks/exec-started", "e"),
        ("/tasks/exit", "e"),
    ]
    assert reloads(pod, "b") == RELOADS
    assert shim_of(pod).pid == shim.pid


def open_fds_of(cd: Containerd, shim: Process) -> int:
    """Return how many descriptors the shim has, when it has closed what its clients have closed."""
    with ShimClient(socket_of(cd)) as client:
        client.ask("State", {"id": "a"})
        return len(os.listdir(f"/proc/{shim.pid}/fd"))


def test_reloads_leave_no_descriptor_behind(pod: Containerd) -> None:
    """Neither those of the program before, nor those of an exec that a reload has carried."""
    shim = shim_of(pod)
    reload(pod, shim)
    pod.ctr("task", "exec", "--exec-id", "e", "a", "true")  # its events need a connection
    counts = [open_fds_of(pod, shim)]
    for _ in range(3):
        pod.ctr("task", "exec", "-d", "--exec-id", "e", "a", *STAYS)
        reload(pod, shim)
        pod.ctr("task", "kill", "-s", "KILL", "--exec-id", "e", "a")
        with ShimClient(socket_of(pod)) as client:
            assert client.ask("Wait", E)["exit_status"] == 137
            client.ask("Delete", E)
        counts.append(open_fds_of(pod, shim))
    assert counts == counts[:1] * 4


def test_a_terminal_stays_the_containers_over_reloads(pod: Containerd) -> None:
    shim = shim_of(pod)
    leader, follower = os.openpty()
    try:
        script = f"echo begins; {COUNTS}"
        words = ["task", "exec", "-t", "--exec-id", "e", "a", "sh", "-c", script]
        ends = {"stdin": follower, "stdout": follower, "stderr": follower}
        with client_of(pod, *words, **ends) as client:
            data = waiting.read_until(leader, b"begins")
            reload(pod, shim)
            last = b"\n%d\r" % LINES
            data += waiting.read_until(leader, last)
            assert client.wait(waiting.LIMIT_S) == 7
    finally:
        os.close(leader)
        os.close(follower)
    wanted = [b"begins", *(b"%d" % number for number in range(1, LINES + 1))]
    assert data.split() == wanted


def test_containers_come_and_go_after_a_reload(cd: Containerd) -> None:
    script = "read -r word; echo got $word; exit 5"
    with detached(cd, OURS, "a", *STAYS, options=GROUP), cd.events() as events:
        shim = shim_of(cd)
        words = ["run", "--rm", "--runtime", OURS, *GROUP, IMAGE, "b", "sh", "-c", script]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with client_of(cd, *words, **pipes) as client:
            told = events.wait_for("/tasks/start")
            reload(cd, shim)
            said, _errors = client.communicate(b"word\n", timeout=waiting.LIMIT_S)
        assert (client.returncode, said) == (5, b"got word\n")
        told += events.wait_for("/tasks/delete")
        assert [each.topic for each in told] == LIFE
        done = cd.run(
            OURS, "c", "sh", "-c", "echo third; exit 6", options=["--rm", *GROUP], check=False
        )
        assert (done.returncode, done.stdout) == (6, "third\n")
        assert [each.topic for each in events.wait_for("/tasks/delete")] == LIFE
        cd.ctr("task", "kill", "-s", "TERM", "a")
        told = events.wait_for("/tasks/exit")
        assert [each.fields["exit_status"] for each in told] == [3]
        cd.wait_status("a", "STOPPED")
        assert cd.remove_task("a") == 3
    waiting.wait_process(shim.pid)


def test_stopped_tasks_and_execs_that_are_not_deleted_are_reloaded_too(pod: Containerd) -> None:
    shim = shim_of(pod)
    with ShimClient(socket_of(pod)) as client:
        client.ask("Exec", exec_values("exit 9"))
        pid = client.ask("Start", E)["pid"]
        assert client.ask("Wait", E)["exit_status"] == 9
        pod.ctr("task", "kill", "-s", "TERM", "b")
        init = client.ask("State", {"id": "b"})["pid"]
        assert client.ask("Wait", {"id": "b"})["exit_status"] == 3
        reload(pod, shim)
        assert client.ask("State", E)["status"] == messages.STOPPED
        assert (pod.status("a"), pod.status("b")) == ("RUNNING", "STOPPED")
        assert client.ask("Delete", E)["pid"] == pid
        deleted = client.ask("Delete", {"id": "b"})
        assert (deleted["exit_status"], deleted["pid"]) == (3, init)


def test_a_connection_goes_on_with_half_a_request_and_an_open_wait(pod: Containerd) -> None:
    shim, path = shim_of(pod), socket_of(pod)
    with ShimClient(path) as client, ShimClient(path) as other:
        client.ask("Exec", exec_values("exit 9"))
        wait = client.send("Wait", E)
        state, frame = client.encode("State", E)
        client.sock.sendall(frame[:-3])
        other.ask("State", {"id": "a"})  # by now the shim has read the half, too
        reload(pod, shim)
        client.sock.sendall(frame[-3:])
        assert client.answer(state)["status"] == messages.CREATED
        pid = client.ask("Start", E)["pid"]
        assert client.answer(wait)["exit_status"] == 9
        deleted = client.ask("Delete", E)
        assert (deleted["exit_status"], deleted["pid"]) == (9, pid)
        reload(pod, shim)
        told = other.ask("Connect", {"id": "a"})
        assert told["shim_pid"] == pod.sandbox.pid_inside(shim.pid)
        assert told["task_pid"] == pod.tasks()["a"].pid
    with ShimClient(path) as later:
        assert later.ask("State", {"id": "b"})["status"] == messages.RUNNING


def test_a_reload_waits_for_a_start_and_its_client(pod: Containerd) -> None:
    shim = shim_of(pod)
    inside = pod.bundle("a") / "out"
    os.mkfifo(inside)
    with ShimClient(socket_of(pod)) as client:
        words = {"stdout": f"{client.ask('State', {'id': 'a'})['bundle']}/out"}
        client.ask("Exec", exec_values("echo word; exit 4", **words))
        start = client.send("Start", E)
        before = reloads(pod, "a")
        os.kill(shim.pid, signal.SIGHUP)
        assert client.ask("State", E)["pid"] == 0  # its fifo has no reader: it is being opened
        assert reloads(pod, "a") == before
        reader = os.open(inside, os.O_RDONLY)
        try:
            assert client.answer(start)["pid"] > 0
            assert waiting.read_until(reader, b"word\n") == b"word\n"
        finally:
            os.close(reader)
        assert client.ask("Wait", E)["exit_status"] == 4
        client.ask("Delete", E)
        waiting.wait_true(lambda: reloads(pod, "a") == before + 1)
        assert client.ask("State", {"id": "a"})["status"] == messages.RUNNING
