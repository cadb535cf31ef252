"""The end of both commands: everything is said, and the interpreter is not torn down."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

_ROOT = Path(__file__).parents[2]
_TELLS = "import atexit, os; atexit.register(os.write, 2, b'torn down')"
"""The first thing that the interpreter's own end does is to call such functions."""


def _run(code: str, *words: str, **popen: object) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [sys.executable, "-c", f"{_TELLS}; {code}", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        **popen,  # type: ignore[call-overload]  # a preexec_fn
    )
    return done


@pytest.mark.parametrize("status", [0, 7, 255])
def test_what_is_buffered_is_written_and_the_status_is_the_processs(status: int) -> None:
    code = "import sys; from supervisor.linux.process_exit import exit_process"
    done = _run(f"{code}; sys.stdout.write('out'); sys.stderr.write('err'); exit_process({status})")
    assert (done.returncode, done.stdout, done.stderr) == (status, "out", "err")


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_a_closed_descriptor_changes_no_status(closed: tuple[int, ...]) -> None:
    code = "import sys; from supervisor.linux.process_exit import exit_process; exit_process(7)"
    done = _run(code, preexec_fn=lambda: [*map(os.close, closed)])
    assert done.returncode == 7


def test_a_full_disk_changes_no_status() -> None:
    code = "import sys; from supervisor.linux.process_exit import exit_process"
    code = f"{code}; sys.stdout = open('/dev/full', 'w'); print('lost'); exit_process(7)"
    assert _run(code).returncode == 7


@pytest.mark.parametrize(
    ("module", "words", "status", "said"),
    [
        ("supervisor.cli.main", ["run", "--root", "/", "a/b"], 2, "forkshim: a/b: "),
        ("supervisor.frontends.statedir", ["web"], 1, "usage: forkshim-shim "),
    ],
)
def test_a_command_ends_without_the_interpreters_own_end(
    module: str, words: list[str], status: int, said: str
) -> None:
    done = _run(f"from {module} import main; main()", *words)
    assert done.returncode == status
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
    assert "torn down" not in done.stderr
