"""Our shim is killed -9: containerd, its clients and its containers do not notice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.wire import messages
from tests.engines.containerd import OURS
from tests.engines.image import IMAGE
from tests.engines.shim_client import ShimClient, exec_values, socket_of
from tests.engines.test_ctr import STAYS, detached
from tests.engines.test_ctr_reload import (
    COUNTS,
    GROUP,
    LIFE,
    LINES,
    E,
    client_of,
    reload,
    told_of,
)
from tests.engines.test_ctr_reload import pod as pod
from tests.harness import waiting

if TYPE_CHECKING:
    from tests.engines.containerd import Containerd
    from tests.engines.sandbox import Process

pytestmark = [pytest.mark.engine, pytest.mark.process]

KILLS = 5
NUMBERS = [b"%d" % number for number in range(1, LINES + 1)]


def shim_of(cd: Containerd) -> Process:
    """Return the one shim of the daemon, when no child of it has its title still."""
    found: list[Process] = []

    def is_alone() -> bool:
        found[:] = cd.shims()
        return len(found) == 1

    waiting.wait_true(is_alone)
    return found[0]


def kill(cd: Containerd) -> Process:
    """Kill the one shim; return its successor, which serves."""
    dead = shim_of(cd)
    os.kill(dead.pid, signal.SIGKILL)
    waiting.wait_process(dead.pid)
    return shim_of(cd)


def client_at(cd: Containerd) -> ShimClient:
    """Return a client of the one shim's socket."""
    # A shim that is killed between an answer and its note answers again: containerd drops that.
    return ShimClient(socket_of(cd), drops_second_answers=True)


def holders(cd: Containerd) -> list[Process]:
    """Return the fd holders of the daemon's groups."""
    return [each for each in cd.sandbox.processes() if each.title.endswith(" [fds]")]


def holder_of(cd: Containerd) -> Process:
    """Return the fd holder of the one group."""
    (found,) = holders(cd)
    return found


def kill_holder(cd: Containerd) -> None:
    """Kill the one fd holder, and wait for the next one."""
    dead = holder_of(cd)
    os.kill(dead.pid, signal.SIGKILL)
    waiting.wait_process(dead.pid)
    waiting.wait_true(lambda: len(holders(cd)) == 1)


