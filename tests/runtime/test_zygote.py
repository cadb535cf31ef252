"""Supervisors forked by a zygote: nobody can tell, except that they are there sooner."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import bundles, deposits, waiting
from tests.harness.engine import Engine
from tests.harness.person import Person
from tests.harness.zygotes import Zygote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.runc

STAYS = """
trap 'echo bye; exit 5' TERM
trap 'echo usr1' USR1
echo ready
while :; do sleep 0.02; done
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("zygote")) as made:
        yield made


@pytest.fixture
def zygote(tmp_path: Path) -> Iterator[Zygote]:
    with Zygote(tmp_path / "own") as made:
        yield made


class Run:
    """One `forkshim run` by way of a zygote. Owned until `end`."""

    def __init__(self, zygote: Zygote, directory: Path, bundle: Path, **popen: Any) -> None:
        self.root = directory / "root"
        self.id = bundles.fresh_id("warm")
        before = popen.pop("before", [])
        self.process = subprocess.Popen(
            [*before, zygote.forkshim, "run", "--root", self.root, "--bundle", bundle, self.id],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **popen,
        )

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        waiting.read_until(self.process.stdout.fileno(), b"ready\n")

    @property
    def supervisor_pid(self) -> int:
        return int((self.root / self.id / "supervisor.pid").read_text())

    @property
    def is_warm(self) -> bool:
        """Whether the process that was started is another one than the supervisor."""
        return self.supervisor_pid != self.process.pid

    def wait(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=waiting.LIMIT_S)
        return self.process.returncode, out.decode(), err.decode()

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        # The supervisor first: it would replace its workers, which hold our pipes.
        for title in (f"forkshim: {self.id}", f"forkshim: {self.id} ["):
            for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
                if waiting.title_of(pid).startswith(title):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        subprocess.run(["runc", "delete", "--force", self.id], capture_output=True)
        self.process.communicate(timeout=waiting.LIMIT_S)


@pytest.fixture
def run(tmp_path: Path, make_bundle: Callable[..., Path]) -> Iterator[Callable[..., Run]]:
    """Return a function that starts a script; what it starts is ended after the test."""
    made: list[Run] = []

    def start(zygote: Zygote, script: str, **popen: Any) -> Run:
        each = Run(zygote, tmp_path, make_bundle(script), **popen)
        made.append(each)
        return each

    yield start
    for each in made:
        each.end()


