"""Many containers, and nothing left of them: the `no_leaks` fixture looks at the end."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, waiting
from tests.harness.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.runc, pytest.mark.slow, pytest.mark.timeout(400)]

PROTOCOL_FILES = ["control", "exit", "exitStatus", "log.json", "pid", "process.json",
                  "shim-log.json", "stderr", "stdout"]  # fmt: skip


def terminals() -> int:
    """Return how many pseudoterminals the machine has in use, others' too (proc(5))."""
    with open("/proc/sys/kernel/pty/nr") as file:
        return int(file.read())


def test_200_containers_one_after_another_leave_nothing(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    ptys = terminals()
    plain = make_bundle("echo out; echo err >&2; exit 3")
    terminal = make_bundle("echo out; exit 3", terminal=True)
    for number in range(200):
        has_terminal = number % 4 == 0
        bundle = terminal if has_terminal else plain
        with Engine(
            tmp_path / f"state-{number}", bundles.fresh_id("many"), bundle, terminal=has_terminal
        ) as engine:
            stdout, _stderr = engine.attach("stdout", "stderr")
            engine.run()
            assert waiting.read_to_end(stdout) in (b"out\n", b"out\r\n")
            assert engine.wait_end() == 3
            assert engine.wait_shim() == 0
            left = set(os.listdir(engine.dir))
            assert left <= set(PROTOCOL_FILES)
    assert terminals() < ptys + 25  # one for each terminal would be 50; others open some as well


def test_20_containers_at_once_leave_nothing(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    bundle = make_bundle("read line; echo got $line; exit 4")
    with ExitStack() as stack:
        engines = [
            stack.enter_context(
                Engine(
                    tmp_path / f"state-{number}",
                    bundles.fresh_id("many"),
                    bundle,
                    containerdStdin="stdin",
                )
            )
            for number in range(20)
        ]
        outputs = [engine.attach("stdout", "stderr")[0] for engine in engines]
        for engine in engines:
            engine.launch()
        for engine in engines:
            engine.created()
            engine.start()
        for number, engine in enumerate(engines):
            os.write(engine.open("stdin", os.O_WRONLY), b"%d\n" % number)
        for number, (engine, stdout) in enumerate(zip(engines, outputs, strict=True)):
            assert waiting.read_to_end(stdout) == b"got %d\n" % number
            assert engine.wait_end() == 4
            assert engine.wait_shim() == 0
