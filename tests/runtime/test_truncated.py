"""A file that is truncated while it is written to: logrotate's `copytruncate`, on every sink."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import bundles, runtime_calls, waiting
from tests.harness.engine import FORKSHIM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.runc

SINKS = {
    "file": "file:{}",
    "file with a policy": "file,policy=drop-new:{}",
    "file that rotates": "file,max-size=1M:{}",
    "path": "path:{}",
    "path with a policy": "path,policy=drop-old:{}",
    "passthrough": "passthrough",
    "passthrough with a policy": "passthrough,policy=drop-new",
    "cri": "cri:{}",
}


@pytest.mark.parametrize("sink", SINKS.values(), ids=SINKS)
def test_after_copytruncate_a_log_has_what_came_after_and_nothing_else(
    tmp_path: Path, make_bundle: Callable[..., Path], sink: str
) -> None:
    log = tmp_path / "log"
    log.touch()
    rules = tmp_path / "rules"
    rules.write_text(f"{log} {{\n  copytruncate\n  rotate 3\n  size 1\n}}\n")
    container_id = bundles.fresh_id("copytruncate")
    with ExitStack() as stack:
        popen: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
        if sink.startswith("passthrough"):
            popen["stdout"] = stack.enter_context(open(log, "wb"))
        process = stack.enter_context(
            subprocess.Popen(
                [
                    FORKSHIM,
                    *("run", "-i", "--root", tmp_path / "root", "--bundle"),
                    make_bundle('while read line; do echo "$line"; done'),
                    *("--log", sink.format(log), container_id),
                ],
                **popen,
            )
        )
        stack.callback(runtime_calls.delete, container_id)
        stack.callback(process.kill)
        assert process.stdin is not None
        for word in ("one", "two", "three"):
            line = word.encode() * 100
            process.stdin.write(line + b"\n")
            process.stdin.flush()
            waiting.wait_true(partial(_has, log, line))
            subprocess.run(
                ["logrotate", "--state", tmp_path / "state", rules],
                check=True,
                timeout=waiting.LIMIT_S,
            )
            assert log.read_bytes() == b""
        process.stdin.write(b"four\n")
        process.stdin.close()
        assert process.wait(waiting.LIMIT_S) == 0
    text = log.read_bytes()
    assert b"\0" not in text
    assert text.endswith(b"four\n")
    assert text.count(b"\n") == 1
    for number, was in enumerate((b"three", b"two", b"one"), 1):
        old = (tmp_path / f"log.{number}").read_bytes()
        assert b"\0" not in old
        assert old.count(b"\n") == 1
        assert was in old


def _has(log: Path, line: bytes) -> bool:
    return line in log.read_bytes()
