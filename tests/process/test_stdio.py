"""Opening the client's side of the streams, whoever comes first or late or never."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from supervisor.io import stdio
from supervisor.io.client_stdio import Stdio
from supervisor.io.stdio import StdioOpener
from supervisor.linux import fds
from supervisor.linux.errors import ShimError
from supervisor.linux.exit_status import Exited
from supervisor.oci.process_json import ProcessConfig
from tests.harness import waiting
from tests.harness.forked import forked, has_no_children
from workers.copy import fifo_wait

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.rig import Rig

pytestmark = pytest.mark.process


class Opening:
    """One `StdioOpener` at work in a yard. Owns what it has opened until `close`."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.opener = StdioOpener(
            rig.loop,
            rig.reaper,
            container_id="opening",
            bundle="/nowhere",
            title="forkshim: opening",
            null_fd=rig.null.fileno(),
        )
        self.ends: list[Stdio | ShimError] = []

    def begin(self, **fields: str | bool) -> None:
        is_awaited = bool(fields.pop("is_stdin_awaited", False))
        config = ProcessConfig(**fields)  # type: ignore[arg-type] # its str and bool fields only
        self.opener.begin(config, self.ends.append, is_stdin_awaited=is_awaited)

    def finish(self) -> Stdio | ShimError:
        """Serve until it has called back, and every child is reaped; returns what it said."""
        self.rig.run_until(lambda: bool(self.ends) and has_no_children())
        (end,) = self.ends
        return end

    def opened(self) -> Stdio:
        end = self.finish()
        assert isinstance(end, Stdio), end
        return end

    def failed(self) -> str:
        end = self.finish()
        assert isinstance(end, ShimError)
        return str(end)

    def waiter(self) -> int:
        """Return the pid of the waiting child, once it has become one."""
        self.rig.run_until(lambda: len(waiting.children_of(os.getpid())) == 1)
        (pid,) = waiting.children_of(os.getpid())
        waiting.wait_title(pid, "forkshim: opening")
        return pid

    def close(self) -> None:
        self.opener.cancel()
        self.rig.run_until(has_no_children)
        for end in self.ends:
            if isinstance(end, Stdio):
                end.close()


@pytest.fixture
def opening(rig: Rig) -> Iterator[Opening]:
    made = Opening(rig)
    yield made
    made.close()


def _fifo(path: Path) -> str:
    os.mkfifo(path)
    return str(path)


