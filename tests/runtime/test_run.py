"""`forkshim run` in the foreground, from a pipe, a file and a shell's point of view."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import bundles, fd_stores, runtime_calls, runtimes, waiting
from tests.harness.engine import FORKSHIM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.runc


class Run:
    """Starts `forkshim run` with pipes; kills what a failing test leaves."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.started: list[tuple[subprocess.Popen[bytes], str]] = []

    def __call__(
        self, bundle: Path, *options: str | Path, id_: str | None = None, **popen: Any
    ) -> subprocess.Popen[bytes]:
        """Start it with a fresh id, or `id_`; stdin, stdout and stderr are pipes."""
        container_id = id_ or bundles.fresh_id("run")
        defaults = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(
            [FORKSHIM, "run", "--root", self.root, "--bundle", bundle, *options, container_id],
            **{**defaults, **popen},
        )
        self.started.append((process, container_id))
        return process

    def end(self) -> None:
        for process, container_id in self.started:
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
            if process.poll() is None:
                process.kill()
            if process.wait() < 0:  # else the next tests would find its container
                runtime_calls.delete(container_id)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    runner = Run(tmp_path / "root")
    yield runner
    runner.end()


def ended(process: subprocess.Popen[bytes], stdin: bytes | None = None) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(stdin, timeout=waiting.LIMIT_S)
    return process.returncode, stdout.decode(), stderr.decode()


def first_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def has_started(process: subprocess.Popen[bytes]) -> None:
    """Wait for `ready`, and for the end of the runtime's start: the supervisor's death kills it.

    runc calls a container created, although it runs, until its start has ended.
    """
    assert first_line(process) == b"ready\n"
    waiting.wait_true(
        lambda: (
            not any(
                waiting.title_of(pid).startswith("runc ")
                for pid in waiting.children_of(process.pid)
            )
        )
    )


@pytest.mark.parametrize("status", [0, 1, 126, 127, 137, 255])
def test_it_ends_with_the_containers_own_status(
    run: Run, make_bundle: Callable[..., Path], status: int
) -> None:
    assert ended(run(make_bundle(f"exit {status}"))) == (status, "", "")


def test_death_by_a_signal_is_128_plus_its_number(
    run: Run, make_bundle: Callable[..., Path]
) -> None:
    process = run(make_bundle("echo ready; sleep 1000"))
    assert first_line(process) == b"ready\n"
    state = next(run.root.glob("*/init/pid")).read_text()
    os.kill(int(state), signal.SIGKILL)
    assert ended(process)[0] == 128 + signal.SIGKILL


def test_stdin_reaches_the_container_and_ends_there(
    run: Run, make_bundle: Callable[..., Path]
) -> None:
    data = bytes(range(256)) * 4096
    process = run(make_bundle("sha256sum; cat /proc/self/fd/0 | wc -c"), "-i")
    code, out, _err = ended(process, data)
    assert (code, out) == (0, f"{hashlib.sha256(data).hexdigest()}  -\n0\n")


def test_without_i_stdin_is_null(run: Run, make_bundle: Callable[..., Path]) -> None:
    assert ended(run(make_bundle("wc -c")), b"not for you") == (0, "0\n", "")


def test_stdin_may_be_a_file_and_stdout_be_appended_to(
    run: Run, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "in").write_bytes(b"x" * 100_000)
    (tmp_path / "out").write_text("before\n")
    with open(tmp_path / "in", "rb") as stdin, open(tmp_path / "out", "ab") as stdout:
        process = run(make_bundle("wc -c; echo err >&2"), "-i", stdin=stdin, stdout=stdout,
                      stderr=stdout)  # fmt: skip
        assert process.wait(waiting.LIMIT_S) == 0
    assert (tmp_path / "out").read_text() in ("before\n100000\nerr\n", "before\nerr\n100000\n")


