"""The bytes between a client and its container: fifos, files, terminals, and clients that leave."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import bundles, waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.runtime.conftest import MakeEngine

pytestmark = pytest.mark.runc

MANY = 800_000
"""Lines; 5.4 MiB as `seq` prints them, more than every pipe on the way holds together."""


def numbers(count: int = MANY) -> bytes:
    """Return what `seq 1 COUNT` prints."""
    return b"".join(b"%d\n" % n for n in range(1, count + 1))


def read_some(fd: int, least: int) -> bytes:
    """Read at least `least` bytes."""
    data = bytearray()
    while len(data) < least:
        waiting.wait_readable(fd)
        chunk = os.read(fd, 65536)
        assert chunk
        data += chunk
    return bytes(data)


# Fifos.


def test_more_than_all_pipes_hold_arrives_whole_and_in_order(make_engine: MakeEngine) -> None:
    engine = make_engine(f"seq 1 {MANY}; echo end >&2")
    engine.run_attached()
    stdout, stderr = engine.read_end("stdout", "stderr")
    assert stdout == numbers()
    assert stderr == b"end\n"
    assert engine.wait_end() == 0
    assert engine.log("warn") == []


def test_a_client_that_leaves_and_comes_back_gets_every_byte(make_engine: MakeEngine) -> None:
    engine = make_engine(f"seq 1 {MANY}")
    stdout, _stderr = engine.run_attached()
    data = read_some(stdout, 100_000)
    for _visit in range(3):
        engine.close("stdout")
        (stdout,) = engine.attach("stdout")
        data += read_some(stdout, 1_000_000)
    assert data + waiting.read_to_end(stdout) == numbers()
    assert engine.wait_end() == 0


def test_a_container_whose_client_is_away_is_not_killed_by_sigpipe(
    make_engine: MakeEngine,
) -> None:
    script = "echo first; read line; seq 1 100000; echo said >&2; read line; exit 7"
    engine = make_engine(script, containerdStdin="stdin")
    stdout, stderr = engine.run_attached()
    assert waiting.read_until(stdout, b"\n") == b"first\n"
    engine.close("stdout")
    stdin = engine.open("stdin", os.O_WRONLY)
    os.write(stdin, b"go\n")
    waiting.read_until(stderr, b"said\n")
    (stdout,) = engine.attach("stdout")
    os.write(stdin, b"end\n")
    assert waiting.read_to_end(stdout) == numbers(100_000)
    assert engine.wait_end() == 7
    assert engine.log("warn") == []


def test_the_client_may_unlink_the_names_once_the_container_is_created(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine("cat; echo err >&2", containerdStdin="stdin")
    engine.attach("stdout", "stderr")
    engine.launch()
    engine.created()
    stdin = engine.open("stdin", os.O_WRONLY)
    for stream in ("stdin", "stdout", "stderr"):
        (engine.dir / stream).unlink()
    engine.start()
    os.write(stdin, b"in\n")
    engine.close("stdin")
    engine.control("0 0 0\n")
    assert engine.read_end("stdout", "stderr") == [b"in\n", b"err\n"]
    assert engine.wait_end() == 0


def test_absolute_paths_are_taken_as_they_are(make_engine: MakeEngine, tmp_path: Path) -> None:
    paths = {name: str(tmp_path / f"my-{name}") for name in ("stdin", "stdout", "stderr")}
    for path in paths.values():
        os.mkfifo(path)
    fields: dict[str, Any] = {
        f"containerd{name.capitalize()}": path for name, path in paths.items()
    }
    engine = make_engine("read line; echo $line; echo err >&2", **fields)
    fds = {name: engine.open(path, os.O_RDWR | os.O_NONBLOCK) for name, path in paths.items()}
    engine.run()
    os.write(fds["stdin"], b"in\n")
    assert waiting.read_until(fds["stdout"], b"\n") == b"in\n"
    assert waiting.read_until(fds["stderr"], b"\n") == b"err\n"
    assert engine.wait_end() == 0


@pytest.mark.parametrize("path", ["", "/dev/null"])
def test_streams_to_nowhere_never_block_the_container(make_engine: MakeEngine, path: str) -> None:
    fields: dict[str, Any] = {f"containerd{name}": path for name in ("Stdin", "Stdout", "Stderr")}
    engine = make_engine(f"cat; seq 1 {MANY}; seq 1 {MANY} >&2; exit 7", **fields)
    engine.run()
    assert engine.wait_end() == 7


def test_stdout_and_stderr_may_be_the_same_fifo(make_engine: MakeEngine) -> None:
    engine = make_engine("seq 1 50000; seq 1 50000 >&2", containerdStderr="stdout")
    engine.run_attached()
    (both,) = engine.read_end("stdout")
    # Two workers may tear each other's lines, as two processes that write to one pipe may.
    assert Counter(both) == Counter(numbers(50_000) * 2)
    assert engine.wait_end() == 0


def test_outputs_are_at_their_end_only_when_the_container_is_gone(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine("exec >&- 2>&-; read line; exit 7", containerdStdin="stdin")
    stdout, stderr = engine.run_attached()
    os.write(engine.open("stdin", os.O_WRONLY), b"\n")
    assert waiting.read_to_end(stdout) == b""
    assert waiting.read_to_end(stderr) == b""
    assert engine.runtime_state() is None
    assert engine.wait_end() == 7


def test_a_client_that_attaches_after_the_outputs_were_closed_gets_the_end(
    make_engine: MakeEngine,
) -> None:
    script = "echo last; exec >&-; echo closed >&2; read line; exit 7"
    engine = make_engine(script, containerdStdin="stdin")
    stdout, stderr = engine.run_attached()
    waiting.read_until(stderr, b"closed\n")
    assert waiting.read_until(stdout, b"\n") == b"last\n"
    waiting.wait_gone(lambda: waiting.worker_of(engine.shim_pid, "stdout"))
    engine.close("stdout")
    late = engine.open("stdout", os.O_RDONLY)  # would wait for ever without a writer
    assert not waiting.has_hung_up(late)
    os.write(engine.open("stdin", os.O_WRONLY), b"\n")
    assert waiting.read_to_end(late) == b""
    assert engine.wait_end() == 7


def test_last_words_wait_for_a_client_that_comes_back_after_the_death(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine("read line; echo last words; exit 7", containerdStdin="stdin")
    engine.run_attached()
    engine.close("stdout")
    os.write(engine.open("stdin", os.O_WRONLY), b"\n")
    waiting.wait_path(engine.dir / "exitStatus", Path.exists)
    assert not waiting.has_hung_up(engine.exit_fd)
    (stdout,) = engine.attach("stdout")
    assert waiting.read_to_end(stdout) == b"last words\n"
    assert engine.wait_end() == 7


# Input.


def test_input_of_more_than_all_pipes_hold_arrives_whole(make_engine: MakeEngine) -> None:
    engine = make_engine("sha256sum", containerdStdin="stdin")
    engine.run_attached()
    stdin = engine.open("stdin", os.O_WRONLY)
    data = numbers()
    view = memoryview(data)
    while view:
        view = view[os.write(stdin, view) :]
    engine.close("stdin")
    engine.control("0 0 0\n")
    (said,) = engine.read_end("stdout")
    assert said.split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert engine.wait_end() == 0


def test_writers_of_stdin_may_come_and_go(make_engine: MakeEngine) -> None:
    engine = make_engine("while read line; do echo got $line; done", containerdStdin="stdin")
    stdout, _stderr = engine.run_attached()
    for word in (b"one", b"two", b"three"):
        os.write(engine.open("stdin", os.O_WRONLY), word + b"\n")
        engine.close("stdin")
        assert waiting.read_until(stdout, b"\n") == b"got " + word + b"\n"
    engine.control("0 0 0\n")
    assert engine.wait_end() == 0


def test_a_container_that_closes_its_stdin_breaks_no_writer(make_engine: MakeEngine) -> None:
    engine = make_engine(
        "trap 'exit 7' USR1; exec < /dev/null; echo closed; while :; do sleep 0.05; done",
        containerdStdin="stdin",
    )
    stdout, _stderr = engine.run_attached()
    assert waiting.read_until(stdout, b"\n") == b"closed\n"
    stdin = engine.open("stdin", os.O_WRONLY)
    waiting.wait_gone(lambda: waiting.worker_of(engine.shim_pid, "stdin"))
    assert os.write(stdin, b"x" * 65536) == 65536  # no EPIPE
    assert engine.log("warn") == []
    waiting.send(engine.shim_pid, 10)
    assert engine.wait_end() == 7


# Plain files.


def test_a_plain_file_is_written_from_its_beginning_and_not_truncated(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    sink = tmp_path / "sink"
    sink.write_bytes(b"0123456789")
    engine = make_engine("echo out", containerdStdout=str(sink), containerdStderr="")
    engine.run()
    assert engine.wait_end() == 0
    assert sink.read_bytes() == b"out\n456789"


def test_a_file_sink_is_made_and_appended_to(make_engine: MakeEngine, tmp_path: Path) -> None:
    for round_number in (1, 2):
        engine = make_engine(
            f"echo out {round_number}",
            containerdStdout=f"file:{tmp_path}/sink",
            containerdStderr="null",
        )
        engine.run()
        assert engine.wait_end() == 0
    assert (tmp_path / "sink").read_bytes() == b"out 1\nout 2\n"
    assert (tmp_path / "sink").stat().st_mode & 0o777 == 0o640


def test_both_streams_in_one_file_keep_their_order(make_engine: MakeEngine, tmp_path: Path) -> None:
    sink = tmp_path / "sink"
    sink.touch()
    script = "for n in $(seq 1 500); do echo out $n; echo err $n >&2; done"
    engine = make_engine(script, containerdStdout=str(sink), containerdStderr=str(sink))
    engine.run()
    assert engine.wait_end() == 0
    wanted = "".join(f"out {n}\nerr {n}\n" for n in range(1, 501))
    assert sink.read_text() == wanted


def test_a_plain_file_as_stdin_is_read_to_its_end(make_engine: MakeEngine, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(numbers(200_000))
    engine = make_engine("cat", containerdStdin=str(source))
    engine.run_attached()
    assert engine.read_end("stdout") == [numbers(200_000)]
    assert engine.wait_end() == 0


# Who may open the pipes again.

REOPEN = """
echo one > /dev/stdout || exit 3
echo two >> /proc/self/fd/1 || exit 4
echo err > /proc/self/fd/2 || exit 5
cat /dev/stdin || exit 6
"""


def test_the_container_may_open_its_pipes_again(make_engine: MakeEngine) -> None:
    engine = make_engine(REOPEN, containerdStdin="stdin")
    engine.control("0 0 0\n")
    engine.run_attached()
    assert engine.read_end("stdout", "stderr") == [b"one\ntwo\n", b"err\n"]
    assert engine.wait_end() == 0


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Return a directory that every user may pass; pytest's own are closed."""
    path = Path(tempfile.mkdtemp(prefix="fst-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_the_root_of_a_user_namespace_owns_its_pipes(
    make_engine: MakeEngine, open_directory: Path, tmp_path: Path
) -> None:
    rootfs = bundles.make_rootfs(open_directory)
    document: dict[str, Any] = bundles.config(
        rootfs, bundles.shell("cat /proc/self/uid_map;" + REOPEN)
    )
    document["linux"]["namespaces"].append({"type": "user"})
    for kind in ("uidMappings", "gidMappings"):
        document["linux"][kind] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    engine = make_engine(
        bundle=bundles.make_bundle(tmp_path / "mapped", document),
        containerdStdin="stdin",
        rootUID=100000,
        rootGID=100000,
    )
    engine.control("0 0 0\n")
    engine.run_attached()
    stdout, stderr = engine.read_end("stdout", "stderr")
    uid_map, _newline, rest = stdout.partition(b"\n")
    assert uid_map.split() == [b"0", b"100000", b"65536"]
    assert (rest, stderr) == (b"one\ntwo\n", b"err\n")
    assert engine.wait_end() == 0


# Terminals.


def test_a_terminals_output_has_carriage_returns(make_engine: MakeEngine) -> None:
    engine = make_engine("echo out; echo err >&2; exit 7", terminal=True)
    engine.run_attached()
    assert engine.read_end("stdout") == [b"out\r\nerr\r\n"]
    assert engine.wait_end() == 7
    assert engine.wait_shim() == 0
    assert engine.log("warn") == []
    assert engine.leftovers() == []


def test_a_terminals_output_of_more_than_all_pipes_hold_arrives_whole(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(f"seq 1 {MANY}", terminal=True)
    engine.run_attached()
    (said,) = engine.read_end("stdout")
    assert said == numbers().replace(b"\n", b"\r\n")
    assert engine.wait_end() == 0


def test_a_terminals_stderr_path_is_not_even_opened(make_engine: MakeEngine) -> None:
    engine = make_engine(terminal=True, containerdStderr="/no/such/path")
    engine.run_attached()
    assert engine.wait_end() == 7


def test_a_terminal_without_a_reader_does_not_block_the_container(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine("seq 1 100000; exit 7", terminal=True, containerdStdout="")
    engine.run()
    assert engine.wait_end() == 7


def test_a_terminal_echoes_its_input_and_knows_its_keys(make_engine: MakeEngine) -> None:
    engine = make_engine(
        "echo ready; read line; echo got $line; trap 'echo int; exit 9' INT; echo trap;"
        " while :; do sleep 0.02; done",
        terminal=True,
        containerdStdin="stdin",
    )
    (stdout, *_rest) = engine.run_attached()
    waiting.read_until(stdout, b"ready\r\n")
    stdin = engine.open("stdin", os.O_WRONLY)
    os.write(stdin, b"hello\n")
    assert waiting.read_until(stdout, b"trap\r\n") == b"hello\r\ngot hello\r\ntrap\r\n"
    os.write(stdin, b"\x03")
    # The kernel sends the signal first and echoes the key then: the answer may be quicker.
    assert waiting.read_to_end(stdout).replace(b"^C", b"") == b"int\r\n"
    assert engine.wait_end() == 9


def test_a_client_of_a_terminal_may_leave_and_come_back(make_engine: MakeEngine) -> None:
    engine = make_engine(
        "echo one; read line; echo two; read line; exit 7", terminal=True, containerdStdin="stdin"
    )
    (stdout, *_rest) = engine.run_attached()
    assert waiting.read_until(stdout, b"one\r\n") == b"one\r\n"
    engine.close("stdout")
    os.write(engine.open("stdin", os.O_WRONLY), b"\n")
    engine.close("stdin")
    (stdout,) = engine.attach("stdout")
    assert waiting.read_until(stdout, b"two\r\n") == b"\r\ntwo\r\n"
    os.write(engine.open("stdin", os.O_WRONLY), b"\n")
    assert engine.wait_end() == 7
