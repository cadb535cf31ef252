"""Shims that fail: by their own fault, or by their runtime's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.harness.engine import Engine


SPOIL_PID = """
if [ $verb = create ] || [ $verb = exec ]; then
    runc "$@" || exit
    for word; do [ "$before" = --pid-file ] && file=$word; before=$word; done
    SPOIL
    exit 0
fi
"""
"""A runtime whose pid file is spoilt by SPOIL, after a `create` that succeeds."""


def fail(engine: Engine) -> str:
    """Launch a shim that is to fail by its own fault; returns the one error that it logs."""
    if "stdout" not in engine.attached:
        engine.attach(*(name for name in ("stdout", "stderr") if (engine.dir / name).exists()))
    engine.launch()
    assert engine.wait_shim() == 1
    (error,) = engine.log("error")
    assert not (engine.dir / "exitStatus").exists()
    assert engine.leftovers() == []
    return error


def fail_by_runtime(engine: Engine) -> str:
    """Launch a shim whose runtime is to fail; returns what the runtime's log says."""
    engine.attach("stdout", "stderr")
    engine.launch()
    assert engine.wait_shim() == 0
    assert engine.log("error") == []
    assert not (engine.dir / "exitStatus").exists()
    records = [json.loads(line) for line in (engine.dir / "log.json").read_text().splitlines()]
    return str(next(record["msg"] for record in records if record["level"] == "error"))
