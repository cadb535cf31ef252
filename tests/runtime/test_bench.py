"""The runner of `make bench`, with little of everything: what it measures is no business of a test.

Who forkshim stands beside need not be installed.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Collection

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.runc, pytest.mark.slow, pytest.mark.timeout(400)]


def run(*words: str | Path, pass_fds: Collection[int] = ()) -> list[str]:
    """Run the bench; returns the lines that it prints."""
    command = [sys.executable, "-m", "tests.bench", "--tiny", "--rounds", "1", *words]
    done = subprocess.run(
        command, cwd=ROOT, pass_fds=pass_fds, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.booted
def test_every_case_is_measured_and_can_be_compared(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    said = "\n".join(run("--json", old))
    cases = json.loads(old.read_text())["cases"]
    assert list(cases) == [line.split()[0] for line in run("--list")]
    for name, case in cases.items():
        assert case["figures"] or f"not measured: {name}: forkshim" in said
        assert f"(`{name}`)" in said or not case["figures"]
    compared = [line for line in run("end", "--compare", old) if line.startswith("| end | ms |")]
    assert compared[0].split("|")[3].strip() == "forkshim"


def test_a_case_that_is_none_is_named() -> None:
    command = [sys.executable, "-m", "tests.bench", "no-such-case"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "tests.bench: no case 'no-such-case'; --list names them\n"


def test_what_its_caller_has_open_is_no_failure() -> None:
    """A shell with a script open at 10 or 251, say."""
    with open(os.devnull) as opened:
        given = [fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, lowest) for lowest in (10, 251)]
        try:
            assert any("(`end`)" in line for line in run("end", "start", pass_fds=given))
        finally:
            for fd in given:
                os.close(fd)