def test_both_outputs_into_one_file_keep_their_order(
    run: Run, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    script = "i=0; while [ $i -lt 200 ]; do echo out$i; echo err$i >&2; i=$((i+1)); done"
    with open(tmp_path / "out", "wb") as both:
        process = run(make_bundle(script), stdout=both, stderr=both)
        assert process.wait(waiting.LIMIT_S) == 0
    wanted = "".join(f"out{i}\nerr{i}\n" for i in range(200))
    assert (tmp_path / "out").read_text() == wanted


def test_a_reader_that_leaves_gives_the_container_a_broken_pipe(
    run: Run, make_bundle: Callable[..., Path]
) -> None:
    process = run(make_bundle("trap '' PIPE; while echo line; do :; done; exit 9"))
    assert first_line(process) == b"line\n"
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(waiting.LIMIT_S) == 9


def test_a_slow_reader_of_our_stdout_gets_everything(
    run: Run, make_bundle: Callable[..., Path]
) -> None:
    """More than all pipes hold, read only when the container has long been dead."""
    process = run(make_bundle("dd if=/dev/zero bs=1M count=1 2>/dev/null; echo; echo end"))
    state_dir = _state_dir(run)
    waiting.wait_path(state_dir / "exitStatus", lambda path: path.exists())
    code, out, _err = ended(process)
    assert (code, out) == (0, "\0" * (1 << 20) + "\nend\n")


def test_term_stops_gracefully_and_last_words_are_kept(
    run: Run, make_bundle: Callable[..., Path]
) -> None:
    last_words = "echo bye; sleep 0.3; echo really; exit 5"
    script = f"trap '{last_words}' TERM; echo ready; while :; do sleep 0.1; done"
    process = run(make_bundle(script))
    assert first_line(process) == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (5, "bye\nreally\n", "")
    assert os.listdir(run.root) == []


@pytest.mark.parametrize(("option", "sent"), [("SIGUSR1", "USR1"), ("RTMIN+3", "37"), ("3", "3")])
def test_the_stop_signal_can_be_chosen(
    run: Run, make_bundle: Callable[..., Path], option: str, sent: str
) -> None:
    script = f"trap 'echo got it; exit 0' {sent}; echo ready; while :; do sleep 0.1; done"
    process = run(make_bundle(script), "--stop-signal", option)
    assert first_line(process) == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert ended(process) == (0, "got it\n", "")


def test_a_container_that_ignores_the_stop_signal_is_killed_after_the_grace_period(
    run: Run, make_bundle: Callable[..., Path]
) -> None:
    process = run(make_bundle("trap '' TERM; echo ready; while :; do sleep 1; done"),
                  "--stop-timeout", "0.2")  # fmt: skip
    assert first_line(process) == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 128 + signal.SIGKILL


def _state_dir(run: Run) -> Path:
    """Wait for the state directory of the one container."""
    run.root.mkdir(exist_ok=True)
    waiting.wait_path(run.root / "x", lambda _path: any(run.root.iterdir()))
    (home,) = run.root.iterdir()
    waiting.wait_path(home / "init", lambda path: path.is_dir())
    return home / "init"


def test_a_second_run_of_a_living_id_is_refused_and_touches_nothing(
    run: Run, make_bundle: Callable[..., Path]
) -> None:
    container_id = bundles.fresh_id("twice")
    bundle = make_bundle("trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done")
    process = run(bundle, id_=container_id)
    assert first_line(process) == b"ready\n"
    home = run.root / container_id
    fd_stores.wait_published(home / "init")
    before = sorted((path, path.stat().st_ino) for path in home.rglob("*"))
    code, out, err = ended(run(bundle, id_=container_id))
    assert (code, out) == (75, "")
    assert err == f"forkshim: {container_id}: already supervised by process {process.pid}\n"
    assert sorted((path, path.stat().st_ino) for path in home.rglob("*")) == before
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (0, "", "")


def test_another_engines_container_of_the_same_id_survives(
    run: Run, make_bundle: Callable[..., Path]
) -> None:
    container_id = bundles.fresh_id("foreign")
    bundle = make_bundle("sleep 1000")
    runtime_calls.call("create", "--bundle", bundle, container_id)
    try:
        code, _out, err = ended(run(bundle, id_=container_id))
        assert code == 1
        assert "exist" in err
        assert json.loads(runtime_calls.call("state", container_id))["status"] == "created"
    finally:
        runtime_calls.delete(container_id)


def test_a_killed_supervisors_directory_is_refused_while_its_container_lives(
    run: Run, make_bundle: Callable[..., Path]
) -> None:
    container_id = bundles.fresh_id("stale")
    process = run(make_bundle("echo ready; sleep 1000"), id_=container_id)
    has_started(process)
    fd_stores.wait_published(run.root / container_id / "init")
    workers = [waiting.wait_worker(process.pid, "stdout")]
    fd_holder = waiting.wait_worker(process.pid, "fds")
    process.kill()
    process.wait()
    code, _out, err = ended(run(make_bundle("echo second"), id_=container_id))
    assert code == 75
    assert "its container is running" in err
    assert f"`runc delete --force {container_id}` ends it" in err
    runtime_calls.delete(container_id)
    for pid in workers:
        waiting.wait_process(pid)
    assert waiting.is_alive(fd_holder), "it waits for an adopter"
    assert ended(run(make_bundle("echo second"), id_=container_id)) == (0, "second\n", "")
    waiting.wait_process(fd_holder)


def test_a_dead_container_of_a_killed_supervisor_is_cleared_away(
    run: Run, make_bundle: Callable[..., Path]
) -> None:
    container_id = bundles.fresh_id("stale")
    bundle = make_bundle("echo ready; sleep 1000")
    process = run(bundle, id_=container_id)
    has_started(process)
    init_pid = int((run.root / container_id / "init" / "pid").read_text())
    fd_stores.wait_published(run.root / container_id / "init")
    workers = [waiting.wait_worker(process.pid, "stdout")]
    process.kill()
    process.wait()
    os.kill(init_pid, signal.SIGKILL)
    bundle.joinpath("config.json").write_text(
        bundle.joinpath("config.json").read_text().replace("echo ready; sleep 1000", "echo second")
    )
    assert ended(run(bundle, id_=container_id)) == (0, "second\n", "")
    for pid in workers:
        waiting.wait_process(pid)


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "-x", "a b", "x" * 256, "a\nb", "é"])
def test_a_bad_id_is_one_line_and_status_2(
    run: Run, make_bundle: Callable[..., Path], tmp_path: Path, bad: str
) -> None:
    done = subprocess.run(
        [FORKSHIM, "run", "--root", tmp_path / "root", "--", bad], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "config.json: no such file or directory"),
        ("{", "config.json: not JSON"),
        ("[]", "config.json: not a JSON object"),
        ('{"process": 1}', "config.json: process: not an object"),
        ('{"process": {"terminal": "yes"}}', "config.json: terminal: not a boolean: 'yes'"),
        ('{"linux": {"uidMappings": 3}}', "linux.uidMappings: not a list"),
    ],
)
def test_a_broken_bundle_is_one_line_and_status_6(
    run: Run, tmp_path: Path, content: str | None, said: str
) -> None:
    bundle = tmp_path / "broken"
    bundle.mkdir()
    if content is not None:
        (bundle / "config.json").write_text(content)
    code, out, err = ended(run(bundle))
    assert (code, out) == (6, "")
    assert said in err
    assert err.count("\n") == 1
    assert not run.root.exists()


