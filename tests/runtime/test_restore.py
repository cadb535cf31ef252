"""Restore from a checkpoint, with real CRIU, with and without a terminal.

The engine takes the checkpoint itself, as the 2016 daemon did; the shim restores it, in a mount
namespace of its own.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.beds.criu import ensure_criu
from tests.harness import bundles, mounts, runtime_calls, waiting
from tests.harness.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.runc, pytest.mark.criu, pytest.mark.slow, pytest.mark.timeout(300)]

_COUNT = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done"


def checkpoint(engine: Engine, directory: Path, criu: Path, **record: Any) -> Path:
    """Take a checkpoint of a running container, which ends by it."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"name": directory.name, **record}))
    flags = ["--shell-job"] if record.get("shell") else []
    options = [f"--image-path={directory}", f"--work-path={directory}/criu.work", *flags]
    runtime_calls.call("--criu", criu, "checkpoint", *options, engine.id)
    return directory


@pytest.mark.parametrize("terminal", [False, True])
def test_a_restored_container_goes_on_where_it_was(
    tmp_path: Path, make_bundle: Callable[..., Path], terminal: bool
) -> None:
    criu = ensure_criu()
    bundle = make_bundle(_COUNT, terminal=terminal)
    container_id = bundles.fresh_id("restore")
    options: dict[str, Any] = {
        "terminal": terminal,
        "containerdStdin": "stdin" if terminal else "",
        "containerdStderr": "" if terminal else "stderr",
    }
    streams = ("stdout",) if terminal else ("stdout", "stderr")
    with Engine(tmp_path / "first", container_id, bundle, **options) as engine:
        stdout = engine.attach(*streams)[0]
        engine.run()
        begun = waiting.read_until(stdout, b"line 5\r\n" if terminal else b"line 5\n")
        images = checkpoint(engine, tmp_path / "images", criu, shell=terminal)
        before = (begun + waiting.read_to_end(stdout)).split()
        assert engine.wait_end() == 137
        assert engine.wait_shim() == 0
        last = int(before[-1])
    with Engine(
        tmp_path / "second",
        container_id,
        bundle,
        checkpoint=str(images),
        **{**options, "runtimeArgs": ["--criu", str(criu)]},
    ) as engine:
        stdout = engine.attach(*streams)[0]
        engine.launch(preexec_fn=mounts.make_private)
        pid = engine.created()
        first_line = waiting.read_until(stdout, b"\n").split()[:2]
        assert first_line == [b"line", b"%d" % (last + 1)]
        os.kill(pid, 9)
        waiting.read_to_end(stdout)
        assert engine.wait_end() == 137
        assert engine.wait_shim() == 0
        assert engine.log("error") == []
        assert engine.runtime_state() is None


def test_a_checkpoint_that_cannot_be_restored_is_the_runtimes_error(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    images = tmp_path / "empty"
    images.mkdir()
    (images / "config.json").write_text("{}")
    with Engine(
        tmp_path / "state",
        bundles.fresh_id("restore"),
        make_bundle("true"),
        checkpoint=str(images),
        runtimeArgs=["--criu", str(ensure_criu())],
    ) as engine:
        engine.attach("stdout", "stderr")
        engine.launch(preexec_fn=mounts.make_private)
        waiting.wait_hangup(engine.exit_fd)
        assert engine.wait_shim() == 0
        assert engine.log("error") == []
        assert any("restore" in message for message in engine.log("info"))
        assert engine.runtime_state() is None
