"""forkshim as an operator has it: the tree of the Debian package, made in a directory of the bench.

One directory has forkshim and its packages, compiled, and Debian's own python3 runs it by the
package's launcher (`systemd/deb`). A developer's virtual environment is something else: another
interpreter, site, the .pth files of tools, the hooks of coverage. It is measured only where that
python3 cannot load its wheels, and the line about the machine says so.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.harness.engine import BIN

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROOT = Path(__file__).parents[2]
_PYTHON = "/usr/bin/python3"
_LAUNCHER = _ROOT / "systemd" / "deb" / "launcher"
_SHIM_LAUNCHER = _ROOT / "systemd" / "deb" / "shim-launcher"
_PACKAGED, _EXECUTED = "/usr/lib/forkshim", "/usr/libexec/forkshim"
"""Where the launchers look."""
_SHIM = "containerd-shim-forkshim-v2"
_MODULES = {
    "commands/forkshim": "cli.main",
    "commands/forkshim-shim": "frontends.statedir",
    f"libexec/{_SHIM}": "frontends.containerd.main",
}
_OURS = ("supervisor", "workers")
_PACKAGES = ("lockfile", "orjson", "python-daemon", "setproctitle")


@dataclass(frozen=True)
class Programs:
    """The commands, containerd-shim-forkshim-v2 among them.

    Attributes:
        bin: The directory that they are in.
        what: A few words on what they are, for the line about the machine.
    """

    bin: Path
    what: str

    @property
    def forkshim(self) -> Path:
        """The operator's command."""
        return self.bin / "forkshim"

    @property
    def shim(self) -> Path:
        """The engine's command."""
        return self.bin / "forkshim-shim"

    @property
    def run(self) -> Sequence[str]:
        """The words before the options of `forkshim run`."""
        return (str(self.forkshim), "run")


def install(directory: Path) -> Programs:
    """Make the tree in a new directory; returns the programs of .venv where it cannot be made."""
    if why := _lack():
        version = platform.python_version()
        return Programs(BIN, f"forkshim in a virtual environment of Python {version} ({why})")
    directory.mkdir()
    for name in _OURS:
        shutil.copytree(
            _ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in _PACKAGES:
        _copy_package(name, directory)
    _debians("-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", str(directory))
    programs = directory / "commands"
    python = _LAUNCHER.read_text()
    texts = {name: python.replace("@MODULE@", module) for name, module in _MODULES.items()}
    texts[f"commands/{_SHIM}"] = _SHIM_LAUNCHER.read_text()
    for name, text in texts.items():
        (directory / name).parent.mkdir(exist_ok=True)
        text = text.replace(_EXECUTED, f"{directory}/libexec")
        (directory / name).write_text(text.replace(_PACKAGED, str(directory)))
        (directory / name).chmod(0o755)
    version = _debians("-c", "import platform; print(platform.python_version())")
    return Programs(programs, f"forkshim as in the Debian package, Python {version}")


def _copy_package(name: str, directory: Path) -> None:
    """Copy what pip has installed, without byte code and programs."""
    for file in importlib.metadata.files(name) or ():
        if ".." not in file.parts and "__pycache__" not in file.parts:
            target = directory / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.locate(), target)


def _lack() -> str:
    """Say why Debian's python3 cannot run what is in .venv; empty if it can."""
    try:
        theirs = _debians("-c", "import sysconfig; print(sysconfig.get_config_var('SOABI'))")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return f"no {_PYTHON} here"
    ours = str(sysconfig.get_config_var("SOABI"))
    return "" if theirs == ours else f"{_PYTHON} is {theirs}, its wheels are {ours}"


def _debians(*words: str) -> str:
    command = [_PYTHON, "-IS", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
