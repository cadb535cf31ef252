"""Running the runtime: tiny scripts in its place; and what a failed create has left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from supervisor.linux import spawn
from supervisor.linux.errors import RuntimeMissingError, ShimError
from supervisor.linux.exit_status import Exited, Killed, Termination
from supervisor.oci.command_line import RuntimeCommand
from supervisor.oci.failed_create import FailedCreateCleanup, explain
from supervisor.oci.invoke import RuntimeInvoker, ask_runtime
from supervisor.state.directory import StateDirectory
from tests.harness.forked import has_no_children

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.rig import Rig

pytestmark = pytest.mark.process


def _script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def _calls(rig: Rig, name: str, cwd: str = "/") -> RuntimeInvoker:
    return RuntimeInvoker(
        rig.loop, rig.reaper, name=name, cwd=cwd, null_fd=rig.null.fileno(), environment=os.environ
    )


def test_a_runtime_is_looked_for_in_path(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeMissingError, match=r"^runtime not installed on system$"):
        _calls(rig, "runtime")
    with pytest.raises(RuntimeMissingError, match=r"^runtime not installed on system$"):
        ask_runtime("runtime", ["runtime"], environment=os.environ)
    _script(tmp_path / "runtime", "exit 7")
    ended: list[Termination] = []
    _calls(rig, "runtime").run(["runtime"], ended.append)
    rig.run_until(lambda: bool(ended))
    assert ended == [Exited(7)]


def test_a_call_gets_its_arguments_and_the_state_directory(rig: Rig, tmp_path: Path) -> None:
    runtime = _script(tmp_path / "runtime", f'echo "$PWD $*" >> {tmp_path}/called')
    calls = _calls(rig, runtime, cwd=str(tmp_path))
    ended: list[Termination] = []
    calls.run([runtime, "a", "b c"], ended.append)
    calls.run([runtime, "d"], ended.append, cwd="/")
    assert not calls.is_idle
    rig.run_until(lambda: len(ended) == 2)
    assert calls.is_idle
    assert not rig.loop.timers
    assert sorted((tmp_path / "called").read_text().splitlines()) == ["/ d", f"{tmp_path} a b c"]


def test_a_runtime_that_takes_too_long_is_killed(rig: Rig, tmp_path: Path) -> None:
    runtime = _script(tmp_path / "runtime", "read forever < fifo")
    os.mkfifo(tmp_path / "fifo")
    calls = _calls(rig, runtime, cwd=str(tmp_path))
    ended: list[Termination] = []
    calls.run([runtime], ended.append, limit_s=0.001)
    rig.run_until(lambda: bool(ended))
    assert ended == [Killed(signal.SIGKILL)]


def test_a_runtime_without_a_limit_is_killed_on_request(rig: Rig, tmp_path: Path) -> None:
    runtime = _script(tmp_path / "runtime", "read forever < fifo")
    os.mkfifo(tmp_path / "fifo")
    calls = _calls(rig, runtime, cwd=str(tmp_path))
    ended: list[Termination] = []
    pid = calls.run([runtime], ended.append, limit_s=None)
    assert not rig.loop.timers
    calls.kill(pid)
    rig.run_until(lambda: bool(ended))
    calls.kill(pid)  # reaped: the number is somebody else's by now
    for _each in range(2):
        calls.run([runtime], ended.append)
    calls.kill_running()
    rig.run_until(lambda: calls.is_idle)
    assert ended == [Killed(signal.SIGKILL)] * 3


@pytest.mark.parametrize(
    ("name", "cwd", "said"),
    [
        ("/no/such", None, "fork/exec /no/such: no such file or directory"),
        ("/etc/passwd", None, "fork/exec /etc/passwd: permission denied"),
        ("/bin/sh", "/no/dir", "fork/exec /bin/sh: chdir /no/dir: no such file or directory"),
    ],
)
def test_a_runtime_that_cannot_be_started_is_said_in_the_words_of_go(
    rig: Rig, name: str, cwd: str | None, said: str
) -> None:
    calls = _calls(rig, name)
    ended: list[Termination] = []
    with pytest.raises(ShimError) as caught:
        calls.run([name], ended.append, cwd=cwd)
    assert str(caught.value) == said
    rig.run_until(has_no_children)
    assert calls.is_idle
    assert ended == []


def test_what_a_runtime_prints_is_handed_over_at_its_end(rig: Rig, tmp_path: Path) -> None:
    runtime = _script(tmp_path / "runtime", "head -c 300000 /dev/zero; exit 3")
    got: list[tuple[Termination, bytes]] = []
    _calls(rig, runtime).capture([runtime], lambda end, output: got.append((end, output)))
    rig.run_until(lambda: bool(got))
    assert got == [(Exited(3), bytes(300_000))]


def test_a_pipe_that_a_child_of_the_runtime_still_holds_is_not_waited_for(
    rig: Rig, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    hold = os.open(tmp_path / "fifo", os.O_RDWR)
    runtime = _script(tmp_path / "runtime", f"(read go < {tmp_path}/fifo) & exit 0")
    got: list[tuple[Termination, bytes]] = []
    _calls(rig, runtime).capture([runtime], lambda end, output: got.append((end, output)))
    rig.run_until(lambda: bool(got))
    assert got == [(Exited(0), b"")]
    os.write(hold, b"go\n")
    rig.run_until(has_no_children)  # the orphan came to us
    os.close(hold)


def test_a_capture_that_cannot_be_started_leaves_no_pipe(rig: Rig) -> None:
    with pytest.raises(ShimError, match="fork/exec /no/such"):
        _calls(rig, "/no/such").capture(["x"], lambda _end, _output: None)
    rig.run_until(has_no_children)


def test_a_front_end_asks_the_runtime_and_waits(tmp_path: Path) -> None:
    runtime = _script(tmp_path / "runtime", 'echo "$@"; head -c 200000 /dev/zero; exit 1')
    assert ask_runtime(
        runtime, [runtime, "state", "web"], environment=os.environ
    ) == b"state web\n" + bytes(200_000)
    assert has_no_children()


def test_a_runtime_that_a_front_end_cannot_start_is_an_error() -> None:
    with pytest.raises(ShimError, match=r"^fork/exec /no/such: no such file or directory$"):
        ask_runtime("/no/such", ["x"], environment=os.environ)
    os.waitid(os.P_ALL, 0, os.WEXITED)


def test_a_front_end_that_inherited_an_ignored_sigchld_can_ask_all_the_same(
    tmp_path: Path,
) -> None:
    runtime = _script(tmp_path / "runtime", "echo fine")
    code = (
        "import os, signal; from supervisor.oci.invoke import ask_runtime\n"
        "assert signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN\n"
        f"assert ask_runtime({runtime!r}, ['x'], environment=os.environ) == b'fine\\n'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr


BEGAN_AT = "2016-11-09T12:00:00.000000000Z"
LATER, EARLIER = "2016-11-09T12:00:01Z", "2016-11-09T11:59:59Z"


def _remains(rig: Rig, directory: Path, state: object, *, tail: str = "") -> list[str]:
    """Run `Remains` against a runtime that records its verbs and prints `state`."""
    (directory / "state").write_text(state if isinstance(state, str) else json.dumps(state))
    text = f'echo "$@" >> {directory}/called\n[ "$1" = state ] && cat {directory}/state\n{tail}'
    runtime = _script(directory / "runtime", text)
    calls = _calls(rig, runtime)
    caller = RuntimeCommand(runtime, (), str(directory), "/bundle", "web")
    ended: list[bool] = []
    FailedCreateCleanup(rig.reaper, calls, caller, rig.log, began_at=BEGAN_AT).delete(
        lambda: ended.append(True)
    )
    rig.run_until(lambda: bool(ended) and calls.is_idle and has_no_children())
    assert ended == [True]
    called = directory / "called"
    return called.read_text().splitlines() if called.exists() else []


DELETED = ["state web", "delete --force web"]


def test_a_container_that_our_create_has_left_is_deleted(rig: Rig, tmp_path: Path) -> None:
    state = {"status": "created", "pid": 0, "bundle": "/bundle", "created": LATER}
    assert _remains(rig, tmp_path, state) == DELETED
    assert rig.messages() == []


@pytest.mark.parametrize(
    ("bundle", "created", "pid"),
    [
        ("/bundle", EARLIER, 0),
        ("/other", LATER, 0),
        ("/other", LATER, 1),
        ("/other", LATER, -1),
        ("/other", LATER, 9_999_999_999),
    ],
)
def test_anothers_container_of_our_id_is_left_alone(
    rig: Rig, tmp_path: Path, bundle: str, created: str, pid: int
) -> None:
    state = {"status": "running", "pid": pid, "bundle": bundle, "created": created}
    assert _remains(rig, tmp_path, state) == ["state web"]
    assert rig.messages("info") == ["web: not deleted, another supervisor has created it"]


def test_a_container_whose_init_is_our_child_is_ours_whatever_it_says(
    rig: Rig, tmp_path: Path
) -> None:
    rig.reaper.remember_unknown("create")
    pid = spawn.fork_worker(lambda: None)
    state = {"status": "running", "pid": pid, "bundle": "/other", "created": EARLIER}
    assert _remains(rig, tmp_path, state) == DELETED


def test_nothing_is_deleted_where_the_runtime_knows_nothing(rig: Rig, tmp_path: Path) -> None:
    assert _remains(rig, tmp_path, "container does not exist") == ["state web"]


def test_a_runtime_that_is_gone_by_the_time_of_the_delete_is_said_and_not_waited_for(
    rig: Rig, tmp_path: Path
) -> None:
    state = {"status": "created", "pid": 0, "bundle": "/bundle", "created": LATER}
    assert _remains(rig, tmp_path, state, tail='rm "$0"') == ["state web"]
    (message,) = rig.messages("warn")
    assert message == f"fork/exec {tmp_path}/runtime: no such file or directory"


def test_a_runtime_that_cannot_be_asked_is_said_and_not_waited_for(
    rig: Rig, tmp_path: Path
) -> None:
    runtime = str(tmp_path / "nowhere")
    calls = _calls(rig, runtime)
    caller = RuntimeCommand(runtime, (), str(tmp_path), "/bundle", "web")
    ended: list[bool] = []
    FailedCreateCleanup(rig.reaper, calls, caller, rig.log, began_at=BEGAN_AT).delete(
        lambda: ended.append(True)
    )
    assert ended == [True]
    assert rig.messages("warn") == [f"fork/exec {runtime}: no such file or directory"]
    rig.run_until(has_no_children)


def test_a_runtimes_log_explains_a_failure_or_nothing_does(tmp_path: Path) -> None:
    state_dir = StateDirectory.open(str(tmp_path))
    assert explain(state_dir) == ""
    (tmp_path / "log.json").write_text('{"level": "error", "msg": "why"}\n')
    assert explain(state_dir) == "why"
    (tmp_path / "log.json").write_text("")
    assert explain(state_dir) == ""
    state_dir.close()
