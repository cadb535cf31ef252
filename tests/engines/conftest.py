"""One containerd a module, and the look for what a test leaves in it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engines.containerd import LOSSLESS, RUNTIMES, Containerd, containerd

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


_MOST_CHARACTERS = 8000


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the end of the daemon's log, which has the shims' words, to a failed test."""
    report = yield
    daemon = getattr(item, "funcargs", {}).get("daemon")
    if report.failed and isinstance(daemon, Containerd) and daemon.log.exists():
        text = daemon.log.read_text(errors="replace")[-_MOST_CHARACTERS:]
        report.sections.append((daemon.log.name, text))
    return report


@pytest.fixture(scope="module")
def daemon(rootfs: Path) -> Iterator[Containerd]:
    """The module's containerd, whatever a test has left in it."""
    with tempfile.TemporaryDirectory(prefix="cd-") as name:
        first = str(Path(sys.executable).parent)  # shims of this checkout
        with containerd(Path(name), rootfs, first_on_path=first) as started:
            yield started


@pytest.fixture
def cd(daemon: Containerd) -> Iterator[Containerd]:
    """The module's containerd; the test fails if it leaves a container or a part of one."""
    yield daemon
    try:
        daemon.wait_clean()
    except AssertionError:
        daemon.wipe()
        raise


@pytest.fixture(params=list(RUNTIMES.values()), ids=list(RUNTIMES))
def runtime(request: pytest.FixtureRequest) -> str:
    """The name of a runtime, as `ctr run --runtime` has it."""
    name: str = request.param
    return name


@pytest.fixture(params=list(LOSSLESS.values()), ids=list(LOSSLESS))
def lossless(request: pytest.FixtureRequest) -> str:
    """The name of a runtime whose containers and execs may end right behind their output."""
    name: str = request.param
    return name
