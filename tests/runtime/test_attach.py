"""`forkshim attach`: hearing a container while it runs, and who waits for whom: nobody."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import stat
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from supervisor.cli import attach
from supervisor.io.attach.hub import ACCEPTED
from supervisor.linux.errors import ShimError
from supervisor.linux.exit_status import Exited
from tests.harness import bundles, waiting
from tests.harness.daemon import Daemon
from tests.harness.engine import FORKSHIM
from tests.harness.forked import forked
from tests.harness.rewriting import cri_streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.runc, pytest.mark.timeout(120)]

BLOCK = b"".join(b"line %06d %s\n" % (number, b"." * (number % 50)) for number in range(1500))
SCRIPT = """
while read word < /tmp/shared/go && [ $word = go ]; do cat /tmp/shared/block; echo e >&2; done
exit 23
"""


class Speaker(Daemon):
    """A container that says BLOCK whenever it is told to, and who hears it. Owns them all."""

    def __init__(self, directory: Path, rootfs: Path, sink: str, *, terminal: bool) -> None:
        shared = directory / "shared"
        shared.mkdir()
        (shared / "block").write_bytes(BLOCK)
        os.mkfifo(shared / "go")
        self._go = os.open(shared / "go", os.O_RDWR)
        mount = bundles.bind(shared, "/tmp/shared")
        document = bundles.config(rootfs, bundles.shell(SCRIPT), terminal=terminal, mounts=[mount])
        bundle = bundles.make_bundle(directory / "bundle", document)
        super().__init__(directory, bundle, "--log", sink)
        # Both go into one pipe where they go into one file as they are.
        self.streams = 2 if sink.startswith("cri") else 1
        self._listeners: list[subprocess.Popen[bytes]] = []

    def go(self) -> None:
        os.write(self._go, b"go\n")

    def attach(self) -> Listener:
        """Start `forkshim attach`, and wait until it has been told that it hears."""
        process = subprocess.Popen(
            [FORKSHIM, "attach", "--root", self.root, self.id],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=_hear_ctrl_c,
        )
        self.owns(process)
        listener = Listener(process)
        waiting.wait_true(lambda: self._let_in(process.pid) == self.streams)
        return listener

    def owns(self, process: subprocess.Popen[bytes]) -> None:
        """Have a process ended with this."""
        self._listeners.append(process)

    @staticmethod
    def _let_in(pid: int) -> int:
        """Return to how many of its fifos a listener has been let in, by their modes."""
        modes = []
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):
                modes.append(os.stat(f"/proc/{pid}/fd/{name}").st_mode)
        return modes.count(stat.S_IFIFO | ACCEPTED)

    def end(self) -> str:
        os.write(self._go, b"end\n")
        return self.wait_end()

    def close(self) -> None:
        for process in self._listeners:
            process.kill()
            process.communicate()
        os.close(self._go)
        super().close()


def _hear_ctrl_c() -> None:
    """Do not ignore it, as a shell has its jobs in the background do, and perhaps us."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Listener:
    """One `forkshim attach`, of which a test reads the stdout."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.heard = bytearray()

    def hear(self, size: int) -> None:
        """Read until so much was heard."""
        assert self.process.stdout is not None
        while len(self.heard) < size:
            waiting.wait_readable(self.process.stdout.fileno())
            chunk = os.read(self.process.stdout.fileno(), 1 << 20)
            assert chunk
            self.heard += chunk

    def end(self) -> tuple[int, bytes]:
        """Wait for its end; returns its status and what it said on stderr."""
        out, err = self.process.communicate(timeout=waiting.LIMIT_S)
        self.heard += out
        return self.process.returncode, err


@pytest.fixture
def start(tmp_path: Path, rootfs: Path) -> Iterator[Callable[..., Speaker]]:
    """Return a function that starts a container whose output goes to a sink."""
    with ExitStack() as stack:

        def start(sink: str = f"file:{tmp_path}/log", *, terminal: bool = False) -> Speaker:
            daemon = Speaker(tmp_path, rootfs, sink, terminal=terminal)
            stack.callback(daemon.close)
            return daemon

        yield start


@pytest.mark.parametrize("sink", ["file", "cri", "file,policy=drop-old", "path"])
def test_all_hear_the_same_and_the_sink_gets_everything(
    tmp_path: Path, start: Callable[..., Speaker], sink: str
) -> None:
    (tmp_path / "log").touch()
    daemon = start(f"{sink}:{tmp_path}/log")
    daemon.go()
    waiting.wait_path(tmp_path / "log", lambda path: path.stat().st_size >= len(BLOCK))
    first, second = daemon.attach(), daemon.attach()
    for number in (1, 2):
        daemon.go()
        first.hear(number * len(BLOCK))
        second.hear(number * len(BLOCK))
    assert daemon.end() == "23"
    for listener in (first, second):
        apart = daemon.streams == 2
        assert listener.end() == (0, b"e\ne\n" if apart else b"")
        assert bytes(listener.heard) == (BLOCK if apart else BLOCK + b"e\n") * 2
    content = (tmp_path / "log").read_bytes()
    if sink == "cri":
        assert cri_streams(content) == {"stdout": BLOCK * 3, "stderr": b"e\n" * 3}
    else:
        assert sorted(content.splitlines()) == sorted((BLOCK * 3 + b"e\n" * 3).splitlines())
    assert not any("attach" in message for message in daemon.log())


def test_one_that_is_stopped_slows_nobody(tmp_path: Path, start: Callable[..., Speaker]) -> None:
    """The container says more than its pipe and the stopped one's hold."""
    daemon = start(f"cri:{tmp_path}/log")
    stopped, other = daemon.attach(), daemon.attach()
    stopped.process.send_signal(signal.SIGSTOP)
    rounds = (4 << 20) // len(BLOCK)
    for number in range(1, rounds + 1):
        daemon.go()
        other.hear(number * len(BLOCK))
    assert daemon.end() == "23"
    assert other.end() == (0, b"e\n" * rounds)
    assert bytes(other.heard) == BLOCK * rounds
    assert cri_streams((tmp_path / "log").read_bytes())["stdout"] == BLOCK * rounds
    stopped.process.send_signal(signal.SIGCONT)
    assert stopped.end()[0] == 0
    missed = [message for message in daemon.log() if "too slow" in message]
    assert missed == [
        f"attach client attach.{stopped.process.pid}.stdout: skipped "
        f"{len(BLOCK) * rounds - len(stopped.heard)} bytes of stdout, client too slow"
    ]