def _reader(path: str) -> fds.Fd:
    return fds.Fd(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def test_nothing_wanted_is_nothing_opened(opening: Opening) -> None:
    opening.begin(stdin="null", stdout="", stderr="/dev/null")
    opened = opening.opened()
    assert (opened.stdin, opened.stdin_closer, opened.sinks) == (None, None, {})
    assert opened.names == {"stdout": "null", "stderr": "null"}


def test_a_fifo_with_a_reader_is_opened_at_once_and_its_reader_sees_no_end(
    opening: Opening, tmp_path: Path
) -> None:
    path = _fifo(tmp_path / "stdout")
    reader = _reader(path)
    opening.begin(stdout=path)
    (end,) = opening.ends
    assert isinstance(end, Stdio)
    sink = end.sinks["stdout"].fileno()
    assert fcntl.fcntl(sink, fcntl.F_GETPIPE_SZ) == fds.PIPE_BYTES
    assert os.get_blocking(sink)
    assert not waiting.has_hung_up(reader.fileno())
    reader.close()
    os.write(sink, b"kept while nobody reads")  # no EPIPE: a client may leave and come back
    reader = _reader(path)
    assert os.read(reader.fileno(), 99) == b"kept while nobody reads"
    end.close()
    assert os.read(reader.fileno(), 99) == b""
    reader.close()
    assert opening.finish() is end


def test_a_reader_that_arrives_later_is_waited_for_by_a_child(
    opening: Opening, tmp_path: Path
) -> None:
    path = _fifo(tmp_path / "stdout")
    opening.begin(stdout=path)
    assert opening.ends == []
    opening.waiter()
    reader = _reader(path)
    opened = opening.opened()
    os.write(opened.sinks["stdout"].fileno(), b"x")
    assert os.read(reader.fileno(), 9) == b"x"
    assert not waiting.has_hung_up(reader.fileno())
    reader.close()


def test_both_outputs_are_waited_for_one_after_the_other(opening: Opening, tmp_path: Path) -> None:
    paths = [_fifo(tmp_path / name) for name in ("stdout", "stderr")]
    opening.begin(stdout=paths[0], stderr=paths[1])
    opening.waiter()
    readers = [_reader(paths[0])]
    opening.rig.run_until(lambda: "stdout" in opening.opener._stdio.sinks)
    assert opening.ends == []
    readers.append(_reader(paths[1]))
    assert sorted(opening.opened().sinks) == ["stderr", "stdout"]
    for reader in readers:
        reader.close()


def test_a_reader_sees_no_end_between_the_waiting_child_and_us(
    opening: Opening, tmp_path: Path
) -> None:
    path = _fifo(tmp_path / "stdout")
    opening.begin(stdout=path)
    opening.waiter()
    rfd, wfd = os.pipe2(os.O_CLOEXEC)

    def read_one_word() -> None:
        fd = os.open(path, os.O_RDONLY)  # blocking, as cat(1) does
        os.write(wfd, os.read(fd, 99))

    with forked(read_one_word) as client:
        opening.rig.run_until(lambda: bool(opening.ends))
        (end,) = opening.ends
        assert isinstance(end, Stdio)
        os.write(end.sinks["stdout"].fileno(), b"word")
        waiting.wait_readable(rfd)
        assert os.read(rfd, 9) == b"word"
        waiting.wait_process(client.pid)
        opening.rig.run_until(has_no_children)
        client._ended = Exited(0)  # reaped by the yard
    os.close(rfd)
    os.close(wfd)


@pytest.mark.parametrize("times", [1, 3])
def test_a_waiting_child_that_is_killed_is_replaced(
    opening: Opening, tmp_path: Path, times: int
) -> None:
    path = _fifo(tmp_path / "stdout")
    opening.begin(stdout=path)
    for _each in range(times):
        waiter = opening.waiter()
        os.kill(waiter, signal.SIGKILL)
        opening.rig.run_until(
            lambda waiter=waiter: waiting.children_of(os.getpid()) not in ([], [waiter])  # type: ignore[misc] # bound now
        )
    assert opening.ends == []
    reader = _reader(path)
    opening.opened()
    reader.close()


def test_a_fifo_that_is_unlinked_while_we_wait_is_still_the_one(
    opening: Opening, tmp_path: Path
) -> None:
    path = _fifo(tmp_path / "stdout")
    with_path = os.open(path, os.O_PATH | os.O_CLOEXEC)
    opening.begin(stdout=path)
    opening.waiter()
    os.unlink(path)
    reader = fds.reopen(with_path, os.O_RDONLY | os.O_NONBLOCK)
    os.close(with_path)
    opened = opening.opened()
    os.write(opened.sinks["stdout"].fileno(), b"x")
    assert os.read(reader.fileno(), 9) == b"x"
    reader.close()


def test_the_waiting_child_says_so_once_and_holds_the_fifo_until_it_is_killed(
    tmp_path: Path,
) -> None:
    path = _fifo(tmp_path / "fifo")
    with_path = os.open(path, os.O_PATH | os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    rfd, wfd = os.pipe2(os.O_CLOEXEC)
    reader = _reader(path)

    def work() -> None:
        def paused() -> None:
            links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
            os._exit([os.readlink(link) for link in links if os.path.lexists(link)].count(path))

        vars(fifo_wait)["signal"] = SimpleNamespace(pause=paused)  # only in this child
        fifo_wait.wait_for_reader("forkshim: waiting", with_path, wfd, null)

    with forked(work) as child:
        ended = child.wait()
    os.close(wfd)
    assert waiting.read_to_end(rfd) == b"!"
    assert ended == Exited(2)  # the path and the open fifo
    reader.close()
    for fd in (rfd, with_path, null):
        os.close(fd)


def test_a_cancelled_wait_leaves_nothing_and_says_nothing(opening: Opening, tmp_path: Path) -> None:
    stdin = _fifo(tmp_path / "stdin")
    opening.begin(stdin=stdin, stdout=_fifo(tmp_path / "stdout"))
    opening.waiter()
    assert not opening.opener.is_idle
    opening.opener.cancel()
    assert not opening.opener.is_idle
    opening.rig.run_until(lambda: opening.opener.is_idle)
    assert has_no_children()
    assert opening.ends == []
    opening.opener.cancel()


def test_a_reader_that_never_comes_ends_the_wait_with_the_path(
    opening: Opening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "READER_WAIT_S", 0.001)
    path = _fifo(tmp_path / "stdout")
    opening.begin(stdout=path)
    assert opening.failed().startswith(
        f"containerd-shim: opening {path} failed: context deadline exceeded"
    )


def test_a_limit_that_strikes_while_nobody_is_waited_for_names_stdio(opening: Opening) -> None:
    opening.opener._on_end = opening.ends.append
    opening.opener._give_up()
    assert opening.failed().startswith("containerd-shim: opening stdio failed")


@pytest.mark.parametrize("field", ["stdin", "stdout", "stderr"])
def test_a_path_that_is_missing_is_named(opening: Opening, tmp_path: Path, field: str) -> None:
    opening.begin(**{field: str(tmp_path / "nowhere")})
    assert opening.failed() == f"stat {tmp_path}/nowhere: no such file or directory"


@pytest.mark.parametrize("field", ["stdout", "stderr"])
def test_a_directory_is_no_sink(opening: Opening, tmp_path: Path, field: str) -> None:
    opening.begin(**{field: str(tmp_path)})
    assert opening.failed() == f"open {tmp_path}: is a directory"
    opening.ends.clear()
    opening.begin(**{field: f"file:{tmp_path}"})
    assert opening.failed() == f"open {tmp_path}: is a directory"


def test_a_failure_after_an_earlier_stream_was_opened_leaves_nothing_open(
    opening: Opening, tmp_path: Path
) -> None:
    stdout = _fifo(tmp_path / "stdout")
    reader = _reader(stdout)
    opening.begin(stdin=_fifo(tmp_path / "stdin"), stdout=stdout, stderr=str(tmp_path))
    assert opening.failed() == f"open {tmp_path}: is a directory"
    assert waiting.has_hung_up(reader.fileno())
    reader.close()


def test_a_fifo_that_cannot_be_opened_once_its_reader_has_come_fails_once(
    opening: Opening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reopen = fds.reopen

    def refused(fd: int, flags: int) -> fds.Fd:
        if flags == os.O_RDWR:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return reopen(fd, flags)

    monkeypatch.setattr(fds, "reopen", refused)
    path = _fifo(tmp_path / "stdout")
    opening.begin(stdout=path, stderr="null")
    opening.waiter()
    reader = _reader(path)
    assert opening.failed() == f"open {path}: too many open files"
    reader.close()


def test_a_fifo_that_cannot_be_probed_fails_and_leaves_nothing(
    opening: Opening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_fd: int, _flags: int) -> fds.Fd:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(fds, "reopen", refused)
    path = _fifo(tmp_path / "stdout")
    opening.begin(stdout=path)
    assert opening.failed() == f"open {path}: permission denied"


def test_a_stdin_fifo_stays_open_for_clients_until_we_close_our_own_end(
    opening: Opening, tmp_path: Path
) -> None:
    path = _fifo(tmp_path / "stdin")
    opening.begin(stdin=path)
    opened = opening.opened()
    assert opened.stdin is not None
    assert opened.stdin_closer is not None
    assert os.get_blocking(opened.stdin.fileno())
    for word in (b"one", b"two"):  # a client comes, goes, and another one comes
        client = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.write(client, word)
        os.close(client)
        assert os.read(opened.stdin.fileno(), 99) == word
    assert not waiting.has_hung_up(opened.stdin.fileno())
    opened.stdin_closer.close()
    assert os.read(opened.stdin.fileno(), 99) == b""


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_stdin_that_is_left_takes_no_byte_before_it_is_opened(
    opening: Opening, tmp_path: Path, *, is_closed: bool
) -> None:
    path = _fifo(tmp_path / "stdin")
    opening.begin(stdin=path, is_stdin_awaited=True)
    opened = opening.opened()
    assert (opened.has_stdin, opened.stdin) == (True, None)
    with pytest.raises(OSError, match="No such device or address"):
        os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    if is_closed:
        opened.close_stdin()
    os.unlink(path)
    opened.open_stdin()
    assert opened.stdin is not None
    client = fds.reopen(opened.stdin.fileno(), os.O_WRONLY)
    capacity_bytes = fds.capacity_bytes(client.fileno())
    assert capacity_bytes < fds.PIPE_BYTES
    os.write(client.fileno(), b"word")
    assert os.read(opened.stdin.fileno(), 99) == b"word"
    client.close()
    assert waiting.has_hung_up(opened.stdin.fileno()) is is_closed
    opened.close_stdin()
    assert waiting.has_hung_up(opened.stdin.fileno())


def test_a_stdin_that_is_a_file_is_opened_for_reading(opening: Opening, tmp_path: Path) -> None:
    (tmp_path / "stdin").write_bytes(b"content")
    opening.begin(stdin=str(tmp_path / "stdin"))
    opened = opening.opened()
    assert opened.stdin is not None
    assert opened.stdin_closer is None
    assert os.read(opened.stdin.fileno(), 99) == b"content"


def test_an_existing_file_is_opened_as_it_is(opening: Opening, tmp_path: Path) -> None:
    (tmp_path / "sink").write_bytes(b"before")
    opening.begin(stdout=str(tmp_path / "sink"))
    os.write(opening.opened().sinks["stdout"].fileno(), b"AF")
    assert (tmp_path / "sink").read_bytes() == b"AFfore"


def test_a_file_setting_creates_and_keeps(opening: Opening, tmp_path: Path) -> None:
    """The workers write at its end, see tests/runtime/test_truncated.py."""
    for word in (b"one", b""):
        opening.begin(stdout=f"file:{tmp_path}/sink")
        opened = opening.opened()
        sink = opened.sinks["stdout"].fileno()
        assert os.get_blocking(sink)
        assert not fcntl.fcntl(sink, fcntl.F_GETFL) & os.O_APPEND  # splice(2) refuses it
        os.write(sink, word)
        opened.close()
        opening.ends.clear()
    assert (tmp_path / "sink").read_bytes() == b"one"
    assert (tmp_path / "sink").stat().st_mode & 0o777 & ~0o640 == 0


def test_a_file_setting_takes_no_device(opening: Opening) -> None:
    opening.begin(stdout="file:/dev/full")
    assert opening.failed() == "open /dev/full: not a regular file"


def test_a_file_setting_takes_no_fifo_without_a_reader(opening: Opening, tmp_path: Path) -> None:
    opening.begin(stdout=f"file:{_fifo(tmp_path / 'fifo')}")
    assert opening.failed() == f"open {tmp_path}/fifo: no such device or address"


@pytest.mark.parametrize(
    ("settings", "joined"),
    [
        (("file:{0}/a", "file:{0}/a"), True),
        (("file:{0}/a", "{0}/a"), True),
        (("file:{0}/a", "file:{0}/here/a"), True),
        (("file:{0}/a", "file:{0}/b"), False),
        (("file:{0}/a", "null"), False),
        (("/dev/full", "/dev/full"), False),
        (("{0}/fifo", "{0}/fifo"), False),
    ],
)
def test_both_outputs_in_the_same_regular_file_are_joined(
    opening: Opening, tmp_path: Path, settings: tuple[str, str], joined: bool
) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "here").symlink_to(".")
    reader = _reader(_fifo(tmp_path / "fifo"))
    stdout, stderr = (setting.format(tmp_path) for setting in settings)
    opening.begin(stdout=stdout, stderr=stderr)
    assert opening.opened().stderr_joins_stdout is joined
    reader.close()


def test_a_terminal_wants_no_stderr(opening: Opening, tmp_path: Path) -> None:
    opening.begin(stdout="/dev/full", stderr=str(tmp_path / "nowhere"), terminal=True)
    assert sorted(opening.opened().sinks) == ["stdout"]


def test_passthrough_is_a_duplicate_of_our_own_descriptor(opening: Opening) -> None:
    opening.begin(stdin="passthrough", stdout="passthrough", stderr="passthrough")
    opened = opening.opened()
    assert opened.passthrough == {"stdout", "stderr"}
    assert opened.stdin is not None
    for fd, owner in enumerate((opened.stdin, opened.sinks["stdout"], opened.sinks["stderr"])):
        assert owner.fileno() > 2
        assert not os.get_inheritable(owner.fileno())
        assert os.path.samestat(os.fstat(fd), os.fstat(owner.fileno()))
