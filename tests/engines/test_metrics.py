"""Metrics of a real container: ours, beside those of the stock shim and of containerd's client."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.frontends.containerd import metrics
from supervisor.systemd import delegation
from supervisor.wire.cgroup_metrics import V1Metrics, V2Metrics
from supervisor.wire.protobuf import is_any_of, unpack_any
from tests.engines.containerd import STOCK
from tests.engines.test_ctr import detached

if TYPE_CHECKING:
    from tests.engines.containerd import Containerd

pytestmark = [pytest.mark.engine, pytest.mark.process]

# It has had memory, pages and the processor, and it does nothing while it is looked at.
SCRIPT = "dd if=/dev/zero of=/file bs=1M count=8 2>/dev/null; sha256sum /file; sleep 1000"
LIMIT = 64 << 20


def test_a_real_containers_metrics_are_those_that_the_stock_shim_tells(cd: Containerd) -> None:
    options = ["--memory-limit", str(LIMIT)]
    with detached(cd, STOCK, "a", "sh", "-c", SCRIPT, options=options):
        told = metrics_of(cd, "a")
        init = cd.sandbox.pid_outside(cd.tasks()["a"].pid)
        packed = metrics.read(delegation.membership(init))
        kind = V1Metrics if is_any_of(packed, V1Metrics) else V2Metrics
        ours = unpack_any(packed, kind)
    for path, value in _leaves(told):
        if path[-1].removeprefix("total_").removeprefix("file_") in ("dirty", "writeback"):
            continue  # the disk may be done with them between the two looks
        mine = _at(ours, path)
        assert mine, f"{path}: the stock shim tells {value}, ours none"
        if path[-1] in ("limit", "usage_limit", "hierarchical_memory_limit"):
            assert mine == value, path


def test_metrics_tell_limits_and_use(cd: Containerd, runtime: str) -> None:
    options = ["--memory-limit", str(LIMIT)]
    with detached(cd, runtime, "a", "sh", "-c", SCRIPT, options=options):
        told = metrics_of(cd, "a")
    assert told["pids"]["current"] >= 1
    is_v1 = "usage" in told["cpu"]
    usage = told["memory"]["usage"] if is_v1 else {"limit": told["memory"]["usage_limit"]}
    assert usage["limit"] == LIMIT
    assert (told["cpu"]["usage"]["total"] if is_v1 else told["cpu"]["usage_usec"]) > 0


def metrics_of(cd: Containerd, container_id: str) -> dict[str, Any]:
    """Return what `ctr task metrics` tells."""
    told = cd.ctr("task", "metrics", "--format", "json", container_id).stdout
    document: dict[str, Any] = json.loads(told)
    return document


def _leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        found = [_leaves(below, (*path, name)) for name, below in value.items()]
        return [leaf for leaves in found for leaf in leaves]
    return [(path, value)]


def _at(document: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        document = document[name]
    return document
