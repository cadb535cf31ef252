"""forkshim with the lowest versions that pyproject.toml allows of what it needs, and the locked.

pip puts them into a folder; the interpreter sees that and the standard library alone.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.bundles import fresh_id

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.runc, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
NEEDED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
# Each module in a process forked for it: as a worker has it, and so that a crash names its module.
IMPORT_EACH = """
import importlib, os, pkgutil, sys
failed = []
packages = [importlib.import_module(name) for name in ("supervisor", "workers")]
names = [found.name for package in packages
         for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
         if not found.name.endswith("__main__")]
for name in names:
    if (pid := os.fork()) == 0:
        try:
            importlib.import_module(name)
            os._exit(0)
        except BaseException as error:
            print(name, repr(error), file=sys.stderr)
        os._exit(1)
    if status := os.waitpid(pid, 0)[1]:
        failed.append((name, os.waitstatus_to_exitcode(status)))
print(len(names), failed)
"""
RUN = "from supervisor.cli.main import main; sys.exit(main())"


def lowest() -> list[str]:
    """Return the lowest version of each dependency, as pip wants it."""
    return [re.sub(r"^([\w-]+)>=([\d.]+)$", r"\1==\2", each) for each in NEEDED]


def locked() -> list[str]:
    """Return the locked version of each dependency."""
    names = [re.split("[^a-z-]", each)[0] for each in NEEDED]
    lock = (ROOT / "tests/setup/requirements.lock").read_text()
    return [line.split()[0] for line in lock.splitlines() if line.partition("==")[0] in names]


@pytest.fixture(scope="module", params=[lowest, locked], ids=["lowest", "locked"])
def python(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs Python code with these versions."""
    requirements = request.param()
    assert [each.partition("==")[0] for each in requirements] == [
        re.split("[^a-z-]", each)[0] for each in NEEDED
    ]
    assert all("==" in each for each in requirements), requirements
    target = tmp_path_factory.mktemp("versions")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "--only-binary", ":all:", "--target", target, *requirements], check=True)

    def run(code: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
        path = f"import sys; sys.path[:0] = {[str(ROOT), str(target)]!r}\n"
        return subprocess.run(
            [sys.executable, "-ISB", "-c", path + code, *args],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def test_every_module_can_be_imported(
    python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = python(IMPORT_EACH)
    count, _, failed = done.stdout.partition(" ")
    assert (done.returncode, failed, done.stderr) == (0, "[]\n", "")
    assert int(count) > 60


def test_a_container_runs(
    python: Callable[..., subprocess.CompletedProcess[str]],
    make_bundle: Callable[..., Path],
    tmp_path: Path,
) -> None:
    bundle = make_bundle("echo out; echo err >&2; exit 7")
    name = fresh_id("versions")
    options = ("--root", tmp_path / "run", "--exit-dir", tmp_path, "--log", f"file:{tmp_path}/log")
    done = python(RUN, "run", *options, "--bundle", bundle, name)
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")
    assert sorted((tmp_path / "log").read_text().split()) == ["err", "out"]
    assert (tmp_path / f"{name}.json").exists()


def test_the_title_is_set_without_the_package_that_imports_logging(
    python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    code = (
        "from workers.process.title import set_title\n"
        "set_title('forkshim: web')\n"
        "print('logging' in sys.modules, open('/proc/self/cmdline').read().rstrip(chr(0)))"
    )
    done = python(code)
    assert (done.stdout, done.stderr) == ("False forkshim: web\n", "")
