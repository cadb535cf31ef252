"""The shortest life of a container, from both front ends."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, waiting
from tests.harness.engine import FORKSHIM, Engine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.runc


def test_an_engine_gets_output_status_and_hang_up(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    bundle = make_bundle("echo out; echo err >&2; exit 7")
    with Engine(tmp_path / "state", bundles.fresh_id("smoke"), bundle) as engine:
        stdout, stderr = engine.attach("stdout", "stderr")
        engine.run()
        assert waiting.read_to_end(stdout) == b"out\n"
        assert waiting.read_to_end(stderr) == b"err\n"
        assert engine.wait_end() == 7
        assert engine.wait_shim() == 0
        assert engine.runtime_state() is None
        assert engine.log("error") == []


def test_a_person_gets_output_and_the_containers_status(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    bundle = make_bundle("echo out; echo err >&2; exit 7")
    root = tmp_path / "root"
    done = subprocess.run(
        [FORKSHIM, "run", "--root", root, "--bundle", bundle, bundles.fresh_id("smoke")],
        capture_output=True,
        timeout=waiting.LIMIT_S,
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    assert os.listdir(root) == []