def test_a_container_and_its_waiting_client_do_not_notice_five_kills(cd: Containerd) -> None:
    words = ["run", "--rm", "--runtime", OURS, IMAGE, "a", "sh", "-c", COUNTS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with cd.events() as events, client_of(cd, *words, **pipes) as client:
        assert client.stdout is not None
        data = waiting.read_until(client.stdout.fileno(), b"\n100\n")
        for number in range(KILLS):
            kill(cd)
            assert cd.status("a") == "RUNNING", number
        rest, errors = client.communicate(timeout=waiting.LIMIT_S)
        told = events.wait_for("/tasks/delete")
    assert (client.returncode, errors) == (7, b"")
    assert (data + rest).split() == NUMBERS
    assert [each.topic for each in told] == LIFE
    assert told[2].fields["exit_status"] == 7


def test_an_exec_and_its_waiting_client_do_not_notice_five_kills(pod: Containerd) -> None:
    with pod.events() as events:
        words = ["task", "exec", "--exec-id", "e", "a", "sh", "-c", COUNTS]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with client_of(pod, *words, **pipes) as client:
            assert client.stdout is not None
            data = waiting.read_until(client.stdout.fileno(), b"\n100\n")
            for _ in range(KILLS):
                kill(pod)
            rest, errors = client.communicate(timeout=waiting.LIMIT_S)
        told = events.wait_for("/tasks/exit")
    assert (client.returncode, errors) == (7, b"")
    assert (data + rest).split() == NUMBERS
    assert told_of(told) == [
        ("/tasks/exec-added", "e"),
        ("/tasks/exec-started", "e"),
        ("/tasks/exit", "e"),
    ]
    assert {name: task.status for name, task in pod.tasks().items()} == {
        "a": "RUNNING",
        "b": "RUNNING",
    }


def test_what_ends_while_no_shim_is_there_has_its_true_status(pod: Containerd) -> None:
    with client_at(pod) as client, pod.events() as events:
        wait = client.send("Wait", {"id": "a"})
        client.ask("State", {"id": "a"})  # so the shim has read the Wait
        init, holder, shim = pod.tasks()["a"].pid, holder_of(pod), shim_of(pod)
        outside = pod.sandbox.pid_outside(init)
        os.kill(holder.pid, signal.SIGSTOP)
        os.kill(shim.pid, signal.SIGKILL)
        os.kill(outside, signal.SIGTERM)
        waiting.wait_true(lambda: not waiting.is_alive(outside))
        os.kill(holder.pid, signal.SIGCONT)
        assert client.answer(wait)["exit_status"] == 3
        told = events.wait_for("/tasks/exit")
    assert [(each.topic, each.fields["exit_status"]) for each in told] == [("/tasks/exit", 3)]
    assert pod.status("a") == "STOPPED"


def test_a_killed_fd_holder_is_replaced_and_the_next_kill_survived(pod: Containerd) -> None:
    shim = shim_of(pod)
    kill_holder(pod)
    assert shim_of(pod).pid == shim.pid
    with client_at(pod) as client:
        wait = client.send("Wait", {"id": "a"})
        client.ask("State", {"id": "a"})  # the fd holder has the connection, too
        for _ in range(2):
            kill(pod)
        pod.ctr("task", "kill", "-s", "TERM", "a")
        assert client.answer(wait)["exit_status"] == 3
    assert pod.ctr("task", "exec", "--exec-id", "e", "b", "echo", "hi").stdout == "hi\n"


def test_containers_come_and_go_after_a_kill(cd: Containerd) -> None:
    with detached(cd, OURS, "a", *STAYS, options=GROUP), cd.events() as events:
        kill(cd)
        script = "echo third; exit 6"
        done = cd.run(OURS, "c", "sh", "-c", script, options=["--rm", *GROUP], check=False)
        assert (done.returncode, done.stdout) == (6, "third\n")
        assert [each.topic for each in events.wait_for("/tasks/delete")] == LIFE
        last = kill(cd)
        cd.ctr("task", "kill", "-s", "TERM", "a")
        told = events.wait_for("/tasks/exit")
        assert [each.fields["exit_status"] for each in told] == [3]
        cd.wait_status("a", "STOPPED")
        last = kill(cd)
        assert cd.status("a") == "STOPPED"
        assert cd.remove_task("a") == 3
    waiting.wait_process(last.pid)


def test_a_connection_goes_on_with_half_a_request(pod: Containerd) -> None:
    with client_at(pod) as client, client_at(pod) as other:
        client.ask("Exec", exec_values("exit 9"))
        wait = client.send("Wait", E)
        state, frame = client.encode("State", E)
        client.sock.sendall(frame[:-3])
        other.ask("State", {"id": "a"})  # by now the shim has read the half, too
        next_shim = kill(pod)
        client.sock.sendall(frame[-3:])
        assert client.answer(state)["status"] == messages.CREATED
        pid = client.ask("Start", E)["pid"]
        assert client.answer(wait)["exit_status"] == 9
        kill(pod)
        deleted = client.ask("Delete", E)
        assert (deleted["exit_status"], deleted["pid"]) == (9, pid)
        told = other.ask("Connect", {"id": "a"})
        assert told["shim_pid"] == pod.sandbox.pid_inside(shim_of(pod).pid)
        assert next_shim.pid != shim_of(pod).pid


def test_a_start_that_waits_for_a_reader_is_refused(pod: Containerd) -> None:
    inside = pod.bundle("a") / "out"
    os.mkfifo(inside)
    with client_at(pod) as client:
        words = {"stdout": f"{client.ask('State', {'id': 'a'})['bundle']}/out"}
        client.ask("Exec", exec_values("echo word; exit 4", **words))
        start = client.send("Start", E)
        client.ask("State", E)
        kill(pod)
        with pytest.raises(AssertionError, match=r"14.*unavailable"):
            client.answer(start)
        client.ask("Delete", E)
        client.ask("Exec", exec_values("exit 4"))
        client.ask("Start", E)
        assert client.ask("Wait", E)["exit_status"] == 4
        client.ask("Delete", E)


def create_values(cd: Containerd, rootfs: Path, script: str, **config: Any) -> dict[str, Any]:
    """Make a bundle of the group's container `a`, with another id; return a Create request."""
    bundle = cd.directory / f"bundle-{os.urandom(3).hex()}"  # each container has its own
    bundle.mkdir()
    document = json.loads((cd.bundle("a") / "config.json").read_text())
    document["root"]["path"] = str(rootfs)
    document["process"]["args"] = ["/bin/sh", "-c", script]
    document["linux"]["cgroupsPath"] = f"/{cd.cgroup}/c"
    (bundle / "config.json").write_text(json.dumps({**document, **config}))
    return {"id": "c", "bundle": str(bundle), "stdout": f"file://{bundle}/out"}


C = {"id": "c"}


def test_a_created_container_is_started_by_the_successor(pod: Containerd, rootfs: Path) -> None:
    values = create_values(pod, rootfs, "echo hi; exit 4")
    with client_at(pod) as client:
        pid = client.ask("Create", values)["pid"]
        kill(pod)
        told = client.ask("State", C)
        assert (told["status"], told["pid"]) == (messages.CREATED, pid)
        wait = client.send("Wait", C)
        client.ask("Start", C)
        assert client.answer(wait)["exit_status"] == 4
        kill(pod)
        assert client.ask("State", C)["status"] == messages.STOPPED
        assert client.ask("Delete", C)["exit_status"] == 4
    assert Path(values["bundle"], "out").read_text() == "hi\n"


def test_a_create_whose_runtime_died_with_the_shim_is_refused(
    pod: Containerd, rootfs: Path
) -> None:
    reached, goes = pod.directory / "reached", pod.directory / "goes"
    for fifo in (reached, goes):
        os.mkfifo(fifo)
    script = f"echo >{reached}; read -r word <{goes}"
    hooks = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}
    with client_at(pod) as client:
        create = client.send("Create", create_values(pod, rootfs, "exit 4", hooks=hooks))
        reached.read_text()  # the runtime runs the hook
        # Others are served meanwhile: the shim never waits for a runtime.
        assert client.ask("State", {"id": "a"})["status"] == messages.RUNNING
        assert client.ask("Connect", C)["task_pid"] == 0
        kill(pod)
        with pytest.raises(AssertionError, match=r"14.*unavailable"):
            client.answer(create)
        goes.write_text("on\n")  # the hook has outlived its runtime
        assert client.ask("Connect", C)["task_pid"] == 0
        client.ask("Create", create_values(pod, rootfs, "exit 4"))
        client.ask("Start", C)
        assert client.ask("Wait", C)["exit_status"] == 4
        assert client.ask("Delete", C)["exit_status"] == 4
    for fifo in (reached, goes):
        fifo.unlink()


