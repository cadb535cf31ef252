"""The happy paths once more with crun, which Debian 12 only runs on pure cgroup v2: in the VM."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from pathlib import Path

import pytest

from tests.beds.vm import VM

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = ("orjson", "setproctitle", "python-daemon", "lockfile", "pytest", "pluggy",
                 "iniconfig", "packaging", "pygments", "pytest-timeout", "pyfakefs")  # fmt: skip

# Of the ends, those that the runtime or the kernel tells; the rest is about the record's file.
ROWS = (
    "test_happy.py",
    "test_ends.py::test_an_exit_with_137_is_an_exit",
    "test_ends.py::test_a_sigkill_from_outside_is_a_signal",
    "test_ends.py::test_out_of_memory_is_said",  # as cgroup v2 counts it
    "test_ends.py::test_a_container_that_never_ran_has_a_record_with_the_reason",
)

_COMMAND = """\
#!/usr/bin/python3
import sys
from supervisor.{module} import main
sys.exit(main())
"""


def test_every_happy_path_works_with_crun(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job")
    settings = {
        "PATH": "/usr/bin:/usr/sbin:/bin:/sbin",
        "PYTHONPATH": "/job/src/site:/job/src",
        "PYTHONPYCACHEPREFIX": "/tmp/pycache",  # /job is read-only: else each start compiles all
        "FORKSHIM_TEST_RUNTIME": "crun",
        "FORKSHIM_TEST_BIN": "/job/src/bin",
    }
    environment = [f"{name}={value}" for name, value in settings.items()]
    pytest_command = [
        *("/usr/bin/python3", "-m", "pytest", "-q", "-o", "cache_dir=/tmp/cache"),
        *("-c", "/job/src/pyproject.toml", "--rootdir", "/job/src"),
        *(f"/job/src/tests/runtime/{name}" for name in ROWS),
    ]
    with VM(src=job) as vm:
        done = vm.run("env", *environment, *pytest_command, timeout_s=400)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 14


def make_job(directory: Path) -> Path:
    """Collect what the guest needs: the project, its commands, and the packages they use."""
    for name in ("supervisor", "workers", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, directory / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", directory)
    (directory / "bin").mkdir()
    for command, module in (("forkshim", "cli.main"), ("forkshim-shim", "frontends.statedir")):
        path = directory / "bin" / command
        path.write_text(_COMMAND.format(module=module))
        path.chmod(0o755)
    for distribution in DISTRIBUTIONS:
        for file in importlib.metadata.files(distribution) or ():
            if ".." in file.parts or "__pycache__" in file.parts:
                continue
            target = directory / "site" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(str(file.locate())), target)
    return directory
