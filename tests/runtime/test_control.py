"""What an engine writes to `control`: closing stdin, resizing a terminal, and nonsense."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

import pytest

from tests.harness import waiting

if TYPE_CHECKING:
    from tests.harness.engine import Engine
    from tests.runtime.conftest import MakeEngine

pytestmark = pytest.mark.runc

SIZES = (
    'last=; while :; do s=$(stty size); [ "$s" = "$last" ] || echo $s; last=$s; sleep 0.02; done'
)
"""Prints a terminal's size, rows first, whenever it is another one."""


def sized(make_engine: MakeEngine) -> tuple[Engine, int]:
    """Run a container that prints its terminal's sizes, and give it 24 lines of 80."""
    engine = make_engine(SIZES, terminal=True)
    engine.control("1 80 24\n")
    (stdout, *_rest) = engine.run_attached()
    waiting.read_until(stdout, b"24 80\r\n")
    return engine, stdout


def end(engine: Engine) -> None:
    """Kill the container and see the shim out."""
    os.kill(int((engine.dir / "pid").read_text()), 9)
    assert engine.wait_end() == 137
    assert engine.wait_shim() == 0


# Closing stdin.


def test_closing_stdin_delivers_what_lies_in_the_fifo_then_ends_it(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine("cat; echo end; exit 7", containerdStdin="stdin")
    engine.attach("stdout", "stderr")
    engine.launch()
    engine.created()
    data = b"x" * 300_000
    stdin = engine.open("stdin", os.O_WRONLY)
    assert os.write(stdin, data) == len(data)  # nobody reads yet: the container is not started
    engine.close("stdin")
    engine.control("0 0 0\n")
    engine.start()
    assert engine.read_end("stdout") == [data + b"end\n"]
    assert engine.wait_end() == 7


def test_a_client_that_is_still_there_may_go_on_writing_until_it_closes(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(
        "while read line; do echo got $line; done; echo end; exit 7", containerdStdin="stdin"
    )
    stdout, _stderr = engine.run_attached()
    stdin = engine.open("stdin", os.O_WRONLY)
    engine.control("0 0 0\n0 0 0\n")
    for word in (b"one", b"two"):
        os.write(stdin, word + b"\n")
        assert waiting.read_until(stdout, b"\n") == b"got " + word + b"\n"
    engine.control("0 0 0\n")
    engine.close("stdin")
    assert waiting.read_to_end(stdout) == b"end\n"
    assert engine.wait_end() == 7


def test_without_the_message_a_client_that_closes_ends_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine("read one; echo $one; read two; exit $two", containerdStdin="stdin")
    stdout, _stderr = engine.run_attached()
    os.write(engine.open("stdin", os.O_WRONLY), b"first\n")
    engine.close("stdin")
    assert waiting.read_until(stdout, b"\n") == b"first\n"
    os.write(engine.open("stdin", os.O_WRONLY), b"7\n")
    assert engine.wait_end() == 7


def test_closing_a_stdin_that_is_no_fifo_does_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine("trap 'exit 7' USR1; echo ready; while :; do sleep 0.02; done")
    stdout, _stderr = engine.run_attached()
    waiting.read_until(stdout, b"ready\n")
    engine.control("0 0 0\n")
    os.kill(engine.shim_pid, 10)
    assert engine.wait_end() == 7


def test_closing_stdin_of_a_terminal_sends_the_container_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine(
        "echo ready; read line; echo status $? $line; trap 'exit 7' HUP USR1; echo trap;"
        "while :; do sleep 0.02; done",
        terminal=True,
        containerdStdin="stdin",
    )
    (stdout, *_rest) = engine.run_attached()
    waiting.read_until(stdout, b"ready\r\n")
    stdin = engine.open("stdin", os.O_WRONLY)
    engine.control("0 0 0\n")
    os.write(stdin, b"line\n")
    waiting.read_until(stdout, b"status 0 line\r\ntrap\r\n")
    engine.close("stdin")
    waiting.wait_gone(lambda: waiting.worker_of(engine.shim_pid, "stdin"))
    state = engine.runtime_state()
    assert state is not None
    assert state["status"] == "running"
    os.kill(engine.shim_pid, 10)
    assert engine.wait_end() == 7


# Resizing.


def test_a_resize_gives_width_then_height(make_engine: MakeEngine) -> None:
    engine, stdout = sized(make_engine)
    engine.control("1 132 43\n")
    assert waiting.read_until(stdout, b"\r\n") == b"43 132\r\n"
    end(engine)


def test_a_resize_is_cut_to_sixteen_bits(make_engine: MakeEngine) -> None:
    engine, stdout = sized(make_engine)
    engine.control("1 70000 65586\n")
    assert waiting.read_until(stdout, b"\r\n") == b"50 4464\r\n"
    end(engine)


def test_the_last_of_many_resizes_counts(make_engine: MakeEngine) -> None:
    engine, stdout = sized(make_engine)
    engine.control("".join(f"1 {n} {n}\n" for n in range(30, 100)))
    waiting.read_until(stdout, b"99 99\r\n")
    end(engine)


def test_the_container_is_told_of_a_resize(make_engine: MakeEngine) -> None:
    engine = make_engine(
        "trap 'stty size; exit 7' WINCH; echo ready; while :; do sleep 0.02; done", terminal=True
    )
    (stdout, *_rest) = engine.run_attached()
    waiting.read_until(stdout, b"ready\r\n")
    engine.control("1 80 24\n")
    assert waiting.read_to_end(stdout) == b"24 80\r\n"
    assert engine.wait_end() == 7


def test_a_resize_without_a_terminal_does_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine("read line; exit 7", containerdStdin="stdin")
    engine.run_attached()
    engine.control("1 80 24\n0 0 0\n")
    assert engine.wait_end() == 7
    assert engine.log("warn") == []


# Nonsense.


def test_junk_is_skipped_and_a_torn_message_put_together(make_engine: MakeEngine) -> None:
    engine = make_engine("cat; exit 7", terminal=False, containerdStdin="stdin")
    engine.run_attached()
    engine.control("junk\n9 9 9\n1 80 24\n0 0")
    engine.control(" 0\n")
    assert engine.wait_end() == 7


@pytest.mark.parametrize(
    "junk",
    [
        "junk\n",
        "\n\n\n",
        "9 9 9\n",
        "2 0 0\n",
        "-1 80 24\n",
        "1 100\n",
        "1 100 100 100\n",
        "1 1e2 100\n",
        "1 \N{SUPERSCRIPT TWO} 3\n",
        "1" * 5000 + " 2 3\n",
        "\0\0\0 1 1\n",
        "1 100 ",
    ],
    ids=lambda junk: repr(junk[:12]),
)
def test_a_resize_after_junk_is_served(make_engine: MakeEngine, junk: str) -> None:
    engine, stdout = sized(make_engine)
    engine.control(junk + ("\n" if not junk.endswith("\n") else ""))
    engine.control("1 50 40\n")
    assert waiting.read_until(stdout, b"\r\n") == b"40 50\r\n"
    end(engine)


@pytest.mark.parametrize("byte", [b"x", b"\n", b"1 "], ids=["one-line", "empty-lines", "numbers"])
def test_a_flood_of_junk_is_read_and_the_next_message_served(
    make_engine: MakeEngine, byte: bytes
) -> None:
    engine, stdout = sized(make_engine)
    write_all(engine.control_fd, byte * ((1 << 20) // len(byte)) + b"\n1 50 40\n")
    assert waiting.read_until(stdout, b"\r\n") == b"40 50\r\n"
    end(engine)


def write_all(fd: int, data: bytes) -> None:
    """Write to a non-blocking descriptor, waiting for room."""
    rest = memoryview(data)
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    while rest:
        assert poller.poll(waiting.LIMIT_S * 1000)
        try:
            rest = rest[os.write(fd, rest[:4096]) :]
        except BlockingIOError:
            continue


def test_an_engine_may_leave_and_another_one_come(make_engine: MakeEngine) -> None:
    engine, stdout = sized(make_engine)
    engine.control("1 50 40\n")
    engine.close("control")
    engine.close("exit")
    assert waiting.read_until(stdout, b"\r\n") == b"40 50\r\n"
    engine.exit_fd = engine.open("exit", os.O_RDONLY | os.O_NONBLOCK)
    engine.control_fd = engine.open("control", os.O_RDWR | os.O_NONBLOCK)
    engine.control("1 60 30\n")
    assert waiting.read_until(stdout, b"\r\n") == b"30 60\r\n"
    end(engine)


def test_without_any_engine_the_status_is_written_all_the_same(make_engine: MakeEngine) -> None:
    engine = make_engine("read line; exit 7", containerdStdin="stdin")
    engine.run_attached()
    engine.close("control")
    engine.close("exit")
    os.write(engine.open("stdin", os.O_WRONLY), b"\n")
    assert engine.wait_shim() == 0
    assert engine.exit_status() == 7
    assert engine.leftovers() == []
