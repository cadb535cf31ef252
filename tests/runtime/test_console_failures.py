"""What an engine sees, and what is left behind, when a console fails."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from tests.harness import runtimes, waiting
from tests.harness.failing import SPOIL_PID, fail

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runtime.conftest import MakeEngine

pytestmark = pytest.mark.runc


def fail_by_console(make_engine: MakeEngine, path: Path, before: str = "") -> str:
    """Run a runtime whose create ends well with an impostor; returns the shim's one error.

    `before` is what the script does before that.
    """
    text = f"""
if [ $verb = create ]; then
    {before}
    sleep 1000 < /dev/null > /dev/null 2>&1 &
    for word; do [ "$before" = --pid-file ] && printf $! > "$word"; before=$word; done
    exit 0
fi
"""
    engine = make_engine(terminal=True, runtime=runtimes.script(path, text))
    engine.attach("stdout")
    engine.launch()
    waiting.wait_hangup(engine.exit_fd)
    assert engine.wait_shim() == 1
    (error,) = engine.log("error")
    impostor = int((engine.dir / "pid").read_text())  # which is not runc's to delete
    os.kill(impostor, signal.SIGKILL)
    waiting.wait_process(impostor)
    assert engine.leftovers() == []
    return error


@pytest.mark.slow
def test_a_runtime_that_sends_no_console_is_waited_for_boundedly(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    error = fail_by_console(make_engine, tmp_path / "mute")
    assert error.startswith("console: the runtime sent none within ")


@pytest.mark.parametrize(
    ("send", "error"),
    [
        ("pass", "console: the runtime hung up without sending a console"),
        ("s.send(b'x')", "console: the runtime sent 0 descriptors, wanted one terminal"),
        (
            "socket.send_fds(s, [b'x'], [0])",
            "console: the runtime sent 1 descriptors, wanted one terminal",
        ),
    ],
    ids=["hang-up", "no-descriptor", "no-terminal"],
)
def test_a_runtime_that_sends_anything_but_a_console_is_an_error(
    make_engine: MakeEngine, tmp_path: Path, send: str, error: str
) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "s.connect(sys.argv[sys.argv.index('--console-socket') + 1])\n"
        f"{send}\n"
    )
    said = fail_by_console(make_engine, tmp_path / "wrong", f'python3 {wrong} "$@"')
    assert said in (error, "console: the runtime hung up without sending one")


def test_a_console_container_whose_creation_fails_is_deleted(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    text = SPOIL_PID.replace("SPOIL", 'echo >> "$file"')
    runtime = runtimes.script(tmp_path / "spoils", text)
    assert "pid: " in fail(make_engine("sleep 1000", terminal=True, runtime=runtime))


def test_a_temporary_directory_that_cannot_be_written_fails_only_terminals(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path / "missing")}
    engine = make_engine(terminal=True)
    engine.attach("stdout")
    engine.launch(env=environment)
    assert engine.wait_shim() == 1
    (error,) = engine.log("error")
    assert error == "console socket: No such file or directory"
    assert engine.leftovers() == []
    plain = make_engine()
    plain.attach("stdout", "stderr")
    plain.launch(env=environment)
    plain.created()
    plain.start()
    assert plain.wait_end() == 7


def test_a_state_directory_removed_under_the_shim_still_ends_it(make_engine: MakeEngine) -> None:
    engine = make_engine("read line; exit 7", containerdStdin="stdin")
    engine.run_attached()
    stdin = engine.open("stdin", os.O_WRONLY)
    shutil.rmtree(engine.dir)
    os.write(stdin, b"\n")
    waiting.wait_hangup(engine.exit_fd)
    assert engine.wait_shim() == 0