def test_one_that_leaves_is_let_go(start: Callable[..., Speaker]) -> None:
    daemon = start()
    before = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        listener = daemon.attach()
        listener.process.send_signal(signum)
        status, err = listener.end()
        assert (status, err) == (-9 if signum == signal.SIGKILL else 0, b"")
        # The staging pipes stay, the fifos do not.
        waiting.wait_true(lambda: len(os.listdir(f"/proc/{daemon.pid}/fd")) <= before + 4)
    daemon.go()
    assert daemon.end() == "23"
    assert list(daemon.state_dir.glob("attach.*")) == []


def test_it_goes_on_through_kills_a_reload_and_an_adoption(
    tmp_path: Path, start: Callable[..., Speaker]
) -> None:
    daemon = start(f"cri:{tmp_path}/log")
    listener = daemon.attach()

    def hear_block(number: int) -> None:
        daemon.go()
        listener.hear(number * len(BLOCK))
        # A worker that is killed as it lets us hear has us hear it again.
        waiting.wait_path(
            tmp_path / "log", lambda path: path.read_bytes().count(b"line 001499 ") == number
        )

    hear_block(1)
    os.kill(waiting.wait_worker(daemon.pid, "stdout"), signal.SIGKILL)
    hear_block(2)
    daemon.reload()
    hear_block(3)
    daemon.kill()
    daemon.adopt()
    hear_block(4)
    assert daemon.end() == "23"
    assert listener.end()[0] == 0
    assert len(listener.heard) == len(BLOCK) * 4
    assert bytes(listener.heard) == BLOCK * 4
    assert cri_streams((tmp_path / "log").read_bytes())["stdout"] == BLOCK * 4


