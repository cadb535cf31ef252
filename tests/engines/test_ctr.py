"""Containers of `ctr` through a real containerd: the stock shim and ours keep the same promises."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.engines.image import IMAGE
from tests.harness import waiting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.engines.containerd import Containerd

pytestmark = [pytest.mark.engine, pytest.mark.process]

RM = ["--rm"]
MUCH = "line\n" * ((1 << 20) // 5)
"""More than a fifo holds, and less than the pipes of a shim that grows its fifo."""
STAYS = ["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done"]


@contextmanager
def detached(
    cd: Containerd, runtime: str, name: str, *command: str, options: Sequence[str] = ()
) -> Iterator[None]:
    """Start a container that no client waits for; kill and remove it at the end."""
    cd.run(runtime, name, *command, options=["-d", *options])
    try:
        yield
    finally:
        cd.ctr("task", "kill", "-s", "KILL", name, check=False)
        waiting.wait_true(lambda: cd.status(name) in ("", "STOPPED"))
        cd.ctr("task", "rm", name, check=False)
        cd.ctr("container", "rm", name)


def test_output_and_status_are_the_containers(cd: Containerd, lossless: str) -> None:
    script = "echo out; echo err >&2; exit 7"
    done = cd.run(lossless, "a", "sh", "-c", script, options=RM, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_a_killed_container_has_the_status_of_its_signal(cd: Containerd, runtime: str) -> None:
    cd.run(runtime, "a", *STAYS, options=["-d"])
    cd.ctr("task", "kill", "-s", "KILL", "a")
    cd.wait_status("a", "STOPPED")
    assert cd.remove_task("a") == 137
    cd.ctr("container", "rm", "a")


def test_much_output_comes_whole(cd: Containerd, lossless: str) -> None:
    script = "dd if=/dev/zero bs=1M count=48 2>/dev/null | tr '\\0' x; echo end >&2"
    command = cd.words("run", "--rm", "--runtime", lossless, IMAGE, "a", "sh", "-c", script)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    assert done.stderr == b"end\n"
    wanted = hashlib.sha256(b"x" * (48 << 20)).digest()
    assert hashlib.sha256(done.stdout).digest() == wanted


def test_short_containers_lose_no_line(cd: Containerd, lossless: str) -> None:
    """Clients of containerd 1.6 close their fifos as soon as Wait is answered."""
    for number in range(8):
        done = cd.run(lossless, f"a{number}", "echo", "last word", options=RM)
        assert done.stdout == "last word\n", number


def test_input_reaches_the_container_and_its_end_too(cd: Containerd, lossless: str) -> None:
    done = cd.run(lossless, "a", "sha256sum", options=RM, input=MUCH)
    assert done.stdout.split()[0] == hashlib.sha256(MUCH.encode()).hexdigest()


def test_a_terminal_is_the_containers(cd: Containerd, runtime: str) -> None:
    leader, follower = os.openpty()
    try:
        script = "test -t 0 && test -t 1 && read -r line && echo got:$line && exit 4"
        command = cd.words(
            "run", "--rm", "-t", "--runtime", runtime, IMAGE, "a", "sh", "-c", script
        )
        with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower) as client:
            waiting.wait_true(lambda: cd.status("a") == "RUNNING")
            os.write(leader, b"word\n")
            said = waiting.read_until(leader, b"got:word")
            assert client.wait(waiting.LIMIT_S) == 4, said
    finally:
        os.close(leader)
        os.close(follower)


def test_a_program_that_is_not_there_is_an_error_that_leaves_nothing(
    cd: Containerd, runtime: str
) -> None:
    done = cd.run(runtime, "a", "/no/such/program", options=RM, check=False)
    assert done.returncode != 0
    assert "OCI runtime create failed" in done.stderr
    assert "no such file or directory" in done.stderr
    cd.ctr("container", "rm", "a", check=False)  # ctr 1.6 leaves the container, not the shim


def test_a_container_is_started_killed_and_removed_step_by_step(
    cd: Containerd, runtime: str
) -> None:
    with cd.events() as events:
        cd.run(runtime, "a", *STAYS, options=["-d"])
        task = cd.tasks()["a"]
        assert task.status == "RUNNING"
        assert cd.sandbox.pid_outside(task.pid)
        (shim,) = cd.shims()
        refused = cd.ctr("task", "rm", "a", check=False)
        assert refused.returncode != 0
        cd.ctr("task", "kill", "-s", "TERM", "a")
        told = events.wait_for("/tasks/exit")
        cd.wait_status("a", "STOPPED")
        assert cd.remove_task("a") == 3
        told += events.wait_for("/tasks/delete")
        cd.ctr("container", "rm", "a")
        waiting.wait_process(shim.pid)
    topics = [event.topic for event in told]
    assert topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    tasks = [event.fields for event in told]
    assert {fields["container_id"] for fields in tasks} == {"a"}
    assert {fields["pid"] for fields in tasks} == {task.pid}
    assert [fields.get("exit_status") for fields in tasks] == [None, None, 3, 3]


def test_a_second_process_has_its_own_streams_and_status(cd: Containerd, lossless: str) -> None:
    with detached(cd, lossless, "a", *STAYS), cd.events() as events:
        script = "cat; echo err >&2; exit 5"
        done = cd.ctr(
            *("task", "exec", "--exec-id", "e", "a", "sh", "-c", script),
            check=False,
            input="in\n",
        )
        assert (done.returncode, done.stdout, done.stderr) == (5, "in\n", "err\n")
        told = events.wait_for("/tasks/exit")
        assert [event.topic for event in told] == [
            "/tasks/exec-added",
            "/tasks/exec-started",
            "/tasks/exit",
        ]
        assert told[-1].fields["id"] == "e"
        missing = cd.ctr("task", "exec", "--exec-id", "f", "a", "/no/such", check=False)
        assert missing.returncode != 0
        assert cd.status("a") == "RUNNING"


def test_many_execs_leave_nothing_in_the_shim(cd: Containerd, runtime: str) -> None:
    with detached(cd, runtime, "a", *STAYS):
        (shim,) = cd.shims()
        counts = []
        for number in range(6):
            cd.ctr("task", "exec", "--exec-id", f"e{number}", "a", "true")
            counts.append(len(os.listdir(f"/proc/{shim.pid}/fd")))
        assert counts[-1] <= counts[1], counts


def test_a_paused_container_stands_still_until_it_is_resumed(cd: Containerd, runtime: str) -> None:
    with detached(cd, runtime, "a", *STAYS), cd.events() as events:
        cd.ctr("task", "pause", "a")
        assert cd.status("a") == "PAUSED"
        cd.ctr("task", "resume", "a")
        assert cd.status("a") == "RUNNING"
        topics = [event.topic for event in events.wait_for("/tasks/resumed")]
        assert topics == ["/tasks/paused", "/tasks/resumed"]


def test_the_processes_of_a_container_are_told_apart(cd: Containerd, runtime: str) -> None:
    with detached(cd, runtime, "a", *STAYS):
        cd.ctr("task", "exec", "-d", "--exec-id", "e", "a", "sleep", "1000")
        lines = [line.split() for line in cd.ctr("task", "ps", "a").stdout.splitlines()[1:]]
        init = str(cd.tasks()["a"].pid)
        assert [init] in [line[:1] for line in lines]
        assert [line for line in lines if "e" in " ".join(line[1:])]
        cd.ctr("task", "kill", "-s", "KILL", "--exec-id", "e", "a")


def test_containers_of_a_group_share_one_shim(cd: Containerd, lossless: str) -> None:
    group = ["--annotation", "io.containerd.runc.v2.group=g"]
    with detached(cd, lossless, "a", *STAYS, options=group):
        with detached(cd, lossless, "b", *STAYS, options=group):
            (shim,) = cd.shims()
        assert [other.pid for other in cd.shims()] == [shim.pid]
        assert cd.status("a") == "RUNNING"
        done = cd.run(lossless, "c", "echo", "third", options=["--rm", *group])
        assert done.stdout == "third\n"
    waiting.wait_process(shim.pid)


def test_output_goes_to_a_file_if_the_client_says_so(
    cd: Containerd, runtime: str, tmp_path: Path
) -> None:
    log = tmp_path / "a.log"
    with detached(
        cd,
        runtime,
        "a",
        "sh",
        "-c",
        "echo out; echo err >&2; exec sleep 1000",  # at its end the stock shim may lose both
        options=["--log-uri", f"file://{log}"],
    ):
        waiting.wait_true(lambda: sorted(log.read_text().splitlines()) == ["err", "out"])


def test_a_log_program_gets_the_output(cd: Containerd, runtime: str, tmp_path: Path) -> None:
    program, log = tmp_path / "logger", tmp_path / "log"
    program.write_text(
        f"#!/bin/sh\nexec 5>&-\necho $CONTAINER_ID $CONTAINER_NAMESPACE $* >{log}.told\n"
        f"cat <&3 >{log}.out &\ncat <&4 >{log}.err\nwait\n"
    )
    program.chmod(0o755)
    uri = f"binary://{program}?key=value"
    script = "echo out; echo err >&2"
    with detached(cd, runtime, "a", "sh", "-c", script, options=["--log-uri", uri]):
        cd.wait_status("a", "STOPPED")
        waiting.wait_true(lambda: (tmp_path / "log.err").read_text() == "err\n")
        waiting.wait_true(lambda: (tmp_path / "log.out").read_text() == "out\n")
    assert (tmp_path / "log.told").read_text() == f"a {cd.namespace} key value\n"


def test_memory_that_runs_out_is_an_event(cd: Containerd, runtime: str) -> None:
    # The first process lives: it is the other that takes the memory.
    script = "dd if=/dev/zero of=/dev/null bs=64M count=1; sleep 1000"
    options = ["--memory-limit", str(16 << 20)]
    with (
        cd.events() as events,
        detached(cd, runtime, "a", "sh", "-c", script, options=options),
    ):
        told = events.wait_for("/tasks/oom")
        assert told[-1].fields["container_id"] == "a"


def test_containerd_finds_its_containers_again(cd: Containerd, lossless: str) -> None:
    with (
        detached(cd, lossless, "a", *STAYS),
        detached(cd, lossless, "b", *STAYS),
    ):
        ends = cd.sandbox.pid_outside(cd.tasks()["b"].pid)
        cd.end(signal.SIGKILL)
        os.kill(ends, signal.SIGTERM)
        waiting.wait_process(ends)
        cd.start()
        assert cd.status("a") == "RUNNING"
        cd.wait_status("b", "STOPPED")
        assert cd.ctr("task", "exec", "--exec-id", "e", "a", "echo", "here").stdout == "here\n"
        assert cd.remove_task("b") == 3


def test_a_rootfs_of_the_clients_own_is_a_container_too(
    cd: Containerd, lossless: str, rootfs: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(rootfs, tmp_path / "own", symlinks=True)  # runc makes directories in it
    words = ("run", "--rm", "--runtime", lossless, "--read-only", "--rootfs", own, "a")
    assert cd.ctr(*words, "/bin/echo", "here").stdout == "here\n"