def test_a_missing_bundle_is_status_6(run: Run, tmp_path: Path) -> None:
    code, _out, err = ended(run(tmp_path / "nowhere"))
    assert code == 6
    assert "nowhere: no such directory" in err


def test_a_missing_runtime_is_status_5(run: Run, make_bundle: Callable[..., Path]) -> None:
    code, _out, err = ended(run(make_bundle("true"), "--runtime", "no-such-runtime"))
    assert code == 5
    assert "no-such-runtime not installed on system" in err
    assert os.listdir(run.root) == []


def test_a_program_that_is_not_there_is_the_runtimes_error(
    run: Run, make_bundle: Callable[..., Path], rootfs: Path, tmp_path: Path
) -> None:
    bundle = bundles.make_bundle(tmp_path / "b", bundles.config(rootfs, ["no-such-program"]))
    code, _out, err = ended(run(bundle))
    assert code == 1
    assert "no-such-program" in err
    assert os.listdir(run.root) == []


@pytest.mark.parametrize(
    "options", [["--stop-timeout", "-1"], ["--stop-timeout", "nan"], ["--stop-signal", "NOSUCH"],
                ["--stop-signal", "65"], ["--detach"], ["--detach", "-i", "--log", "null"],
                ["--nonsense"]],
)  # fmt: skip
def test_wrong_usage_is_status_2(
    run: Run, make_bundle: Callable[..., Path], options: list[str]
) -> None:
    code, out, err = ended(run(make_bundle("true"), *options))
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert not run.root.exists()