def test_a_console_is_heard_as_stdout(tmp_path: Path, start: Callable[..., Speaker]) -> None:
    daemon = start(terminal=True)
    listener = daemon.attach()
    daemon.go()
    wanted = BLOCK.replace(b"\n", b"\r\n")
    listener.hear(len(wanted))
    assert daemon.end() == "23"
    assert listener.end() == (0, b"")
    assert bytes(listener.heard) == wanted + b"e\r\n"


def test_what_cannot_be_heard_is_said_in_a_line(
    tmp_path: Path, start: Callable[..., Speaker]
) -> None:
    daemon = start("null")
    for _ in range(2):
        done = daemon.command("attach")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"forkshim: {daemon.id}: nothing to attach to: its outputs go to null, or have ended\n"
        )
    assert daemon.end() == "23"
    done = daemon.command("attach")
    assert done.stderr == f"forkshim: {daemon.id}: nothing to attach to: the container has ended\n"
    done = subprocess.run(
        [FORKSHIM, "attach", "--root", tmp_path / "root", "nobody"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "nothing to attach to: " in done.stderr
    assert done.stderr.endswith("/nobody/init: no such file or directory\n")


def test_what_is_no_fifo_or_too_many_is_refused(start: Callable[..., Speaker]) -> None:
    daemon = start()
    init = daemon.state_dir
    (init / "attach.file").write_text("mine")
    (init / "attach.link").symlink_to("/dev/null")
    names = ["file", "link", "missing"]
    readers = []
    for number in range(17):
        os.mkfifo(init / f"attach.{number}")
        readers.append(os.open(init / f"attach.{number}", os.O_RDONLY | os.O_NONBLOCK))
        names.append(str(number))
    control = os.open(init / "control", os.O_WRONLY)
    for name in names:
        os.write(control, b"attach stdout attach.%s\n" % name.encode())
    os.close(control)
    waiting.wait_hangup(readers[16])
    assert daemon.log() == [
        "attach attach.file: rejected, not a fifo",
        "attach attach.link: rejected, too many levels of symbolic links",
        "attach attach.16: rejected, 16 clients are attached already",
    ]
    done = daemon.command("attach")
    assert (done.returncode, done.stderr) == (
        1,
        f"forkshim: {daemon.id}: attach to stdout: rejected, the log says why\n",
    )
    assert (init / "attach.file").read_text() == "mine"
    daemon.go()
    for reader in readers[:16]:
        waiting.wait_readable(reader)
        os.close(reader)
    os.close(readers[16])
    assert daemon.end() == "23"


@pytest.mark.parametrize(("free", "stream"), [(0, "stdout"), (1, "stderr")])
def test_who_finds_no_descriptor_free_is_told(
    tmp_path: Path, start: Callable[..., Speaker], free: int, stream: str
) -> None:
    """One is for the fifo of stdout."""
    daemon = start(f"cri:{tmp_path}/log")
    daemon.go()  # a stream has no worker before its first byte
    for name in ("stdout", "stderr"):
        waiting.wait_worker(daemon.pid, name)
    wait_idle(daemon.pid)
    limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir(f"/proc/{daemon.pid}/fd")}
    unused = (number for number in itertools.count() if number not in taken)
    limit = next(itertools.islice(unused, free, None))
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (limit, limits[1]))
    done = daemon.command("attach")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"forkshim: {daemon.id}: attach to {stream}: rejected, the log says why\n"
    assert any(
        message.startswith("attach attach.")
        and message.endswith(f"{stream}: rejected, too many open files")
        for message in daemon.log()
    )
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)
    assert list(daemon.state_dir.glob("attach.*")) == []
    listener = daemon.attach()
    daemon.go()
    listener.hear(len(BLOCK))
    assert daemon.end() == "23"
    assert listener.end() == (0, b"e\n")


