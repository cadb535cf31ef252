"""One more process in a running container."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.harness import runtimes, waiting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.engine import Engine
    from tests.runtime.conftest import MakeEngine, MakeExec

pytestmark = pytest.mark.runc


@pytest.fixture
def container(make_engine: MakeEngine) -> Iterator[Engine]:
    """Run a container; it has to be unharmed when the test is over."""
    engine = make_engine("echo up; read line; exit 9", containerdStdin="stdin")
    stdout, _stderr = engine.run_attached()
    waiting.read_until(stdout, b"up\n")
    yield engine
    os.write(engine.open("stdin", os.O_WRONLY), b"\n")
    assert engine.wait_end() == 9
    assert engine.leftovers() == []


def test_an_exec_has_its_own_streams_and_status(container: Engine, make_exec: MakeExec) -> None:
    process = make_exec(
        container, "read line; echo out $line; echo err >&2; exit 3", containerdStdin="stdin"
    )
    process.run_attached()
    os.write(process.open("stdin", os.O_WRONLY), b"in\n")
    assert process.read_end("stdout", "stderr") == [b"out in\n", b"err\n"]
    assert process.wait_end() == 3
    assert process.leftovers() == []


def test_an_exec_has_its_own_terminal(container: Engine, make_exec: MakeExec) -> None:
    wait = "while [ \"$(stty size)\" != '33 90' ]; do sleep 0.02; done"
    script = f"tty > /dev/null; {wait}; echo ready; read line; stty size; exit 3"
    process = make_exec(container, script, terminal=True, containerdStdin="stdin")
    (stdout, *_rest) = process.run_attached()
    process.control("1 90 33\n")
    waiting.read_until(stdout, b"ready\r\n")
    os.write(process.open("stdin", os.O_WRONLY), b"in\n")
    assert waiting.read_to_end(stdout) == b"in\r\n33 90\r\n"
    assert process.wait_end() == 3
    assert process.leftovers() == []


def test_an_execs_stdin_ends_by_its_own_control_fifo(
    container: Engine, make_exec: MakeExec
) -> None:
    process = make_exec(container, ["cat"], containerdStdin="stdin")
    process.run_attached()
    os.write(process.open("stdin", os.O_WRONLY), b"bytes")
    process.close("stdin")
    process.control("0 0 0\n")
    assert process.read_end("stdout") == [b"bytes"]
    assert process.wait_end() == 0


def test_many_execs_at_once_do_not_mix(container: Engine, make_exec: MakeExec) -> None:
    processes = [
        make_exec(container, f"read line; seq {n} 20000; exit {n}", containerdStdin="stdin")
        for n in range(1, 7)
    ]
    for process in processes:
        process.attach("stdout", "stderr")
        process.launch()
    for process in processes:
        process.created()
    for process in processes:
        os.write(process.open("stdin", os.O_WRONLY), b"\n")
    for n, process in enumerate(processes, 1):
        (stdout, _stderr) = process.read_end("stdout", "stderr")
        assert stdout == b"".join(b"%d\n" % i for i in range(n, 20001))
        assert process.wait_end() == n


_NONSENSE = """
[ $verb = exec ] && {
    runc "$@" || exit
    for word; do
        [ "$before" = --pid-file ] && cp "$word" "$word.real" && echo nonsense > "$word"
        before=$word
    done
    exit 0
}
"""


def test_a_process_whose_pid_nobody_can_read_is_not_left_behind(
    container: Engine, make_exec: MakeExec, tmp_path: Path
) -> None:
    container.runtime = str(runtimes.script(tmp_path / "nonsense", _NONSENSE))
    process = make_exec(container, "sleep 1000")
    process.attach("stdout", "stderr")
    process.launch()
    assert process.wait_shim() == 1
    assert process.log("error") == ["pid: not a process id: 'nonsense\\n'"]
    assert waiting.state_of(int((process.dir / "pid.real").read_text())) in ("", "Z")


def test_a_program_that_is_not_there_is_the_runtimes_failure(
    container: Engine, make_exec: MakeExec
) -> None:
    process = make_exec(container, ["/no/program"])
    process.attach("stdout", "stderr")
    process.launch()
    assert process.wait_shim() == 0
    assert process.log("error") == []
    assert "/no/program" in (process.dir / "log.json").read_text()
    assert not (process.dir / "exitStatus").exists()
    assert process.leftovers() == []


def test_a_stop_of_an_execs_shim_ends_the_exec_alone(
    container: Engine, make_exec: MakeExec
) -> None:
    process = make_exec(container, "trap 'exit 5' TERM; echo ready; while :; do sleep 0.02; done")
    stdout, _stderr = process.run_attached()
    waiting.read_until(stdout, b"ready\n")
    os.kill(process.shim_pid, 15)
    assert process.wait_end() == 5
    assert process.leftovers() == []
