"""Engines for the tests of this directory: made on demand, cleaned up whatever happens."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.harness import bundles, conmon
from tests.harness.daemon import Daemon
from tests.harness.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path


class MakeEngine(Protocol):
    """The type of the fixture `make_engine`."""

    def __call__(
        self,
        args: str | Sequence[str] = "exit 7",
        *,
        runtime: str | Path = "runc",
        bundle: Path | None = None,
        container_id: str | None = None,
        host_pid: bool = False,
        **process: Any,
    ) -> Engine:
        """Make an engine whose container runs `args`, a script or a list; `process`: `Engine`'s."""


class MakeExec(Protocol):
    """The type of the fixture `make_exec`."""

    def __call__(self, container: Engine, args: str | Sequence[str], **process: Any) -> Engine:
        """Make an engine that runs `args`, a script or a list, in a running container."""


_seen: set[tuple[object, str]] = set()


@pytest.fixture(autouse=True)
def traced_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let coverage trace the supervisors of a test's first row alone.

    Half of the processor time of a traced supervisor is coverage's; the other rows of a table run
    the same lines, with other values.
    """
    test = (request.module, request.node.originalname)
    if test in _seen:
        monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # coverage's `patch` sets it
    _seen.add(test)


@pytest.fixture
def make_engine(tmp_path: Path, rootfs: Path) -> Iterator[MakeEngine]:
    """Return a function that makes an engine with a bundle of its own."""
    with ExitStack() as stack:
        count = 0

        def make(
            args: str | Sequence[str] = "exit 7",
            *,
            runtime: str | Path = "runc",
            bundle: Path | None = None,
            container_id: str | None = None,
            host_pid: bool = False,
            **process: Any,
        ) -> Engine:
            nonlocal count
            count += 1
            document = bundles.config(
                rootfs,
                bundles.shell(args) if isinstance(args, str) else args,
                terminal=process.get("terminal", False),
                host_pid=host_pid,
            )
            return stack.enter_context(
                Engine(
                    tmp_path / f"state-{count}" / "init",
                    container_id or bundles.fresh_id("engine"),
                    bundle or bundles.make_bundle(tmp_path / f"bundle-{count}", document),
                    runtime=str(runtime),
                    **process,
                )
            )

        yield make


@pytest.fixture
def make_exec(tmp_path: Path) -> Iterator[MakeExec]:
    """Return a function that makes the engine of one more process in a running container."""
    with ExitStack() as stack:
        count = 0

        def make(container: Engine, args: str | Sequence[str], **process: Any) -> Engine:
            nonlocal count
            count += 1
            argv = bundles.shell(args) if isinstance(args, str) else list(args)
            fields = {
                "args": argv,
                "cwd": "/",
                "env": ["PATH=/bin", "TERM=xterm"],
                "user": {"uid": 0, "gid": 0},
                "exec": True,
                "runtime": container.runtime,
                **process,
            }
            return stack.enter_context(
                Engine(
                    container.dir.parent / f"exec-{count}", container.id, container.bundle, **fields
                )
            )

        yield make


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Return a function that starts a daemon that can be adopted; its log goes to tmp_path/log."""
    with ExitStack() as stack:

        def make(bundle: Path, *options: str | Path, stdin: int | None = None) -> Daemon:
            options = options or ("--log", f"file:{tmp_path}/log")
            daemon = Daemon(tmp_path, bundle, *options, stdin=stdin)
            stack.callback(daemon.close)
            return daemon

        yield make


@pytest.fixture
def make_conmon(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> Iterator[Callable[..., conmon.Engine]]:
    """Return a function that plays an engine with our conmon, for a container with a script."""
    with ExitStack() as stack:

        def make(script: str = conmon.STAYS, **options: bool) -> conmon.Engine:
            engine = conmon.Engine(tmp_path, make_bundle(script, **options))
            stack.callback(engine.close)
            return engine

        yield make
