"""SIGHUP: another version takes over in place, while bytes flow, or is refused.

FORKSHIM_RELOADS and FORKSHIM_STREAM_MIB make the long run: 50 and 2048.
"""

from __future__ import annotations

import itertools
import os
import random
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import supervisor
from supervisor.state import fd_store
from tests.harness import bundles, shim_log, waiting
from tests.harness.big_stream import BigStream

if TYPE_CHECKING:
    from tests.harness.engine import Engine
    from tests.runtime.conftest import MakeEngine

pytestmark = [pytest.mark.runc, pytest.mark.timeout(300)]

SEED = int(os.environ.get("FORKSHIM_SEED", "20161109"))
RELOADS = int(os.environ.get("FORKSHIM_RELOADS", "8"))
STREAM_MIB = int(os.environ.get("FORKSHIM_STREAM_MIB", "256"))
TREE = Path(supervisor.__file__).parents[1]
LOOP = "while :; do sleep 0.1; done"


class Version:
    """An installed forkshim of its own, which a test may replace by another."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.install()

    def install(self) -> None:
        for package in ("supervisor", "workers"):
            shutil.rmtree(self.directory / package, ignore_errors=True)
            shutil.copytree(
                TREE / package,
                self.directory / package,
                ignore=shutil.ignore_patterns("__pycache__"),
            )

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.directory), "PYTHONDONTWRITEBYTECODE": "1"}

    def change(self, file: str, old: str, new: str) -> None:
        path = self.directory / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))


@pytest.fixture
def version(tmp_path: Path) -> Version:
    return Version(tmp_path / "installed")


def reload(engine: Engine) -> None:
    """Reload and wait until it has been done."""
    shim_log.reload(engine.shim_pid, engine.dir / "shim-log.json")


def _count(engine: Engine, words: str) -> int:
    text = (engine.dir / "shim-log.json").read_text()
    return text.count(words)


def _kinds(pid: int) -> list[str]:
    """Return what a process has open, without the numbers of pipes and sockets."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:  # a runtime is just being started
            continue
        found.append(target.split("[")[0] if target[0] != "/" else target)
    return sorted(found)


def _kinds_once_all_is_there(engine: Engine, *workers: str) -> list[str]:
    for name in workers:
        waiting.wait_worker(engine.shim_pid, name)
    # The last descriptor that it opens: room for the status.
    waiting.wait_path(engine.dir / f".exitStatus.{engine.shim_pid}", Path.exists)
    return _kinds(engine.shim_pid)


