"""Every sink through `forkshim run` and through `forkshim-shim`, with a real runtime."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.harness import bundles, mounts, waiting
from tests.harness.engine import FORKSHIM, Engine
from tests.harness.fake_journal import FakeJournal
from tests.harness.rewriting import cri_records, cri_streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness.fake_journal import Datagram

pytestmark = pytest.mark.runc

SCRIPT = "echo one; echo; printf 'two \\n<4>th'; printf 'ree\\nhalf'; echo bad >&2; exit 9"
SAID_OUT = b"one\n\ntwo \n<4>three\nhalf"
SAID_ERR = b"bad\n"


class Way(Protocol):
    """How a container is run to its end: its status, and the warnings that were given."""

    def __call__(
        self, script: str, sink: str, *, terminal: bool = False, **popen: Any
    ) -> tuple[int, list[str]]:
        """Run `script` with both outputs into `sink`."""


@pytest.fixture(params=["run", "shim"])
def through(
    request: pytest.FixtureRequest, tmp_path: Path, make_bundle: Callable[..., Path]
) -> Iterator[Way]:
    """Each front end."""
    with ExitStack() as stack:

        def shim(
            script: str, sink: str, *, terminal: bool = False, **popen: Any
        ) -> tuple[int, list[str]]:
            engine = stack.enter_context(
                Engine(
                    tmp_path / f"state{len(list(tmp_path.iterdir()))}",
                    bundles.fresh_id("sink"),
                    make_bundle(script, terminal=terminal),
                    terminal=terminal,
                    containerdStdout=sink,
                    containerdStderr="" if terminal else sink,
                )
            )
            engine.launch(**popen)
            engine.created()
            engine.start()
            status = engine.wait_end()
            assert engine.wait_shim() == 0
            return status, engine.log("warn")

        def run(
            script: str, sink: str, *, terminal: bool = False, **popen: Any
        ) -> tuple[int, list[str]]:
            bundle = make_bundle(script, terminal=terminal)
            options: list[str | Path] = [
                "--root",
                tmp_path / "root",
                "--bundle",
                bundle,
                "--log",
                sink,
            ]
            done = subprocess.run(
                [FORKSHIM, "run", *options, bundles.fresh_id("sink")],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=waiting.LIMIT_S,
                check=False,
                **popen,
            )
            assert done.stdout == ""
            return done.returncode, done.stderr.splitlines()

        yield {"run": run, "shim": shim}[request.param]


@pytest.fixture
def make_annotated(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, object]], None]:
    """Return a function that gives annotations to the bundles that are made from then on."""
    config = bundles.config

    def make(annotations: dict[str, object]) -> None:
        def annotated(*args: Any, **options: Any) -> dict[str, Any]:
            return {**config(*args, **options), "annotations": annotations}

        monkeypatch.setattr(bundles, "config", annotated)

    return make


class Journal:
    """A journald that is not one, for whoever is started with `enter` as preexec_fn."""

    def __init__(self, stack: ExitStack) -> None:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        (directory / "systemd/journal").mkdir(parents=True)
        self.fake = stack.enter_context(FakeJournal(directory / "systemd/journal/socket"))
        self.enter = mounts.make_run(directory)

    def by_stream(self) -> dict[str, list[Datagram]]:
        """Return what came of each stream, every ordinal once."""
        found: dict[str, list[Datagram]] = {}
        for datagram in self.fake.datagrams():
            if "CONTAINER_STREAM" not in datagram.fields:
                continue  # a message of the supervisor's own
            found.setdefault(datagram.fields["CONTAINER_STREAM"].decode(), []).append(datagram)
        for datagrams in found.values():
            assert [each.ordinal for each in datagrams] == list(range(1, len(datagrams) + 1))
        return found


@pytest.fixture
def journal() -> Iterator[Journal]:
    with ExitStack() as stack:
        yield Journal(stack)


def test_cri_has_both_streams_in_one_file(through: Way, tmp_path: Path) -> None:
    log = tmp_path / "log"
    for times in (1, 2):
        assert through(SCRIPT, f"cri:{log}") == (9, [])
        said = cri_streams(log.read_bytes())
        assert said == {"stdout": SAID_OUT * times, "stderr": SAID_ERR * times}
    assert [tag for _time, _stream, tag, _text in cri_records(log.read_bytes())].count("P") == 2
    assert log.stat().st_mode & 0o777 == 0o640


def test_a_console_in_cri_is_stdout(through: Way, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert through("echo one; printf two", f"cri:{log}", terminal=True) == (0, [])
    assert cri_streams(log.read_bytes()) == {"stdout": b"one\r\ntwo", "stderr": b""}


def test_a_file_is_rotated_between_lines_and_both_outputs_keep_their_order(
    through: Way, tmp_path: Path
) -> None:
    script = "i=0; while [ $i -lt 9000 ]; do echo out$i; echo err$i >&2; i=$((i+1)); done"
    logs = tmp_path / "logs"
    logs.mkdir()
    assert through(script, f"file,max-size=64k,keep=3:{logs / 'log'}") == (0, [])
    wanted = b"".join(b"out%d\nerr%d\n" % (i, i) for i in range(9000))
    assert sorted(os.listdir(logs)) == ["log", "log.1", "log.2"]
    files = [(logs / name).read_bytes() for name in ("log.2", "log.1", "log")]
    assert b"".join(files) == wanted
    assert all(content.endswith(b"\n") and len(content) <= 64 << 10 for content in files)


def test_old_files_are_no_more_than_were_asked_for(through: Way, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    assert through("seq 100000", f"cri,max-size=64k,keep=2:{logs / 'log'}") == (0, [])
    assert sorted(os.listdir(logs)) == ["log", "log.1", "log.2"]
    assert cri_streams((logs / "log").read_bytes())["stdout"].endswith(b"\n100000\n")


def test_each_line_is_a_record_of_the_journal(through: Way, journal: Journal) -> None:
    sink = "journal,tag=web,max-line=1k"
    assert through(SCRIPT, sink, preexec_fn=journal.enter) == (9, [])
    said = journal.by_stream()
    assert [each.message for each in said["stdout"]] == [b"one", b"", b"two ", b"three", b"half"]
    assert [each.message for each in said["stderr"]] == [b"bad"]
    assert [each.fields["PRIORITY"] for each in said["stdout"]] == [b"6", b"6", b"6", b"4", b"6"]
    fields = said["stderr"][0].fields
    container_id = fields["CONTAINER_ID_FULL"]
    assert container_id.startswith(b"fst-sink-")
    assert fields["CONTAINER_ID"] == container_id[:12]
    assert fields["CONTAINER_NAME"] == container_id
    assert fields["CONTAINER_TAG"] == fields["SYSLOG_IDENTIFIER"] == b"web"
    assert fields["PRIORITY"] == b"3"
    epochs = {each.fields["CONTAINER_LOG_EPOCH"] for stream in said.values() for each in stream}
    assert len(epochs) == 1


def test_a_line_of_a_console_is_without_the_terminals_carriage_return(
    through: Way, journal: Journal
) -> None:
    script = "echo one; printf 'two\\r\\r\\nthree'"
    assert through(script, "journal", terminal=True, preexec_fn=journal.enter) == (0, [])
    (said,) = journal.by_stream().values()
    assert [each.message for each in said] == [b"one", b"two\r\r", b"three"]
    assert {each.fields["CONTAINER_STREAM"] for each in said} == {b"stdout"}


def test_json_and_indented_lines_and_annotations_become_fields(
    through: Way, journal: Journal, make_annotated: Callable[[dict[str, object]], None]
) -> None:
    make_annotated({"com.example.team": "shop", "com.example.unit": "x", "org.other": "no"})
    script = """printf '{"level":"error","msg":"sold","item":7}\\nBug\\n at once\\n'"""
    sink = "journal,json=yes,join=indented,annotation=com.example.*"
    assert through(script, sink, preexec_fn=journal.enter) == (0, [])
    (said,) = journal.by_stream().values()
    assert [each.message for each in said] == [b"sold", b"Bug\n at once"]
    assert (said[0].fields["PRIORITY"], said[0].fields["ITEM"]) == (b"3", b"7")
    for each in said:
        assert each.fields["COM_EXAMPLE_TEAM"] == b"shop"
        assert each.fields["COM_EXAMPLE_UNIT"] == b"x"
        assert "ORG_OTHER" not in each.fields


@pytest.mark.parametrize("annotations", [{"a": 1}, []])
def test_annotations_that_are_none_are_the_bundles_fault(
    make_bundle: Callable[..., Path],
    journal: Journal,
    tmp_path: Path,
    annotations: object,
) -> None:
    bundle = make_bundle("echo never")
    document = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps({**document, "annotations": annotations}))
    command: list[str | Path] = [FORKSHIM, "run", "--root", tmp_path / "root", "--bundle", bundle]
    done = subprocess.run(
        [*command, "--log=journal,annotation=*", bundles.fresh_id("sink")],
        capture_output=True,
        text=True,
        preexec_fn=journal.enter,
    )
    assert (done.returncode, done.stdout) == (6, "")
    assert "config.json: annotations: " in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_journal_that_is_not_there_is_an_error_at_once(
    through: Way, journal: Journal, tmp_path: Path
) -> None:
    journal.fake.path.rename(tmp_path / "away")
    if through.__name__ == "run":  # type: ignore[attr-defined] # a function, as made above
        status, said = through(SCRIPT, "journal", preexec_fn=journal.enter)
        assert status == 1
        (line,) = said
        assert "connect to /run/systemd/journal/socket: no such file or directory" in line
    (tmp_path / "away").rename(journal.fake.path)


def test_a_journald_that_comes_back_gets_what_was_said_meanwhile(
    make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    """Its socket is another one then; the bytes have waited."""
    with ExitStack() as stack:
        journal = Journal(stack)
        engine = stack.enter_context(
            Engine(
                tmp_path / "state",
                bundles.fresh_id("back"),
                make_bundle("while read line; do echo $line; done; exit 3"),
                containerdStdin="stdin",
                containerdStdout="journal",
                containerdStderr="",
            )
        )
        engine.launch(preexec_fn=journal.enter)
        engine.created()
        engine.start()
        stdin = engine.open("stdin", os.O_WRONLY)
        os.write(stdin, b"one\n")
        kept = journal.fake.path.with_suffix(".kept")
        waiting.wait_true(lambda: kept.exists() and b"MESSAGE=one\n" in kept.read_bytes())
        first = [each.message for each in journal.fake.datagrams()]
        journal.fake.path.unlink()
        journal.fake.close()
        os.write(stdin, b"two\n")
        waiting.wait_true(lambda: any("stdout journal" in line for line in engine.log("warn")))
        os.write(stdin, b"three\n")
        engine.close("stdin")  # before the fork, or its child has it
        again = stack.enter_context(FakeJournal(journal.fake.path))
        engine.control("0 0 0\n")
        assert engine.wait_end() == 3
        second = list(again.datagrams())
        assert [*first, *(each.message for each in second)] == [b"one", b"two", b"three"]
        assert [each.ordinal for each in second] == [2, 3]


def test_a_stream_of_the_journal_that_breaks_is_followed_by_another(
    make_engine: Callable[..., Engine], journal: Journal
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(os.fspath(journal.fake.path.with_name("stdout")))
        listener.listen()
        listener.settimeout(waiting.LIMIT_S)
        engine = make_engine(
            "while read line; do echo $line; done; printf 'no end'",
            containerdStdin="stdin",
            containerdStdout="journal-stream,priority=2,tag=web",
            containerdStderr="",
        )
        engine.launch(preexec_fn=journal.enter)
        engine.created()
        engine.start()
        stdin = engine.open("stdin", os.O_WRONLY)
        os.write(stdin, b"one\n")
        with listener.accept()[0] as first:
            first.settimeout(waiting.LIMIT_S)
            data = b""
            while not data.endswith(b"one\n"):
                data += first.recv(999)
            identifier, _unit, *rest = data.split(b"\n")
            assert (identifier, rest) == (b"web", [b"2", b"1", b"0", b"0", b"0", b"one", b""])
        os.write(stdin, b"two\n")
        with listener.accept()[0] as second:
            os.write(stdin, b"three\n")
            engine.close("stdin")
            engine.control("0 0 0\n")
            assert waiting.read_to_end(second.fileno()).split(b"\n")[7:] == [
                b"two", b"three", b"no end",
            ]  # fmt: skip
        assert engine.wait_end() == 0
        (warning,) = engine.log("warn")
        assert warning.startswith("stdout journal-stream: Broken pipe (EPIPE) after 4 bytes")


@pytest.mark.parametrize("kind", ["cri", "journal"])
def test_an_unfinished_line_is_kept_although_a_stray_has_the_pipe(
    make_engine: Callable[..., Engine], journal: Journal, tmp_path: Path, kind: str
) -> None:
    """Its descriptor leaves the container with a process that `kill --all` does not find."""
    log = tmp_path / "log"
    sink = "journal" if kind == "journal" else f"cri:{log}"
    engine = make_engine(
        "printf 'one\\nhalf'; exec sleep 1000",
        containerdStdout=sink,
        containerdStderr="",
    )
    engine.launch(preexec_fn=journal.enter)
    pid = engine.created()
    with open(f"/proc/{pid}/fd/1", "wb"):  # the test is the stray
        engine.start()
        if kind == "cri":
            waiting.wait_path(log, lambda path: path.exists() and path.stat().st_size > 0)
        else:
            kept = journal.fake.path.with_suffix(".kept")
            waiting.wait_true(lambda: kept.exists() and kept.stat().st_size > 0)
        os.kill(pid, signal.SIGKILL)
        assert engine.wait_end() == 128 + signal.SIGKILL
    (warning,) = engine.log("warn")
    assert "a process that outlived the container" in warning
    if kind == "cri":
        assert cri_streams(log.read_bytes())["stdout"] == b"one\nhalf"
    else:
        (said,) = journal.by_stream().values()
        assert [each.message for each in said] == [b"one", b"half"]


@pytest.mark.parametrize("kind", ["file", "file,max-size=1M", "cri"])
def test_a_log_that_was_moved_away_is_opened_anew_on_a_word(
    make_engine: Callable[..., Engine], tmp_path: Path, kind: str
) -> None:
    log = tmp_path / "log"
    engine = make_engine(
        "while read line; do echo out $line; echo err $line >&2; done",
        containerdStdin="stdin",
        containerdStdout=f"{kind}:{log}",
        containerdStderr=f"{kind}:{log}",
    )
    engine.run()
    stdin = engine.open("stdin", os.O_WRONLY)

    def say(word: str) -> None:
        os.write(stdin, f"{word}\n".encode())
        waiting.wait_path(log, lambda path: path.exists() and f"err {word}" in path.read_text())

    say("one")
    log.rename(tmp_path / "log.1")
    old = [waiting.worker_of(engine.shim_pid, stream) for stream in ("stdout", "stderr")]
    engine.control("reopen\n")
    waiting.wait_true(lambda: not any(pid and waiting.is_alive(pid) for pid in old))
    say("two")
    engine.close("stdin")
    engine.control("0 0 0\n")
    assert engine.wait_end() == 0
    assert engine.log("warn") == []
    for path, word in ((tmp_path / "log.1", "one"), (log, "two")):
        lines = path.read_text().splitlines()
        assert sorted(line[-7:] for line in lines) == [f"err {word}", f"out {word}"]


COUNTED = 200_000
"""Lines of a container that writes as fast as it can."""


def _count(engine: Engine, log: Path, on_growth: Callable[[], None]) -> None:
    """Run it, with `on_growth` each time when the log of that name has some more."""
    engine.run()
    rounds = size = 0
    while not waiting.has_hung_up(engine.exit_fd):
        if (grown := log.stat().st_size) == size:
            os.sched_yield()
            continue
        size = grown
        rounds += 1
        on_growth()
    assert engine.exit_status() == 9
    assert rounds > 20


def _ask_to_reopen(engine: Engine) -> None:
    with suppress(BlockingIOError):  # then many are on their way
        engine.control("reopen\n")


def _counting(make_engine: Callable[..., Engine], log: Path) -> Engine:
    script = f"i=0; while [ $i -lt {COUNTED} ]; do i=$((i+1)); echo line $i; done; exit 9"
    return make_engine(script, containerdStdout=f"file:{log}", containerdStderr="")


def test_a_log_that_nobody_has_moved_loses_nothing_when_it_is_opened_anew(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    engine = _counting(make_engine, log)
    _count(engine, log, lambda: _ask_to_reopen(engine))
    assert log.read_text().splitlines() == [f"line {n + 1}" for n in range(COUNTED)]
    assert engine.log("warn") == []


def test_logs_that_are_moved_away_and_back_lose_nothing(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    """Each file comes back while whoever wrote to it may still be at it."""
    log, other = tmp_path / "log", tmp_path / "other"
    other.touch()
    engine = _counting(make_engine, log)

    def swap() -> None:
        mounts.exchange(log, other)
        _ask_to_reopen(engine)

    _count(engine, log, swap)
    said = [*log.read_text().splitlines(), *other.read_text().splitlines()]
    assert sorted(said) == sorted(f"line {n + 1}" for n in range(COUNTED))
    assert engine.log("warn") == []


@pytest.mark.parametrize("kind", ["file,max-size=1M", "cri"])
def test_a_log_whose_directory_was_replaced_is_opened_in_the_new_one_on_a_word(
    make_engine: Callable[..., Engine], tmp_path: Path, kind: str
) -> None:
    log = tmp_path / "logs" / "log"
    log.parent.mkdir()
    engine = make_engine(
        "while read line; do echo out $line; done",
        containerdStdin="stdin",
        containerdStdout=f"{kind}:{log}",
        containerdStderr="",
    )
    engine.run()
    stdin = engine.open("stdin", os.O_WRONLY)
    os.write(stdin, b"one\n")
    waiting.wait_path(log, lambda path: path.exists() and "out one" in path.read_text())
    log.parent.rename(tmp_path / "old")
    log.parent.mkdir()
    engine.control("reopen\n")
    waiting.wait_true(log.exists)
    os.write(stdin, b"two\n")
    waiting.wait_path(log, lambda path: "out two" in path.read_text())
    engine.close("stdin")
    engine.control("0 0 0\n")
    assert engine.wait_end() == 0
    assert engine.log("warn") == []
    assert "two" not in (tmp_path / "old" / "log").read_text()


def test_a_link_in_the_place_of_a_log_is_not_followed(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    """Its directory may be somebody's who must not write where root may."""
    log, secret = tmp_path / "log", tmp_path / "secret"
    secret.write_text("mine")
    engine = make_engine(
        "while read line; do echo out $line; done",
        containerdStdin="stdin",
        containerdStdout=f"cri:{log}",
        containerdStderr="",
    )
    engine.run()
    log.unlink()
    log.symlink_to("secret")
    engine.control("reopen\n")
    waiting.wait_path(
        engine.dir / "shim-log.json",
        lambda _path: any(
            said.endswith(f"{log}: not a regular file; the worker keeps the old file")
            for said in engine.log("warn")
        ),
    )
    assert secret.read_text() == "mine"
    log.unlink()
    engine.control("reopen\n")
    waiting.wait_path(log, lambda path: path.exists())
    os.write(engine.open("stdin", os.O_WRONLY), b"one\n")
    waiting.wait_path(log, lambda path: path.exists() and "out one" in path.read_text())
    engine.close("stdin")
    engine.control("0 0 0\n")
    assert engine.wait_end() == 0