def test_a_run_whose_shim_is_killed_at_any_instant_ends_and_leaves_nothing(
    cd: Containerd,
) -> None:
    """Its client may be told of it; it is not left waiting, and no status is invented."""
    words = ["run", "--rm", "--runtime", OURS, IMAGE, "a", "sh", "-c", "echo hi; exit 4"]
    for number in range(6):
        with client_of(cd, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
            waiting.wait_true(lambda: is_at(cd, number) or client.poll() is not None)  # noqa: B023
            for shim in cd.shims():
                with suppress(ProcessLookupError):
                    os.kill(shim.pid, signal.SIGKILL)
            said, errors = client.communicate(timeout=waiting.LIMIT_S)
        if client.returncode == 4:
            assert said == b"hi\n"
        else:
            assert b"unavailable" in errors, (number, client.returncode, said, errors)
            cd.ctr("container", "rm", "a", check=False)
        cd.wait_clean()


def is_at(cd: Containerd, number: int) -> bool:
    """Return whether a run is so far: the shim makes these files one after the other."""
    found = cd.bundle("a") / "forkshim/init"
    return found.exists() and len(os.listdir(found)) >= number


def test_a_paused_container_stays_paused_and_a_half_done_freeze_is_undone(
    pod: Containerd,
) -> None:
    pod.ctr("task", "pause", "a")
    # What a runtime that was killed in `update` or `kill --all` leaves (cgroup v1).
    root = ("--root", f"/run/containerd/runc/{pod.namespace}")
    pod.sandbox.run("runc", *root, "pause", "b")
    kill(pod)
    assert pod.status("a") == "PAUSED"
    pod.ctr("task", "resume", "a")
    assert pod.ctr("task", "exec", "--exec-id", "e", "a", "echo", "on").stdout == "on\n"
    waiting.wait_true(lambda: '"running"' in pod.sandbox.run("runc", *root, "state", "b").stdout)
    pod.wait_status("b", "RUNNING")  # the runtime's `resume` has to end, too


def test_a_terminal_stays_the_containers(pod: Containerd) -> None:
    leader, follower = os.openpty()
    try:
        words = ["task", "exec", "-t", "--exec-id", "e", "a", "sh", "-c", f"echo begins; {COUNTS}"]
        ends = {"stdin": follower, "stdout": follower, "stderr": follower}
        with client_of(pod, *words, **ends) as client:
            data = waiting.read_until(leader, b"begins")
            for _ in range(2):
                kill(pod)
            data += waiting.read_until(leader, b"\n%d\r" % LINES)
            assert client.wait(waiting.LIMIT_S) == 7
    finally:
        os.close(leader)
        os.close(follower)
    assert data.split() == [b"begins", *NUMBERS]


def test_input_reaches_the_container_and_its_end_too(cd: Containerd) -> None:
    words = ["run", "--rm", "--runtime", OURS, IMAGE, "a", "sh", "-c", "echo begins; cat; exit 5"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with client_of(cd, *words, **pipes) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        said = waiting.read_until(client.stdout.fileno(), b"begins\n")
        kill(cd)
        os.write(client.stdin.fileno(), b"first\n")
        said += waiting.read_until(client.stdout.fileno(), b"first\n")
        kill(cd)
        rest, _errors = client.communicate(b"last\n", timeout=waiting.LIMIT_S)
    assert (client.returncode, said + rest) == (5, b"begins\nfirst\nlast\n")


def test_a_shim_is_killed_while_containerd_is_away(pod: Containerd) -> None:
    outside = pod.sandbox.pid_outside(pod.tasks()["a"].pid)
    pod.end(signal.SIGKILL)
    kill(pod)
    os.kill(outside, signal.SIGTERM)
    waiting.wait_process(outside)
    last = kill(pod)
    pod.start()
    pod.wait_status("a", "STOPPED")
    assert pod.remove_task("a") == 3
    assert pod.status("b") == "RUNNING"
    assert shim_of(pod).pid == last.pid
    done = pod.ctr("task", "exec", "--exec-id", "e", "b", "sh", "-c", "exit 6", check=False)
    assert done.returncode == 6


def test_an_fd_holder_keeps_nothing_of_what_is_gone(pod: Containerd) -> None:
    directory = f"/proc/{holder_of(pod).pid}/fd"
    before = len(os.listdir(directory))
    for _ in range(5):
        pod.ctr("task", "exec", "--exec-id", "e", "a", "true")
        with client_at(pod) as client:
            client.ask("State", {"id": "a"})
            waiting.wait_true(lambda: len(os.listdir(directory)) > before)
    waiting.wait_true(lambda: len(os.listdir(directory)) == before)
    kill(pod)
    waiting.wait_true(lambda: len(os.listdir(directory)) == before)


def test_reloads_and_kills_take_turns(pod: Containerd) -> None:
    with client_at(pod) as client:
        wait = client.send("Wait", {"id": "a"})
        client.ask("State", {"id": "a"})  # so the shim has read the Wait
        for _ in range(2):
            reload(pod, shim_of(pod))
            kill(pod)
        kill_holder(pod)
        reload(pod, shim_of(pod))
        kill(pod)
        pod.ctr("task", "kill", "-s", "TERM", "a")
        assert client.answer(wait)["exit_status"] == 3
    done = pod.ctr("task", "exec", "--exec-id", "e", "b", "echo", "on")
    assert done.stdout == "on\n"