def _start_time(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def test_a_stream_goes_on_through_many_reloads(make_engine: MakeEngine, tmp_path: Path) -> None:
    rootfs = bundles.make_rootfs(tmp_path / "image")
    stream = BigStream(tmp_path, rootfs, blocks=STREAM_MIB, status=23, seed=SEED)
    engine = make_engine(bundle=stream.bundle)
    stdout, _stderr = engine.attach("stdout", "stderr")
    engine.run()
    shim_pid, payload_pid = engine.shim_pid, int((engine.dir / "pid").read_text())
    started_at, done = _start_time(payload_pid), 0
    kinds = _kinds_once_all_is_there(engine, "stdout")
    while True:
        waiting.wait_readable(stdout)
        chunk = os.read(stdout, 1 << 20)
        if not chunk:
            break
        stream.came(chunk)
        if done < RELOADS and stream.read_bytes > done * stream.total_bytes // (RELOADS + 1):
            done += 1
            reload(engine)
            assert _start_time(payload_pid) == started_at
            waiting.wait_worker(shim_pid, "stdout")
            # No descriptor more, none less, when what it takes to reload has been put away.
            waiting.wait_true(lambda: _kinds(shim_pid) == kinds, limit_s=10)
    assert done == RELOADS
    stream.check()
    assert engine.shim_pid == shim_pid
    assert engine.wait_end() == 23
    assert engine.wait_shim() == 0
    assert engine.log("warn") == engine.log("error") == []
    assert engine.leftovers() == []


def test_it_is_the_parent_of_orphans_as_before(make_engine: MakeEngine) -> None:
    """The subreaper flag is kept, and taken anew."""
    engine = make_engine(f"trap 'exit 4' TERM; echo ready; {LOOP}")
    stdout, _stderr = engine.attach("stdout", "stderr")
    engine.run()
    waiting.read_until(stdout, b"ready")
    payload_pid = int((engine.dir / "pid").read_text())
    reload(engine)
    assert payload_pid in waiting.children_of(engine.shim_pid)
    os.kill(engine.shim_pid, signal.SIGTERM)
    assert engine.wait_end() == 4
    assert engine.leftovers() == []


def test_a_console_and_its_control_go_on(make_engine: MakeEngine) -> None:
    engine = make_engine(
        "stty -echo; echo ready; while read line; do echo got $line; stty size; done; exit 6",
        terminal=True,
        containerdStdin="stdin",
    )
    (stdout,) = engine.attach("stdout")
    engine.run()
    stdin = engine.open("stdin", os.O_WRONLY)
    payload_pid = int((engine.dir / "pid").read_text())
    waiting.read_until(stdout, b"ready")
    for number in range(3):
        os.write(engine.control_fd, b"1 4%d 2" % number)  # the rest comes to the next version
        waiting.wait_true(lambda: not waiting.is_readable(engine.control_fd))
        reload(engine)
        os.write(engine.control_fd, b"5\n")
        waiting.wait_true(lambda: waiting.window_of(payload_pid) == (40 + number, 25))  # noqa: B023
        os.write(stdin, b"line %d\n" % number)
        said = waiting.read_until(stdout, b"25 4%d" % number)
        assert b"got line %d" % number in said
    os.write(stdin, b"\x04")
    assert engine.wait_end() == 6
    assert engine.log("warn") == engine.log("error") == []


@pytest.mark.parametrize("sink", ["file:log", "file,max-size=64k:log", "cri:log"])
def test_a_line_in_the_middle_of_a_reload_is_one_line(make_engine: MakeEngine, sink: str) -> None:
    engine = make_engine(
        "while read word; do printf '%s ' $word; [ $word = end ] && break; done; echo; exit 8",
        containerdStdin="stdin",
        containerdStdout=sink,
        containerdStderr=sink,
    )
    engine.run()
    stdin = engine.open("stdin", os.O_WRONLY)
    words = [f"word{n}" for n in range(5)]
    for word in words:
        os.write(stdin, f"{word}\n".encode())
        reload(engine)
    os.write(stdin, b"end\n")
    assert engine.wait_end() == 8
    lines = (engine.dir / "log").read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].endswith(" ".join([*words, "end"]) + " ")
    assert engine.log("warn") == engine.log("error") == []


def test_a_closed_stdin_stays_closed(make_engine: MakeEngine) -> None:
    engine = make_engine(
        f"cat; echo at the end; trap 'exit 3' TERM; {LOOP}", containerdStdin="stdin"
    )
    stdout, _stderr = engine.attach("stdout", "stderr")
    engine.run()
    stdin = engine.open("stdin", os.O_WRONLY)
    os.write(stdin, b"some\n")
    waiting.read_until(stdout, b"some\n")
    engine.control("0 0 0\n")
    reload(engine)
    engine.close("stdin")
    waiting.read_until(stdout, b"at the end\n")
    reload(engine)
    os.kill(engine.shim_pid, signal.SIGTERM)
    assert engine.wait_end() == 3


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_that_comes_in_the_middle_is_not_lost(
    make_engine: MakeEngine, signum: int
) -> None:
    engine = make_engine(f"trap 'exit 5' TERM; trap 'echo usr; exit 9' USR1; echo ready; {LOOP}")
    stdout, _stderr = engine.attach("stdout", "stderr")
    engine.run()
    waiting.read_until(stdout, b"ready")
    for _ in range(3):
        os.kill(engine.shim_pid, signal.SIGHUP)
    os.kill(engine.shim_pid, signum)
    assert engine.wait_end() == (5 if signum == signal.SIGTERM else 9)
    assert engine.wait_shim() == 0
    assert engine.leftovers() == []


