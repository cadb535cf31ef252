"""What a supervisor imports before the runtime runs, as a fresh interpreter sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
LATER = {
    "typing",
    *("argparse", "asyncio", "logging", "orjson", "setproctitle", "shutil", "socket", "subprocess"),
    "supervisor.io.stream_set",
}
"""Each costs milliseconds, and is needed only once the runtime works, or for an error."""


@pytest.mark.parametrize("module", ["supervisor.frontends.statedir", "supervisor.cli.main"])
def test_what_only_a_running_container_needs_is_imported_later(module: str) -> None:
    path = [str(ROOT), *sys.path]
    code = f"import sys; sys.path[:] = {path!r}; import {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-IS", "-c", code], check=True, capture_output=True, text=True
    )
    assert module in done.stdout.split()
    assert not LATER & set(done.stdout.split())


NEVER = {"logging", "setproctitle", "threading", "tokenize", "traceback"}
"""They stay in the memory of each idle container: 1.2 MB of 11."""


def test_a_running_container_keeps_no_logging_in_memory() -> None:
    code = (
        f"import sys; sys.path[:] = {[str(ROOT), *sys.path]!r}\n"
        "import supervisor.cli.main, supervisor.frontends.statedir\n"
        "import supervisor.container.running, supervisor.sinks.file_sink\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-IS", "-c", code], check=True, capture_output=True, text=True
    )
    assert "workers.process.title" in done.stdout.split()
    assert not NEVER & set(done.stdout.split())


def test_a_container_without_line_sinks_never_imports_typing() -> None:
    code = (
        f"import sys; sys.path[:] = {[str(ROOT), *sys.path]!r}\n"
        "import supervisor.frontends.statedir, supervisor.container.running\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-IS", "-c", code], check=True, capture_output=True, text=True
    )
    assert "typing" not in done.stdout.split()


def test_a_log_file_needs_no_module_of_the_journal(tmp_path: Path) -> None:
    path = [str(ROOT), *sys.path]
    code = (
        f"import sys; sys.path[:] = {path!r}\n"
        "from supervisor.sinks.open import open_sinks\n"
        "from supervisor.sinks.spec import parse_sink\n"
        f"wanted = {{'stdout': parse_sink('cri:{tmp_path}/log')}}\n"
        "sinks = open_sinks(wanted, 'web', '', is_console=False)\n"
        "sinks['stdout'].close()\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-IS", "-c", code], check=True, capture_output=True, text=True
    )
    found = set(done.stdout.split())
    assert "supervisor.sinks.file_sink" in found
    assert not {"orjson", "supervisor.sinks.journal_sink", "setproctitle"} & found


@pytest.mark.parametrize(
    "module",
    [
        "supervisor.wire.server",
        "supervisor.frontends.containerd.events",
        "supervisor.frontends.containerd.start",
    ],
)
def test_what_containerd_waits_for_imports_no_typing(module: str) -> None:
    path = [str(ROOT), *sys.path]
    code = f"import sys; sys.path[:] = {path!r}; import {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-IS", "-c", code], check=True, capture_output=True, text=True
    )
    assert module in done.stdout.split()
    assert not {"typing", *NEVER} & set(done.stdout.split())
