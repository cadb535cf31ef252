"""Namespaces for a program that starts containers: however it ends, nothing of it is left.

Three processes. The one that the caller knows waits for the second, the keeper, which has a session
of its own and hears of the first one's end by a pipe, whatever that end is. The third is the
program: PID 1 of its namespace, with which the kernel kills all that it has started. The keeper
then removes what is no process: a directory, which is the program's TMPDIR, and control groups.
/run and /dev/shm are the program's own, in memory.

For `make bench` and `make soak`: killed, they would leave a crowd of containers.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.beds import cache, nspawn_cgroup
from tests.harness import leaks

if TYPE_CHECKING:
    from collections.abc import Sequence

_INSIDE = "FORKSHIM_FENCED"
_IDS = "fst-*"  # bundles.fresh_id
_MOUNT = ("unshare", "--mount", "--propagation", "private")
_PIDS = ("setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child")
_PREPARE = """
mount -t tmpfs -o mode=0755 forkshim-fence /run
mount -t tmpfs -o mode=1777 forkshim-fence /dev/shm
exec "$@"
"""


def is_inside() -> bool:
    """Say whether this process is the program itself."""
    return _INSIDE in os.environ


def run(module: str, words: Sequence[str]) -> int:
    """Run `python -m MODULE WORDS`; returns its status when nothing of it is left."""
    if os.geteuid() != 0:
        sys.exit(f"{module}: only root can run containers")
    directory = tempfile.mkdtemp(prefix="fst-")
    hears, says = os.pipe()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ended)
    fd_holder = subprocess.Popen(
        [*_MOUNT, "sh", "-euc", _PREPARE, "sh", *_program(__name__, directory, module, *words)],
        stdin=hears,
        start_new_session=True,  # Ctrl-C is for us, and the keeper is to outlive it
    )
    os.close(hears)
    try:
        return fd_holder.wait()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        os.close(says)
        fd_holder.wait()


def _ended(signum: int, _frame: object) -> None:
    sys.exit(128 + signum)


def _program(module: str, *words: str) -> list[str]:
    return [sys.executable, "-m", module, *words]


def _keep(directory: Path, module: str, *words: str) -> int:
    """Run the program until it has ended or its caller has; then remove what is left."""
    leaks.become_subreaper()
    (directory / "t").mkdir()
    program = subprocess.Popen(
        [*_PIDS, "--mount-proc", *_program(module, *words)],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(directory / "t"), _INSIDE: "1"},
    )
    _await_end(program)
    program.kill()  # unshare, and with it the program: --kill-child
    status = program.wait()
    with suppress(ChildProcessError):
        while True:
            os.wait()  # PID 1 of a namespace ends when all others in it have
    _remove_groups({path.name for path in Path("/run").rglob(_IDS)})
    nspawn_cgroup.sweep()
    with cache.run_folder():
        pass  # it clears away what killed beds have left
    shutil.rmtree(directory)
    return status


def _await_end(program: subprocess.Popen[bytes]) -> None:
    """Wait until the program ends, or who has the other end of our stdin."""
    pidfd = os.pidfd_open(program.pid)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.register(0, 0)  # POLLHUP: nothing is ever written
    poller.poll()
    os.close(pidfd)


def _remove_groups(names: set[str]) -> None:
    """Remove the control groups of containers that were killed, in every hierarchy."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _source, target, kind = line.split()[:3]
        if kind in ("cgroup", "cgroup2"):
            for folder, _folders, _files in os.walk(target, topdown=False):
                if names.intersection(Path(folder).parts):
                    with suppress(OSError):
                        os.rmdir(folder)


if __name__ == "__main__":
    sys.exit(_keep(Path(sys.argv[1]), *sys.argv[2:]))