def wait_idle(pid: int) -> None:
    """Wait until a supervisor waits in its loop, when nothing is open for a moment only."""
    number = "22" if os.uname().machine == "aarch64" else "232"  # epoll_wait, epoll_pwait
    waiting.wait_true(lambda: Path(f"/proc/{pid}/syscall").read_text().split()[0] == number)


def ask_in_vain(daemon: Speaker) -> subprocess.Popen[bytes]:
    """Stop the supervisor, and have somebody ask it to be let in."""
    os.kill(daemon.pid, signal.SIGSTOP)
    waiting.wait_true(lambda: waiting.state_of(daemon.pid) == "T")
    control = os.open(daemon.state_dir / "control", os.O_RDONLY | os.O_NONBLOCK)
    process = subprocess.Popen(
        [FORKSHIM, "attach", "--root", daemon.root, daemon.id],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    daemon.owns(process)
    waiting.wait_readable(control)
    os.close(control)
    return process


def test_who_was_not_let_in_before_a_kill_is_told(start: Callable[..., Speaker]) -> None:
    """The fifos are without a writer, and never had one: no event tells of that."""
    daemon = start()
    process = ask_in_vain(daemon)
    pid = daemon.pid
    os.kill(pid, signal.SIGKILL)
    waiting.wait_process(pid)
    _out, err = process.communicate(timeout=waiting.LIMIT_S)
    assert (process.returncode, err.decode()) == (
        1,
        f"forkshim: {daemon.id}: nothing to attach to: no supervisor: "
        "`forkshim adopt` starts one\n",
    )
    assert daemon.command("adopt", "--detach").returncode == 0
    listener = daemon.attach()
    daemon.go()
    listener.hear(len(BLOCK))
    assert daemon.end() == "23"
    assert not any("attach" in message for message in daemon.log())


def test_who_was_not_let_in_before_the_end_is_told(start: Callable[..., Speaker]) -> None:
    daemon = start()
    process = ask_in_vain(daemon)
    (daemon.state_dir / "exitStatus").write_text("0")
    _out, err = process.communicate(timeout=waiting.LIMIT_S)
    assert (process.returncode, err.decode()) == (
        1,
        f"forkshim: {daemon.id}: nothing to attach to: the container has ended\n",
    )
    os.kill(daemon.pid, signal.SIGCONT)
    assert daemon.end() == "23"


def test_a_supervisor_that_is_stopped_is_not_waited_for_for_ever(
    start: Callable[..., Speaker], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = start()
    os.kill(daemon.pid, signal.SIGSTOP)
    monkeypatch.setattr(attach, "_LONGEST_WAIT_S", 0)

    def work() -> None:
        with pytest.raises(ShimError, match="its supervisor does not answer"):
            attach.attach(daemon.id, str(daemon.root))

    with forked(work) as child:
        assert child.wait() == Exited(0)
    os.kill(daemon.pid, signal.SIGCONT)
    assert daemon.end() == "23"


def test_what_is_said_after_one_has_left_is_nothing_missed(
    tmp_path: Path, start: Callable[..., Speaker]
) -> None:
    daemon = start(f"cri:{tmp_path}/log")
    daemon.go()  # a supervisor that is stopped forks no first worker
    waiting.wait_path(tmp_path / "log", lambda path: b"line 001499 " in path.read_bytes())
    for number in (2, 3, 4):
        listener = daemon.attach()
        os.kill(daemon.pid, signal.SIGSTOP)  # else it might have seen him go
        listener.process.kill()
        listener.end()
        daemon.go()
        waiting.wait_path(
            tmp_path / "log",
            lambda path, n=number: (  # type: ignore[misc] # the default binds it now
                path.read_bytes().count(b"line 001499 ") == n
            ),
        )
        os.kill(daemon.pid, signal.SIGCONT)
    assert daemon.end() == "23"
    assert not any("attach" in message for message in daemon.log())
