"""Fixtures for all tests, and the look for leaks after each test that starts processes."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, jobs, leaks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytest_plugins = ["tests.skips", "tests.failures"]

jobs.hear_the_keyboard()  # `make test` runs half of the tests in the background


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One busybox root file system, mounted read-only by every container."""
    return bundles.make_rootfs(tmp_path_factory.mktemp("image"))


@pytest.fixture
def make_bundle(tmp_path: Path, rootfs: Path) -> Callable[..., Path]:
    """Return a function that makes a bundle for a shell script; options as `bundles.config`."""

    def make(script: str, **options: bool) -> Path:
        document = bundles.config(rootfs, bundles.shell(script), **options)  # type: ignore[arg-type] # its bool options only
        return bundles.make_bundle(tmp_path / f"bundle-{len(list(tmp_path.iterdir()))}", document)

    return make


@pytest.fixture(scope="session", autouse=True)
def temporary_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A TMPDIR of this test run's own, to be watched; short enough for a socket's name."""
    tmp_path_factory.getbasetemp()  # stays where it is, or paths below it would grow too long
    with tempfile.TemporaryDirectory(prefix="fst-") as directory:
        tempfile.tempdir = os.environ["TMPDIR"] = directory
        yield
        tempfile.tempdir = None
        del os.environ["TMPDIR"]


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a descriptor, a child, a file or a container, or closes a descriptor
    that is not its own.
    """
    marks = {mark.name for mark in request.node.iter_markers()}
    if not marks & {"process", "runc"}:
        yield
        return
    leaks.become_subreaper()
    before = leaks.Snapshot.take(with_runtime="runc" in marks)
    yield
    if request.session.exitstatus == pytest.ExitCode.INTERRUPTED:
        return  # Ctrl-C: pytest has given back its own descriptors by now
    leaks.wait_for_ends(before)
    after = leaks.Snapshot.take(with_runtime="runc" in marks)
    assert after.descriptors == before.descriptors
    assert after.children <= before.children
    assert after.temporary <= before.temporary
    assert after.containers <= before.containers