def field(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:"))


def links(pid: int) -> list[str]:
    """Return what the descriptors of a process are, but for those that it closes meanwhile."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(path))
    return found


def test_the_zygote_forks_it_and_a_shell_stands_in(shared: Zygote, run: Callable[..., Run]) -> None:
    started = run(shared, STAYS)
    started.wait_ready()
    assert started.is_warm
    assert int(field(started.supervisor_pid, "PPid")) == shared.pid
    assert waiting.title_of(started.supervisor_pid) == f"forkshim: {started.id}"
    assert "/sh" in waiting.title_of(started.process.pid)
    os.kill(started.process.pid, signal.SIGTERM)
    assert started.wait() == (5, "bye\n", "")


@pytest.mark.parametrize("status", [0, 1, 128, 137, 255])
def test_it_ends_as_the_container(shared: Zygote, run: Callable[..., Run], status: int) -> None:
    started = run(shared, f"echo out; echo err >&2; exit {status}")
    assert started.wait() == (status, "out\n", "err\n")


def test_its_streams_are_the_callers_however_busy_the_machine(
    shared: Zygote, tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    """A shell has something else in their places while it reads or writes elsewhere."""
    bundle = make_bundle("cat; echo err >&2")
    for number in range(40):
        done = subprocess.run(
            [shared.forkshim, "run", "-i", "--root", tmp_path / "root", "--bundle", bundle,
             bundles.fresh_id("warm")],
            input=f"words {number}\n", capture_output=True, text=True, start_new_session=True,
            timeout=waiting.LIMIT_S,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == (f"words {number}\n", "err\n")


def test_a_closed_stream_is_no_reason_to_fail(shared: Zygote, run: Callable[..., Run]) -> None:
    started = run(shared, "echo out; exit 3", before=["sh", "-c", 'exec "$@" <&-', "sh"])
    assert started.wait() == (3, "out\n", "")


def test_every_signal_is_passed_on(shared: Zygote, run: Callable[..., Run]) -> None:
    started = run(shared, f"trap 'echo rt' 40; {STAYS}")
    started.wait_ready()
    assert started.process.stdout is not None
    for signum, word in ((signal.SIGUSR1, b"usr1\n"), (40, b"rt\n"), (signal.SIGUSR1, b"usr1\n")):
        os.kill(started.process.pid, signum)
        waiting.read_until(started.process.stdout.fileno(), word)
    os.kill(started.process.pid, signal.SIGINT)
    assert started.wait() == (5, "bye\n", "")


def test_a_usage_error_and_a_missing_bundle_read_as_always(shared: Zygote, tmp_path: Path) -> None:
    for words, status in ((["run", "--nonsense", "x"], 2), (["run", "--bundle", "/no", "x"], 6)):
        said = [
            subprocess.run([program, *words], capture_output=True, text=True, cwd=tmp_path)
            for program in (shared.forkshim, Path(sys.executable).parent / "forkshim")
        ]
        assert {(done.returncode, done.stdout, done.stderr) for done in said} == {
            (status, "", said[0].stderr)
        }


def test_who_kills_the_stand_in_kills_the_supervisor(
    shared: Zygote, run: Callable[..., Run]
) -> None:
    started = run(shared, STAYS)
    started.wait_ready()
    home = started.root / started.id
    deposits.wait_laid_down(home / "init")
    before = started.supervisor_pid
    supervisor = os.pidfd_open(before)
    try:
        started.process.kill()
        waiting.wait_readable(supervisor)
    finally:
        os.close(supervisor)
    adopted = subprocess.Popen(
        [shared.forkshim, "adopt", "--root", started.root, started.id], start_new_session=True
    )
    waiting.wait_path(
        home / "supervisor.pid", lambda path: int(path.read_text() or before) != before
    )
    waiting.wait_true(lambda: waiting.catches(started.supervisor_pid, signal.SIGTERM))
    adopted.terminate()
    assert adopted.wait(timeout=waiting.LIMIT_S) == 5


def test_a_killed_supervisor_looks_like_a_killed_process(
    shared: Zygote, run: Callable[..., Run]
) -> None:
    started = run(shared, STAYS)
    started.wait_ready()
    os.kill(started.supervisor_pid, signal.SIGKILL)
    assert started.process.wait(timeout=waiting.LIMIT_S) == -signal.SIGKILL


def test_a_reload_keeps_both_ties(shared: Zygote, run: Callable[..., Run]) -> None:
    started, other = run(shared, STAYS), run(shared, STAYS)
    for each in (started, other):
        each.wait_ready()
        log = each.root / each.id / "init" / "shim-log.json"
        os.kill(each.process.pid, signal.SIGHUP)
        waiting.wait_path(log, lambda path: "goes on" in path.read_text())
        waiting.wait_true(partial(waiting.catches, each.supervisor_pid, signal.SIGTERM))
    os.kill(started.process.pid, signal.SIGTERM)
    assert started.wait()[0] == 5
    supervisor = os.pidfd_open(other.supervisor_pid)
    try:
        other.process.kill()
        waiting.wait_readable(supervisor)
    finally:
        os.close(supervisor)


def test_it_is_what_its_caller_is(shared: Zygote, run: Callable[..., Run], tmp_path: Path) -> None:
    def prepare() -> None:
        os.umask(0o027)
        os.nice(3)
        resource.setrlimit(resource.RLIMIT_NOFILE, (777, 888))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        Path("/proc/self/oom_score_adj").write_text("250")

    place = tmp_path / "place"
    place.mkdir()
    started = run(
        shared, STAYS, cwd=place, preexec_fn=prepare, env={**os.environ, "FORKSHIM_MARK": "here"}
    )
    started.wait_ready()
    pid = started.supervisor_pid
    assert started.is_warm
    assert field(pid, "Umask") == "0027"
    assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0) + 3
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (777, 888)
    assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "250\n"
    assert Path(f"/proc/{pid}/cgroup").read_text() == Path("/proc/self/cgroup").read_text()
    # Nothing of the zygote's, nothing of the conversation but the two ties.
    zygotes, its = links(shared.pid), links(pid)
    assert not [link for link in its if link in zygotes and link.startswith(("/", "anon"))
                and not link.startswith(("/dev/null", "anon_inode:[eventpoll]"))]  # fmt: skip


@pytest.mark.parametrize(
    "before",
    [
        ["setpriv", "--no-new-privs"],
        ["setpriv", "--bounding-set", "-sys_time"],
        ["unshare", "--mount"],
        ["taskset", "1"],
        ["ionice", "-c", "3"],
        ["chrt", "--batch", "0"],
        ["sh", "-c", 'exec 9</dev/null "$@"', "sh"],
        ["env", "LISTEN_FDS=0"],
        ["sh", "-c", 'trap "" USR2; exec "$@"', "sh"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_whoever_is_what_it_cannot_be_gets_a_supervisor_of_its_own(
    shared: Zygote, run: Callable[..., Run], before: list[str]
) -> None:
    started = run(shared, STAYS, before=before)
    started.wait_ready()
    assert not started.is_warm
    os.kill(started.process.pid, signal.SIGTERM)
    assert started.wait() == (5, "bye\n", "")


def test_a_person_at_a_terminal_gets_one_of_their_own(
    shared: Zygote, tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    container_id = bundles.fresh_id("person")
    command: list[str | Path] = [
        "--root",
        tmp_path / "root",
        "--bundle",
        make_bundle(STAYS),
        container_id,
    ]
    with Person(*command, program=shared.forkshim) as person:
        person.see(b"ready")
        pid = int((tmp_path / "root" / container_id / "supervisor.pid").read_text())
        assert pid == person.command.pid
        os.kill(pid, signal.SIGTERM)
        assert person.wait() == 5


def test_a_zygote_that_was_stopped_leaves_what_runs_and_nobody_waits_for_it(
    zygote: Zygote, run: Callable[..., Run]
) -> None:
    before = run(zygote, STAYS)
    before.wait_ready()
    assert zygote.stop() == 0
    assert not (zygote.directory / "requests").exists()
    after = run(zygote, STAYS)
    after.wait_ready()
    assert (before.is_warm, after.is_warm) == (True, False)
    for each in (before, after):
        os.kill(each.process.pid, signal.SIGTERM)
        assert each.wait() == (5, "bye\n", "")


def test_a_zygote_that_was_killed_is_not_waited_for(
    zygote: Zygote, run: Callable[..., Run]
) -> None:
    zygote.stop(signal.SIGKILL)
    assert (zygote.directory / "requests").is_fifo()
    started = run(zygote, "echo out; exit 3")
    assert started.wait() == (3, "out\n", "")


def test_a_zygote_that_dies_over_a_request_is_not_waited_for(
    zygote: Zygote, run: Callable[..., Run]
) -> None:
    zygote.send(signal.SIGSTOP)
    waiting.wait_true(lambda: waiting.state_of(zygote.pid) == "T")
    started = run(zygote, "echo out; exit 3")
    # It waits for an answer: both pipes and the way to see the zygote's end are there.
    waiting.wait_true(lambda: len(waiting.children_of(started.process.pid)) == 1)
    zygote.stop(signal.SIGKILL)
    assert started.wait() == (3, "out\n", "")


def test_a_second_zygote_is_refused(zygote: Zygote) -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "forkshim", "zygote", "--directory", zygote.directory],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == f"forkshim: zygote: {zygote.directory}: another zygote serves it\n"


def test_a_directory_of_others_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "open"
    place.mkdir(mode=0o755)
    done = subprocess.run(
        [Path(sys.executable).parent / "forkshim", "zygote", "--directory", place],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "somebody else could ask" in done.stderr) == (1, True)
    assert list(place.iterdir()) == []


def test_nonsense_is_passed_over(zygote: Zygote, run: Callable[..., Run]) -> None:
    own = os.getpid()
    with open(zygote.directory / "requests", "wb", buffering=0) as requests:
        requests.write(b"x" * 5000 + b"\n\n-1\n99999999999999\n1\n%d\n" % own)
    started = run(zygote, "echo out; exit 3")
    assert started.wait() == (3, "out\n", "")


def test_whoever_does_not_say_go_has_no_supervisor(zygote: Zygote, tmp_path: Path) -> None:
    """As a stand-in that has lost patience, or was killed, after it had asked."""
    asks = """
exec 3<<-A 5<<-B
	A
	B
exec 4>/proc/self/fd/3 6>/proc/self/fd/5 7<&0 9>&1
echo $$ 1<>"$0/requests"
read -r word supervisor <&3
echo $word $supervisor
read -r go
"""
    program = tmp_path / "forkshim-shim"
    program.write_text("#!/bin/sh\n" + asks.replace("$0", str(zygote.directory)))
    program.chmod(0o755)
    with subprocess.Popen(
        [program, "id", "/bundle", "runc"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        word, pid = process.stdout.readline().split()
        assert word == b"warm"
        supervisor = os.pidfd_open(int(pid))
        process.kill()
    try:
        waiting.wait_readable(supervisor)
    finally:
        os.close(supervisor)
    assert not (tmp_path / "shim-log.json").exists()


def test_an_engine_is_served(
    shared: Zygote, tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    bundle = make_bundle("cat; echo err >&2; exit 41")
    with Engine(
        tmp_path / "state", bundles.fresh_id("warm"), bundle, containerdStdin="stdin"
    ) as engine:
        stdout, stderr = engine.attach("stdout", "stderr")
        engine.run(shim=shared.shim)
        os.write(engine.open("stdin", os.O_WRONLY), b"through stdin\n")
        engine.close("stdin")
        engine.control("0 0 0\n")
        assert waiting.read_to_end(stdout) == b"through stdin\n"
        assert waiting.read_to_end(stderr) == b"err\n"
        assert engine.wait_end() == 41
        assert engine.wait_shim() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL])
def test_a_stand_in_whose_child_is_killed_goes_on(
    shared: Zygote, run: Callable[..., Run], signum: signal.Signals
) -> None:
    """As timeout(1) or the OOM killer may have it."""
    started = run(shared, STAYS)
    started.wait_ready()
    (reader,) = waiting.children_of(started.process.pid)
    os.kill(reader, signum)
    if signum == signal.SIGKILL:
        waiting.wait_child(started.process.pid, other_than=reader)
    os.kill(started.process.pid, signal.SIGTERM)
    assert started.wait() == (5, "bye\n", "")


def test_a_signal_to_the_whole_group_is_one(shared: Zygote, run: Callable[..., Run]) -> None:
    started = run(shared, STAYS)
    started.wait_ready()
    os.killpg(started.process.pid, signal.SIGTERM)
    assert started.wait() == (5, "bye\n", "")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_stand_in_that_is_ended_as_it_asks_leaves_nothing(
    zygote: Zygote, run: Callable[..., Run], signum: signal.Signals
) -> None:
    zygote.send(signal.SIGSTOP)
    waiting.wait_true(lambda: waiting.state_of(zygote.pid) == "T")
    started = run(zygote, "echo out")
    guard = waiting.wait_child(started.process.pid)
    guarding = os.pidfd_open(guard)
    waiting.wait_true(lambda: "/alive" in os.readlink(f"/proc/{guard}/fd/8"))
    os.kill(started.process.pid, signum)
    zygote.send(signal.SIGCONT)
    assert started.wait() == (-signum, "", "")  # and nobody has its streams open
    waiting.wait_readable(guarding)
    os.close(guarding)
    waiting.wait_true(lambda: waiting.children_of(zygote.pid) == [])


def test_a_pid_of_another_namespace_says_nothing(
    shared: Zygote, tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", shared.forkshim, "run", "--root",
         tmp_path / "root", "--bundle", make_bundle("exit 4"), bundles.fresh_id("warm")],
        start_new_session=True, timeout=waiting.LIMIT_S, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr


def test_nothing_is_written_into_what_is_no_stand_ins(zygote: Zygote, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("words")
    script = f"exec 4< {tmp_path}/precious; echo ready; read go"
    with subprocess.Popen(
        ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        waiting.read_until(process.stdout.fileno(), b"ready\n")
        with open(zygote.directory / "requests", "wb", buffering=0) as requests:
            requests.write(b"%d\n" % process.pid)
        assert zygote.stop() == 0  # it answers whoever has asked
        process.communicate(b"go\n")
    assert (tmp_path / "precious").read_text() == "words"


def test_what_an_interpreter_ignores_a_forked_supervisor_ignores(
    shared: Zygote, run: Callable[..., Run]
) -> None:
    started = run(shared, STAYS)
    started.wait_ready()
    ignored = int(field(started.supervisor_pid, "SigIgn"), 16)
    for signum in (signal.SIGPIPE, signal.SIGXFSZ):
        assert ignored >> (signum - 1) & 1


def test_a_zygote_without_descriptors_is_not_waited_for(
    zygote: Zygote, run: Callable[..., Run]
) -> None:
    resource.prlimit(zygote.pid, resource.RLIMIT_NOFILE, (3, 3))
    started = run(zygote, "echo out; exit 3")
    assert started.wait() == (3, "out\n", "")


def test_a_forked_supervisor_imports_nothing_that_is_not_there(tmp_path: Path) -> None:
    """What is on the disk may be of another version by then."""
    code = (
        "import os, sys, supervisor.zygote as zygote, supervisor, workers\n"
        "zygote._import_everything()\n"
        "wanted = {f'{p.__name__}.{n[:-3]}' for p in (supervisor, workers)\n"
        "  for n in os.listdir(p.__path__[0]) if n.endswith('.py') and n[0] != '_'}\n"
        "print(sorted(wanted - set(sys.modules)), len(wanted) > 80)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[] True\n"


@pytest.mark.slow
def test_thirty_at_once(zygote: Zygote, run: Callable[..., Run]) -> None:
    started = [run(zygote, f"echo {number}; exit {number}") for number in range(30)]
    for number, each in enumerate(started):
        assert each.wait() == (number, f"{number}\n", "")
    waiting.wait_true(lambda: waiting.children_of(zygote.pid) == [])
    assert len(os.listdir(f"/proc/{zygote.pid}/fd")) < 12


def test_an_exit_record_tells_of_the_supervisors_container(
    shared: Zygote, tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    container_id = bundles.fresh_id("warm")
    done = subprocess.run(
        [shared.forkshim, "run", "--root", tmp_path / "root", "--bundle", make_bundle("exit 9"),
         "--exit-dir", tmp_path / "ends", container_id],
        start_new_session=True, timeout=waiting.LIMIT_S,
    )  # fmt: skip
    assert done.returncode == 9
    assert json.loads((tmp_path / "ends" / f"{container_id}.json").read_text())["status"] == 9