def test_a_container_that_ends_meanwhile_has_its_status(make_engine: MakeEngine) -> None:
    for status in range(5):
        engine = make_engine(f"echo ready; read line; exit {status}", containerdStdin="stdin")
        stdout, _stderr = engine.attach("stdout", "stderr")
        engine.run()
        stdin = engine.open("stdin", os.O_WRONLY)
        waiting.read_until(stdout, b"ready")
        os.kill(engine.shim_pid, signal.SIGHUP)
        os.write(stdin, b"\n")
        assert engine.wait_end() == status
        assert engine.wait_shim() == 0
        assert engine.leftovers() == []


def test_before_the_container_runs_it_waits_until_it_does(make_engine: MakeEngine) -> None:
    engine = make_engine("exit 7")
    engine.launch()  # no reader: it waits for one
    waiting.wait_true(lambda: waiting.catches(engine.shim_pid, signal.SIGHUP))
    os.kill(engine.shim_pid, signal.SIGHUP)
    engine.attach("stdout", "stderr")
    engine.created()
    waiting.wait_path(
        engine.dir / "shim-log.json", lambda _path: _count(engine, " goes on, process ") == 1
    )
    engine.start()
    assert engine.wait_end() == 7


def test_the_installed_version_takes_over(make_engine: MakeEngine, version: Version) -> None:
    engine = make_engine(f"trap 'exit 4' TERM; echo ready; {LOOP}")
    stdout, _stderr = engine.attach("stdout", "stderr")
    engine.run(env=version.environment)
    waiting.read_until(stdout, b"ready")
    version.change("supervisor/__init__.py", supervisor.__version__, "7.8.9")
    reload(engine)
    assert any("7.8.9 goes on" in message for message in engine.log())
    os.kill(engine.shim_pid, signal.SIGTERM)
    assert engine.wait_end() == 4


_BREAK: dict[str, tuple[str, str, str, str]] = {
    "does not parse": (
        "supervisor/io/stream_set.py",
        "class StreamSet:",
        "class StreamSet(:",
        "SyntaxError",
    ),
    "does not import": (
        "supervisor/linux/event_loop.py",
        "import select\nimport time",
        "import no_such_thing",
        "no_such_thing",
    ),
    "reads another state": (
        "supervisor/state/fd_store.py",
        f"VERSION = {fd_store.VERSION}",
        "VERSION = 99",
        f"state version {fd_store.VERSION}, this forkshim reads 99",
    ),
    "has no worker that works": (
        "workers/copy/output.py",
        "        splice.copy(route, context)",
        "        raise RuntimeError",
        "a worker does not work",
    ),
    "is killed": (
        "supervisor/handover/reexec.py",
        "def arrive() -> Arrival | None:",
        "os.kill(os.getpid(), 11)\n\n\ndef arrive() -> Arrival | None:",
        "SIGSEGV",
    ),
}


