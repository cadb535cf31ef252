"""The console socket, window sizes, and the person's own terminal."""

from __future__ import annotations

import os
import pty
import signal
import socket
import stat
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from supervisor.io.user_terminal import UserTerminal, find_terminal
from supervisor.linux.exit_status import Exited
from supervisor.oci import console_socket
from supervisor.oci.console_socket import ConsoleSocket
from tests.harness import waiting
from tests.harness.forked import forked

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.process


@pytest.fixture
def pair() -> Iterator[tuple[int, int]]:
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


@pytest.fixture
def listening() -> Iterator[ConsoleSocket]:
    made = ConsoleSocket()
    yield made
    made.close()
    assert not os.path.exists(os.path.dirname(made.path))


def _connect(listening: ConsoleSocket) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(listening.path)
    return client


def test_the_socket_is_private_and_its_path_fits(listening: ConsoleSocket) -> None:
    directory = Path(listening.path).parent
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert len(listening.path) <= 107
    assert not os.get_inheritable(listening.fileno())


def test_a_terminal_that_is_sent_is_received_close_on_exec(
    listening: ConsoleSocket, pair: tuple[int, int]
) -> None:
    assert listening.receive() is None
    before = listening.fileno()
    with _connect(listening) as client:
        assert listening.receive() is None  # connected, and nothing sent
        assert listening.fileno() != before
        assert listening.receive() is None
        socket.send_fds(client, [b"/dev/pts/7"], [pair[0]])
        received = listening.receive()
    assert received is not None
    assert os.path.samestat(os.fstat(received.fileno()), os.fstat(pair[0]))
    assert not os.get_inheritable(received.fileno())
    received.close()


@pytest.mark.parametrize("count", [0, 2])
def test_no_descriptor_or_two_are_refused_and_closed(
    listening: ConsoleSocket, pair: tuple[int, int], count: int
) -> None:
    with _connect(listening) as client:
        socket.send_fds(client, [b"x"], list(pair[:count]))
        with pytest.raises(ConnectionError, match=f"sent {count} descriptors, wanted one term"):
            listening.receive()


def test_a_descriptor_that_is_no_terminal_is_refused_and_closed(listening: ConsoleSocket) -> None:
    with _connect(listening) as client, open(os.devnull, "rb") as null:
        socket.send_fds(client, [b"x"], [null.fileno()])
        with pytest.raises(ConnectionError, match="wanted one terminal"):
            listening.receive()


def test_a_runtime_that_hangs_up_is_an_error(listening: ConsoleSocket) -> None:
    _connect(listening).close()
    with pytest.raises(ConnectionError, match="hung up without sending a console"):
        listening.receive()


@pytest.mark.parametrize("length", [60, 200])
def test_a_temporary_directory_with_a_long_path_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    unique = f"fst-{os.getpid()}-{os.urandom(3).hex()}-"
    directory = Path("/tmp") / unique.ljust(14 + length, "x")
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    made = ConsoleSocket()
    is_inside = Path(made.path).is_relative_to(directory)
    made.close()
    directory.rmdir()
    assert is_inside == (length == 60 and len(f"{directory}/forkshim-{'0' * 16}/pty.sock") <= 107)


def test_a_temporary_directory_of_few_characters_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    made = ConsoleSocket()
    assert made.path.startswith("/dev/shm/forkshim-")
    made.close()


def test_a_socket_that_cannot_be_bound_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_socket, "_SUN_PATH_MAX", 10_000)
    directory = tmp_path / ("x" * 150)
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    with pytest.raises(OSError, match="path too long"):
        ConsoleSocket()
    assert list(directory.iterdir()) == []


def test_a_temporary_directory_that_is_missing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/no/such")
    with pytest.raises(FileNotFoundError):
        ConsoleSocket()
    assert tmp_path.exists()


@pytest.mark.parametrize("size", [(80, 24), (0, 0), (65535, 65535), (1, 2)])
def test_a_size_is_columns_by_rows(pair: tuple[int, int], size: tuple[int, int]) -> None:
    termios.tcsetwinsize(pair[0], (size[1], size[0]))
    assert console_socket.size(pair[1]) == size
    assert UserTerminal(pair[1], is_input=False).size() == size
    assert os.get_terminal_size(pair[1]) == size


def _is_raw(fd: int) -> bool:
    return not termios.tcgetattr(fd)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)


def test_a_terminal_is_raw_only_while_its_keys_are_taken(pair: tuple[int, int]) -> None:
    before = termios.tcgetattr(pair[1])
    terminal = UserTerminal(pair[1], is_input=True)
    raw = terminal.make_raw()
    assert raw is not None
    assert raw.saved == before
    assert raw.fd > 2
    assert _is_raw(pair[1])
    assert terminal.make_raw() is raw
    terminal.restore()
    assert termios.tcgetattr(pair[1]) == before
    terminal.restore()


def test_a_terminal_without_input_is_left_alone(pair: tuple[int, int]) -> None:
    before = termios.tcgetattr(pair[1])
    terminal = UserTerminal(pair[1], is_input=False)
    assert terminal.make_raw() is None
    terminal.restore()
    assert termios.tcgetattr(pair[1]) == before


def test_a_terminal_that_was_hung_up_has_nothing_to_be_given_back() -> None:
    master, slave = pty.openpty()
    terminal = UserTerminal(slave, is_input=True)
    assert terminal.make_raw() is not None
    os.close(master)
    terminal.restore()
    os.close(slave)


@pytest.mark.parametrize(
    ("terminals", "wants_input", "found", "takes_keys"),
    [
        ((), True, None, False),
        ((0,), True, 0, True),
        ((0,), False, 0, False),
        ((1,), True, 1, False),
        ((2,), True, 2, False),
        ((0, 1, 2), True, 0, True),
        ((1, 2), True, 1, False),
    ],
)
def test_the_first_terminal_of_0_to_2_is_found_and_keys_come_only_from_0(
    pair: tuple[int, int],
    terminals: tuple[int, ...],
    wants_input: bool,
    found: int | None,
    takes_keys: bool,
) -> None:
    def work() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(pair[1] if fd in terminals else null, fd)
        terminal = find_terminal(is_input=wants_input)
        assert (None if terminal is None else terminal._fd) == found
        if terminal is not None:
            assert (terminal.make_raw() is not None) == takes_keys
            terminal.restore()

    with forked(work) as child:
        assert child.wait() == Exited(0)


def test_a_resize_reaches_the_foreground_process(pair: tuple[int, int]) -> None:
    rfd, wfd = os.pipe2(os.O_CLOEXEC)

    def work() -> None:
        os.setsid()
        os.open(os.ttyname(pair[1]), os.O_RDWR)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
        os.write(wfd, b"ready")
        assert signal.sigwait({signal.SIGWINCH}) == signal.SIGWINCH

    with forked(work) as child:
        waiting.wait_readable(rfd)
        termios.tcsetwinsize(pair[0], (50, 100))
        assert child.wait() == Exited(0)
    os.close(rfd)
    os.close(wfd)
