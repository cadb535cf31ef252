"""A container that says nothing costs no worker, with a real runtime."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.harness import waiting

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.engine import Engine
    from tests.runtime.conftest import MakeEngine, MakeExec

pytestmark = pytest.mark.runc


def _workers(engine: Engine) -> list[str]:
    """Return what the shim has forked and not executed a runtime in, by title."""
    titles = map(waiting.title_of, waiting.children_of(engine.shim_pid))
    prefix = f"forkshim: {engine.id} "
    return sorted(title.removeprefix(prefix) for title in titles if title.startswith(prefix))


@pytest.mark.parametrize("terminal", [False, True], ids=["pipes", "terminal"])
def test_a_silent_container_has_no_worker_and_its_first_byte_brings_one(
    make_engine: MakeEngine, tmp_path: Path, *, terminal: bool
) -> None:
    log = tmp_path / "log"
    engine = make_engine(
        "stty -echo; read line; echo said $line; read line; exit 7" if terminal
        else "read line; echo said $line; read line; exit 7",
        terminal=terminal,
        containerdStdin="stdin",
        containerdStdout=f"cri:{log}",
        containerdStderr="" if terminal else f"cri:{log}",
    )  # fmt: skip
    engine.run()
    assert _workers(engine) == []
    assert log.read_bytes() == b"", "the file is there from the start"
    stdin = engine.open("stdin", os.O_WRONLY)
    os.write(stdin, b"word\n")
    waiting.wait_path(log, lambda path: b"said word" in path.read_bytes())
    output = "[console]" if terminal else "[stdout]"
    assert _workers(engine) == sorted([output, "[stdin]"])
    os.write(stdin, b"\n")
    assert engine.wait_end() == 7
    assert engine.leftovers() == []
    assert engine.log("warn") == []


def test_a_silent_exec_forks_no_worker_and_one_that_speaks_has_one(
    make_engine: MakeEngine, make_exec: MakeExec
) -> None:
    container = make_engine("read line; exit 9", containerdStdin="stdin")
    container.run_attached()
    assert _workers(container) == []
    for name in ("silent", "speaks"):
        process = make_exec(
            container, f"read go; {'echo out;' * (name == 'speaks')} read go; exit 3",
            containerdStdin="stdin",
        )  # fmt: skip
        stdout, stderr = process.run_attached()
        assert _workers(process) == []
        os.write(process.open("stdin", os.O_WRONLY), b"go\n")
        said = b"out\n" if name == "speaks" else b""
        if said:
            assert waiting.read_until(stdout, b"\n") == said
            assert _workers(process) == ["[stdin]", "[stdout]"]
        os.write(process.fd("stdin"), b"go\n")
        assert process.wait_end() == 3
        assert waiting.read_to_end(stdout) == b""
        assert waiting.read_to_end(stderr) == b""
        assert process.leftovers() == []
    os.write(container.open("stdin", os.O_WRONLY), b"\n")
    assert container.wait_end() == 9
