"""With few descriptors either all works or nothing is left; and what a bug leaves."""

from __future__ import annotations

import functools
import os
import re
import resource
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, runtime_calls, runtimes, waiting
from tests.harness.engine import FORKSHIM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.engine import Engine
    from tests.runtime.conftest import MakeEngine

pytestmark = pytest.mark.runc

BUGGY = """
import sys
from supervisor.container import start
def fail(self, signum):
    raise RuntimeError("a bug")
start.StartSequence.forward = fail
from supervisor.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize("first", range(3, 61, 10))
def test_every_limit_of_open_files_works_or_leaves_nothing(
    first: int, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = make_bundle("echo all is well")
    root = tmp_path / "root"
    for limit in range(first, min(first + 10, 61)):
        container_id = bundles.fresh_id(f"limit{limit}")
        done = subprocess.run(
            [FORKSHIM, "run", "--root", root, "--bundle", bundle, container_id],
            capture_output=True,
            preexec_fn=functools.partial(_limit, limit),
            timeout=waiting.LIMIT_S,
        )
        assert not (root / container_id).exists(), (limit, done)
        assert container_id not in _containers(), (limit, done)
        if done.returncode == 0:
            assert done.stdout == b"all is well\n", (limit, done)
        elif limit > 24:  # below, Python itself may not get far
            (line,) = done.stderr.decode().splitlines()
            assert done.returncode == 71, (limit, done)
            assert f"RLIMIT_NOFILE is {limit}, and " in line


@pytest.mark.parametrize("first", range(3, 61, 10))
def test_every_limit_of_a_shim_works_or_leaves_nothing(first: int, make_engine: MakeEngine) -> None:
    for limit in range(first, min(first + 10, 61)):
        engine = make_engine("echo all is well; exit 7")
        engine.attach("stdout", "stderr")
        shim_pid = engine.launch(preexec_fn=functools.partial(_limit, limit))
        waiting.wait_true(functools.partial(_has_a_pid_or_is_over, engine))
        if waiting.is_alive(shim_pid):
            engine.created()
            engine.start()
            assert engine.wait_end() == 7, limit
            assert engine.read_end("stdout", "stderr") == [b"all is well\n", b""], limit
            assert engine.wait_shim() == 0, limit
        elif limit > 24:  # below, Python itself may not get far
            assert engine.wait_shim() == 1, limit
            (line,) = engine.log("error")
            assert f"RLIMIT_NOFILE is {limit}, and " in line
        assert engine.leftovers() == [], limit


def _has_a_pid_or_is_over(engine: Engine) -> bool:
    return (engine.dir / "pid").exists() or not waiting.is_alive(engine.shim_pid)


@pytest.fixture
def small_root(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a function that mounts a tmpfs with these options as ROOT, in place of the last."""
    root = tmp_path / "root"
    root.mkdir()
    umount = ("umount", "--lazy", root)

    def mount(options: str) -> Path:
        subprocess.run(umount, stderr=subprocess.DEVNULL)
        command = ("mount", "-t", "tmpfs", "-o", f"mode=755,{options}", "tmpfs", root)
        subprocess.run(command, check=True)
        return root

    yield mount
    subprocess.run(umount, check=True)


@pytest.mark.parametrize("detach", [[], ["--detach"]], ids=["", "detach"])
def test_a_root_without_room_is_said_and_nothing_is_left(
    make_bundle: Callable[..., Path],
    rootfs: Path,
    tmp_path: Path,
    small_root: Callable[[str], Path],
    detach: list[str],
) -> None:
    small = make_bundle("exit 7")
    large = bundles.config(rootfs, ["sh", "-c", "exit 7", "x" * 100_000])
    cases = [
        (small, "nr_inodes=1"),  # no ROOT/ID
        (small, "nr_inodes=9"),
        (small, "size=4k"),
        (bundles.make_bundle(tmp_path / "large", large), "size=80k"),  # no process.json
    ]
    for bundle, options in cases:
        root, container_id = small_root(options), bundles.fresh_id("room")
        done = subprocess.run(
            [FORKSHIM, "run", "--root", root, "--bundle", bundle, "--log", "null",
             *detach, container_id],
            capture_output=True, text=True, timeout=waiting.LIMIT_S,
        )  # fmt: skip
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"forkshim: {container_id}: ")
        assert "no space left on device" in line
        assert done.returncode == 71, (options, line)
        assert os.listdir(root) == []


NAMES_A_WORKER = """
if [ $verb = create ]; then
    runc "$@" || exit
    echo said
    for word; do [ "$before" = --pid-file ] && file=$word; before=$word; done
    until [ "$worker" ]; do
        for pid in $(cat /proc/$PPID/task/$PPID/children); do
            case $(tr -d '\\0' < /proc/$pid/cmdline) in forkshim:*\\[stdout]) worker=$pid;; esac
        done
    done
    printf $worker > $file.new && mv $file.new $file
    exit
fi
"""


def test_a_pid_file_that_names_a_worker_of_ours_is_refused(
    make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    container_id, root = bundles.fresh_id("worker"), tmp_path / "root"
    runtime = runtimes.script(tmp_path / "names-a-worker", NAMES_A_WORKER)
    try:
        done = subprocess.run(
            [FORKSHIM, "run", "--root", root, "--bundle", make_bundle("exit 7"),
             "--runtime", runtime, container_id],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=waiting.LIMIT_S,
        )  # fmt: skip
        assert container_id not in _containers()
    finally:
        runtime_calls.delete(container_id)
    (line,) = done.stderr.decode().splitlines()
    assert re.fullmatch(
        rf"forkshim: {container_id}: pid: \d+ is a process of this supervisor's own", line
    )
    assert (done.returncode, done.stdout) == (71, b"said\n")
    assert not (root / container_id).exists()


def _limit(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def _containers() -> str:
    return subprocess.run(["runc", "list", "-q"], capture_output=True, text=True, check=True).stdout


def test_an_unforeseen_error_ends_nothing_that_lives(
    make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = make_bundle("trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done")
    container_id, root = bundles.fresh_id("bug"), tmp_path / "root"
    sink = tmp_path / "out"
    supervisor = subprocess.Popen(
        [sys.executable, "-c", BUGGY, "run", "--root", root, "--bundle", bundle,
         "--log", f"file:{sink}", container_id],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        waiting.wait_true(lambda: sink.exists() and sink.read_text() == "ready\n")
        waiting.wait_true((root / container_id / "init/handover").exists)
        supervisor.send_signal(signal.SIGUSR1)
        _out, err = supervisor.communicate(timeout=waiting.LIMIT_S)
        assert supervisor.returncode == 70
        assert "RuntimeError: a bug; `forkshim adopt" in err.decode().splitlines()[-1]
        assert container_id in _containers()
        assert (root / container_id).exists()
        adopted = subprocess.Popen(
            [FORKSHIM, "adopt", "--root", root, container_id], stderr=subprocess.PIPE
        )
        waiting.wait_true(lambda: _supervisor_of(root / container_id) == adopted.pid)
        adopted.terminate()
        adopted.communicate(timeout=waiting.LIMIT_S)
        assert adopted.returncode == 7
        assert not (root / container_id).exists()
    finally:
        runtime_calls.delete(container_id)


def _supervisor_of(home: Path) -> int:
    """Return the pid of the supervisor; 0 while there is none."""
    path = home / "supervisor.pid"
    return int(path.read_text()) if path.exists() else 0
