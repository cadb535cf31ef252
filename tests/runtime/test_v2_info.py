"""`-info` of the v2 shim, with the features of a real runc."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from supervisor.frontends.containerd.info import runtime_info
from supervisor.wire import messages
from supervisor.wire.protobuf import WireError, decode, encode, pack_any

pytestmark = pytest.mark.runc

PROGRAM = Path(sys.executable).parent / "containerd-shim-forkshim-v2"


def _info(stdin: bytes) -> dict[str, Any]:
    return decode(
        messages.RuntimeInfo, runtime_info(stdin, version="0.1.0", environment=os.environ)
    )


def _stdin(**options: str) -> bytes:
    return encode(messages.Any, pack_any(messages.Options, options))


@pytest.mark.parametrize("stdin", [b"", _stdin(root="/x"), _stdin(binary_name="runc")])
def test_the_features_are_the_runtimes(stdin: bytes) -> None:
    info = _info(stdin)
    assert info["name"] == "io.containerd.runc.forkshim.v2"
    assert info["version"] == {"version": "0.1.0", "revision": ""}
    assert info["options"] == (decode(messages.Any, stdin) if stdin else None)
    url = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
    assert info["features"]["type_url"] == url
    told = subprocess.run(["runc", "features"], check=True, capture_output=True).stdout
    assert json.loads(info["features"]["value"]) == json.loads(told)


@pytest.mark.parametrize("runtime", ["no-such-runtime", "true", "echo"])
def test_a_runtime_without_features_has_none(runtime: str) -> None:
    info = _info(_stdin(binary_name=runtime))
    assert info["features"] is None
    assert info["options"]["type_url"] == "containerd.runc.v1.Options"


def test_the_program_prints_it_without_a_container() -> None:
    done = subprocess.run([PROGRAM, "-info"], input=_stdin(), capture_output=True, check=True)
    assert done.stderr == b""
    assert decode(messages.RuntimeInfo, done.stdout) == _info(_stdin())


def test_what_is_no_any_is_refused() -> None:
    with pytest.raises(WireError, match=r"google\.protobuf\.Any: byte 1: truncated"):
        _info(b"\xff")