def test_log_takes_a_file_that_is_created_and_appended_to(
    run: Run, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    for _ in range(2):
        process = run(make_bundle("echo out; echo err >&2"), "--log", "file:log", cwd=tmp_path)
        assert ended(process) == (0, "", "")
    assert (tmp_path / "log").read_text() == "out\nerr\n" * 2
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o640


def test_log_null_discards(run: Run, make_bundle: Callable[..., Path]) -> None:
    assert ended(run(make_bundle("seq 100000"), "--log", "null")) == (0, "", "")


_SLOW_START = """
echo $verb >> {calls}
if [ $verb = start ]; then
    runc "$@" || exit
    read go < {gate}
    echo started >> {calls}
    exit 0
fi
"""


def test_a_stop_waits_for_a_start_that_is_under_way(
    run: Run, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    """Until its exec the process is the runtime's own, and a signal would end that."""
    calls, gate = tmp_path / "calls", tmp_path / "gate"
    os.mkfifo(gate)
    slow = runtimes.script(tmp_path / "slow", _SLOW_START.format(calls=calls, gate=gate))
    bundle = make_bundle("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.1; done")
    process = run(bundle, "--runtime", slow)
    assert first_line(process) == b"ready\n"
    process.send_signal(signal.SIGTERM)
    log = _state_dir(run) / "shim-log.json"
    waiting.wait_path(log, lambda path: "stopping" in path.read_text())
    gate.write_text("go\n")
    assert ended(process) == (7, "bye\n", "")
    assert calls.read_text().split()[:4] == ["create", "start", "started", "kill"]


def test_a_start_that_hangs_is_killed_once_a_stop_is_asked_for(
    run: Run, make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    text = f"[ $verb = start ] && {{ echo > {tmp_path}/started; exec sleep 1000; }}"
    process = run(make_bundle("echo never"), "--runtime", runtimes.script(tmp_path / "hangs", text))
    waiting.wait_path(tmp_path / "started", lambda path: path.exists())
    process.send_signal(signal.SIGTERM)
    code, out, err = ended(process)
    assert (code, out) == (143, "")
    assert "stopped while it was being started" in err
    assert os.listdir(run.root) == []


@pytest.mark.parametrize("options", [(), ("--detach", "--log", "null")])
def test_a_stop_before_there_is_anything_to_stop_leaves_nothing(
    run: Run, make_bundle: Callable[..., Path], tmp_path: Path, options: tuple[str, ...]
) -> None:
    """It asks the runtime for a stale container's state, long before its signals are routed."""
    runtime, gate = runtimes.gate(tmp_path, "state")
    container_id = bundles.fresh_id("stale")
    (run.root / container_id / "init").mkdir(parents=True)
    process = run(make_bundle("echo never"), "--runtime", runtime, *options, id_=container_id)
    with gate.open("wb"):
        process.send_signal(signal.SIGTERM)
    code, out, err = ended(process)
    assert (code, out) == (143, "")
    assert err == f"forkshim: {container_id}: stopped by SIGTERM before its creation\n"
    assert os.listdir(run.root) == []


def test_a_stopped_start_leaves_nothing(run: Run, make_bundle: Callable[..., Path]) -> None:
    """TERM at whatever moment it hits once signals are routed: an end, nothing left."""
    for _ in range(5):
        process = run(make_bundle("trap 'exit 0' TERM; while :; do sleep 0.1; done"),
                      "--stop-timeout", "0.5")  # fmt: skip
        waiting.wait_true(lambda pid=process.pid: waiting.catches(pid, signal.SIGTERM))  # type: ignore[misc] # bound now
        process.send_signal(signal.SIGTERM)
        code, _out, err = ended(process)
        # 2: what runc's own init, a Go program, ends with if the signal comes before its exec.
        assert code in (0, 2, 143, 137), err
        assert "Traceback" not in err
        assert os.listdir(run.root) == []


@pytest.fixture
def odd_directory(tmp_path: Path) -> Path:
    """A directory whose name is not UTF-8."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/odd\xff"))
    path.mkdir()
    return path


@pytest.mark.parametrize(
    "options",
    [
        ("--bundle", "."),
        ("--log", "file:x.log"),
        ("--log", "./fifo"),
        ("--runtime", "./rt"),
        ("--root", "rr"),
        ("--exit-dir", "exits"),
    ],
    ids=lambda options: options[0],
)
def test_a_relative_path_below_a_directory_that_is_not_utf_8_is_refused(
    run: Run, make_bundle: Callable[..., Path], odd_directory: Path, options: tuple[str, ...]
) -> None:
    process = run(make_bundle("exit 7"), *options, cwd=odd_directory)
    code, out, err = ended(process)
    assert (code, out) == (2, "")
    line = err.splitlines()[-1]
    assert "not UTF-8: '" in line or "--runtime: not a path in UTF-8: './rt'" in line
    assert "Traceback" not in err
    assert os.listdir(odd_directory) == []
    assert not run.root.exists() or os.listdir(run.root) == []


def test_absolute_paths_are_enough_in_a_directory_that_is_not_utf_8(
    run: Run, make_bundle: Callable[..., Path], odd_directory: Path, tmp_path: Path
) -> None:
    process = run(make_bundle("exit 7"), "--log", f"file:{tmp_path}/log", cwd=odd_directory)
    assert ended(process) == (7, "", "")


def test_a_relative_path_in_a_directory_that_is_gone_is_refused_with_a_line(
    run: Run, make_bundle: Callable[..., Path], odd_directory: Path
) -> None:
    process = subprocess.Popen(
        ["sh", "-c", 'rmdir "$PWD" && exec "$0" run --root "$1" gone', FORKSHIM, run.root],
        cwd=odd_directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    code, out, err = ended(process)
    assert (code, out) == (2, "")
    assert err == "forkshim: gone: '.' in the current directory: no such file or directory\n"


def test_a_runtime_that_cannot_be_executed_is_told_once(
    run: Run, make_bundle: Callable[..., Path]
) -> None:
    process = run(make_bundle("exit 7"), "--runtime", "/etc/passwd", id_="once")
    assert ended(process) == (1, "", "forkshim: once: fork/exec /etc/passwd: permission denied\n")


def test_a_pipe_that_cannot_be_given_to_the_containers_root_is_told(
    run: Run, rootfs: Path, tmp_path: Path
) -> None:
    mapping = [{"containerID": 0, "hostID": 1000, "size": 10}]
    linux = {"uidMappings": mapping, "gidMappings": mapping}
    document = bundles.config(rootfs, bundles.shell("exit 7"), linux=linux)
    bundle = bundles.make_bundle(tmp_path / "bundle", document)
    drop = ("setpriv", "--bounding-set", "-chown", "--inh-caps", "-chown")
    done = subprocess.run(
        [*drop, FORKSHIM, "run", "--root", run.root, "--bundle", bundle, "plain"],
        capture_output=True, text=True, timeout=waiting.LIMIT_S,
    )  # fmt: skip
    said = "forkshim: plain: fchown of a pipe to 1000:1000: operation not permitted\n"
    assert (done.returncode, done.stderr) == (71, said)
    assert os.listdir(run.root) == []


@pytest.mark.parametrize("size", [0, 1500, 400_000])
def test_the_stderr_of_a_runtime_without_a_log_is_told_in_one_line(
    run: Run, make_bundle: Callable[..., Path], tmp_path: Path, size: int
) -> None:
    """As when /run is full: the log cannot be written."""
    text = f"""[ $verb = create ] && {{
        head -c {size} /dev/zero | tr '\\0' 'x' >&2
        printf '\\nWARN \\033[31m\\ncannot write: full\\n' >&2
        exit 3
    }}"""
    process = run(
        make_bundle("exit 7"), "--runtime", runtimes.script(tmp_path / "mute", text), id_="mute"
    )
    code, out, err = ended(process)
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith(f"forkshim: mute: {tmp_path}/mute create: exit status 3: ")
    assert line.endswith("WARN \\x1b[31m; cannot write: full")
    assert len(line) < len(str(tmp_path)) + 1200


def _remove_home(home: Path) -> None:
    shutil.rmtree(home)


def _overwrite_handover(home: Path) -> None:
    (home / "init" / "handover").write_bytes(os.urandom(10))


@pytest.mark.parametrize("spoil", [_remove_home, _overwrite_handover])
@pytest.mark.parametrize("sink", ["file:{}/log", "null", "cri,policy=drop-old:{}/log"])
def test_nothing_of_a_killed_supervisor_outlives_what_could_be_adopted(
    run: Run, make_bundle: Callable[..., Path], tmp_path: Path,
    sink: str, spoil: Callable[[Path], None],
) -> None:  # fmt: skip
    container_id = bundles.fresh_id("spoilt")
    bundle = make_bundle("while :; do echo x; sleep 0.1; done")
    process = run(bundle, "--log", sink.format(tmp_path), id_=container_id)
    home = run.root / container_id
    waiting.wait_true(lambda: (home / "init").is_dir())
    fd_stores.wait_published(home / "init")
    waiting.wait_worker(process.pid, "fds")
    left = [
        pid
        for pid in waiting.children_of(process.pid)
        if waiting.title_of(pid).startswith(f"forkshim: {container_id} [")
    ]
    process.kill()
    process.wait()
    spoil(home)
    runtime_calls.call("delete", "--force", container_id)
    again = run(make_bundle("exit 7"), id_=container_id)  # which clears the home away
    assert again.wait() == 7
    for pid in left:
        waiting.wait_process(pid)