@pytest.mark.parametrize("how", _BREAK)
def test_a_version_that_cannot_take_over_is_refused(
    make_engine: MakeEngine, version: Version, how: str
) -> None:
    file, old, new, said = _BREAK[how]
    engine = make_engine(
        "while read line; do echo got $line; done; exit 9", containerdStdin="stdin"
    )
    stdout, _stderr = engine.attach("stdout", "stderr")
    engine.run(env=version.environment)
    stdin = engine.open("stdin", os.O_WRONLY)
    before = _kinds_once_all_is_there(engine)
    version.change(file, old, new)
    os.kill(engine.shim_pid, signal.SIGHUP)
    waiting.wait_path(
        engine.dir / "shim-log.json", lambda _path: _count(engine, "not reloaded") == 1
    )
    warning = engine.log("warn")[-1]
    assert warning.startswith("SIGHUP: not reloaded, the old version goes on: ")
    assert said in warning
    assert _kinds(engine.shim_pid) == before
    os.write(stdin, b"1\n")
    waiting.read_until(stdout, b"got 1\n")
    version.install()  # a good one again
    reload(engine)
    os.write(stdin, b"2\n")
    waiting.read_until(stdout, b"got 2\n")
    engine.control("0 0 0\n")
    engine.close("stdin")
    assert engine.wait_end() == 9
    assert engine.leftovers() == []


def test_a_hand_over_that_fails_leaves_a_supervisor_that_hears(
    make_engine: MakeEngine, version: Version
) -> None:
    """The rehearsal goes well, and then there is no descriptor left."""
    engine = make_engine(f"trap 'exit 4' TERM; echo ready; {LOOP}")
    stdout, _stderr = engine.attach("stdout", "stderr")
    engine.run(env=version.environment)
    waiting.read_until(stdout, b"ready")
    limits = resource.prlimit(engine.shim_pid, resource.RLIMIT_NOFILE)
    version.change(
        "supervisor/handover/reexec.py",
        "    os.write(1, READY)",
        "    import resource\n"
        f"    resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (3, {limits[1]}))\n"
        "    os.write(1, READY)",
    )
    os.kill(engine.shim_pid, signal.SIGHUP)
    waiting.wait_path(
        engine.dir / "shim-log.json", lambda _path: _count(engine, "not reloaded") == 1
    )
    assert engine.log("warn")[-1] == (
        "SIGHUP: not reloaded, the old version goes on: handover: too many open files"
    )
    resource.prlimit(engine.shim_pid, resource.RLIMIT_NOFILE, limits)
    os.kill(engine.shim_pid, signal.SIGTERM)
    assert engine.wait_end() == 4
    assert engine.leftovers() == []


def test_a_program_that_is_gone_cannot_be_reloaded(make_engine: MakeEngine, tmp_path: Path) -> None:
    script = tmp_path / "shim"
    script.write_text(
        f"#!{sys.executable}\nfrom supervisor.frontends.statedir import main\nmain()\n"
    )
    script.chmod(0o755)
    engine = make_engine(f"trap 'exit 4' TERM; echo ready; {LOOP}")
    stdout, _stderr = engine.attach("stdout", "stderr")
    engine.run(env={**os.environ, "PYTHONPATH": str(TREE)}, shim=script)
    waiting.read_until(stdout, b"ready")
    reload(engine)
    script.unlink()
    os.kill(engine.shim_pid, signal.SIGHUP)
    waiting.wait_path(
        engine.dir / "shim-log.json", lambda _path: _count(engine, "not reloaded") == 1
    )
    os.kill(engine.shim_pid, signal.SIGTERM)
    assert engine.wait_end() == 4


def test_a_reload_beside_killed_workers_loses_nothing(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    chosen = random.Random(SEED)
    lines = 400_000
    engine = make_engine(f"seq {lines}; exit 2")
    stdout, _stderr = engine.attach("stdout", "stderr")
    engine.run()
    got, kills = bytearray(), 0
    for step in itertools.count():
        waiting.wait_readable(stdout)
        chunk = os.read(stdout, 1 << 16)
        if not chunk:
            break
        got += chunk
        if step % 8 == 0:
            pid = waiting.worker_of(engine.shim_pid, "stdout")
            if pid is not None and chosen.random() < 0.7:
                _kill(pid)
                kills += 1
            else:
                os.kill(engine.shim_pid, signal.SIGHUP)
    assert got.split() == [b"%d" % n for n in range(1, lines + 1)]
    assert kills > 0
    assert engine.wait_end() == 2
    assert engine.wait_shim() == 0


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