@pytest.mark.parametrize("kind", ["file", "cri"])
def test_a_link_that_is_there_before_is_not_followed_either(
    make_engine: Callable[..., Engine], tmp_path: Path, kind: str
) -> None:
    log = tmp_path / "log"
    log.symlink_to("secret")
    engine = make_engine(containerdStdout=f"{kind}:{log}", containerdStderr="")
    engine.launch()
    assert engine.wait_shim() == 1
    assert engine.log("error") == [f"open {log}: too many levels of symbolic links"]
    assert not (tmp_path / "secret").exists()


def test_a_link_in_the_place_of_a_plain_log_is_not_followed(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    log, secret = tmp_path / "log", tmp_path / "secret"
    engine = make_engine(
        "while read line; do echo out $line; done",
        containerdStdin="stdin",
        containerdStdout=f"file:{log}",
        containerdStderr="",
    )
    engine.run()
    log.rename(tmp_path / "log.1")
    log.symlink_to("secret")
    engine.control("reopen\n")
    waiting.wait_path(engine.dir / "shim-log.json", lambda _path: bool(engine.log("warn")))
    os.write(engine.open("stdin", os.O_WRONLY), b"one\n")
    engine.close("stdin")
    engine.control("0 0 0\n")
    assert engine.wait_end() == 0
    assert engine.log("warn") == [
        f"stdout: open {log}: too many levels of symbolic links; the worker keeps the old file"
    ]
    assert (tmp_path / "log.1").read_text() == "out one\n"
    assert not secret.exists()


@pytest.mark.parametrize(
    ("sink", "status", "said"),
    [
        ("file,max-sze=1M:x", 2, "sink file,max-sze=1M:x: option max-sze: file takes"),
        ("cri:", 2, "sink cri:: cri needs a path"),
        ("journal:x", 2, "sink journal:x: journal takes no path"),
        ("cri:/nonexistent/log", 1, "open /nonexistent/log: no such file or directory"),
        ("cri:/dev/null", 1, "open /dev/null: not a regular file"),
    ],
)
def test_a_wrong_sink_is_one_line(
    through: Way, make_engine: Callable[..., Engine], sink: str, status: int, said: str
) -> None:
    if through.__name__ == "run":  # type: ignore[attr-defined] # a function, as made above
        ended, (line,) = through("echo never", sink)
        assert (ended, said in line) == (status, True), line
        return
    engine = make_engine("echo never", containerdStdout=sink, containerdStderr="")
    engine.launch()
    assert engine.wait_shim() == 1
    (line,) = engine.log("error")
    assert said in line


@pytest.mark.parametrize("other", ["cri,max-size=1M:", "file:", ""])
def test_one_file_with_two_rules_is_refused(
    make_engine: Callable[..., Engine], tmp_path: Path, other: str
) -> None:
    log = tmp_path / "log"
    log.touch()
    (tmp_path / "link").symlink_to(tmp_path)
    engine = make_engine(
        containerdStdout=f"cri:{log}", containerdStderr=f"{other}{tmp_path}/link/log"
    )
    engine.launch()
    assert engine.wait_shim() == 1
    assert engine.log("error") == [f"{log}: stdout and stderr ask for different log files in it"]
