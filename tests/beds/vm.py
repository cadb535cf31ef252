"""A Debian VM under software emulation, for what the machine's own kernel cannot offer.

Real systemd, journald and the whole of cgroup v2, on Debian's cloud kernel. crun of Debian 12, for
one, refuses to run where cgroup v1 controllers are mounted beside cgroup v2.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.beds import apt, cache, transient, vm_image
from tests.beds.apt import BedError
from tests.beds.vm_qemu import Machine, Size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

PACKAGES = (
    *("qemu-system-x86", "runc", "crun", "busybox-static"),
    *("cpio", "kmod", "e2fsprogs", "uidmap", "iptables"),
)
_NOT_COPIED = shutil.ignore_patterns(".git", "__pycache__", ".venv", ".cache", ".*_cache")
_HOUSEKEEPING_S = 60.0


class VM:
    """A running VM, for the length of a `with` block; one command at a time.

    A second and later use goes on from a state saved after the first boot, in about a second. All
    such runs share a boot id and the state of the random generator; `fresh` boots anew, slowly.
    What the guest writes is kept in its memory only.

    The kernel ends the VM with the thread that entered the block.
    """

    def __init__(
        self,
        src: Path | None = None,
        *,
        memory_mb: int = 1024,
        cpus: int = 2,
        fresh: bool = False,
        boot_timeout_s: float = 300.0,
    ) -> None:
        """Describe a VM; it is made and started on entry.

        Args:
            src: a folder to be found at /job/src, read-only, without .git, caches and .venv.
            memory_mb: the guest's memory; its writable files count towards it.
            cpus: the guest's processors.
            fresh: boot instead of going on from the saved state.
            boot_timeout_s: how long a boot, a save or a resume may take.
        """
        self._src = src
        self._size = Size(memory_mb, cpus)
        self._fresh = fresh
        self._boot_timeout_s = boot_timeout_s
        self._units = 0

    def __enter__(self) -> Self:
        """Make what is missing in the cache and start the VM.

        Raises:
            BedError: it cannot be made, or does not come up.
        """
        apt.ensure(PACKAGES)
        with ExitStack() as stack:
            with cache.build_lock():
                image = vm_image.ensure()
                stack.enter_context(cache.in_use(image))
                state = None if self._fresh else self._saved_state(image)
            folder = stack.enter_context(cache.run_folder())
            _make_job_disk(folder, self._src)
            resume = state is not None
            machine = Machine(image, self._size, folder, resume=resume)
            self._machine = stack.enter_context(machine)
            if state is None:
                machine.boot(self._boot_timeout_s)
            else:
                machine.resume(state, self._boot_timeout_s)
            self._order("mount", "-t", "ext4", "-o", "ro,noload", "/dev/vdb", "/job")
            self._resources = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the VM at once; nothing of it is kept."""
        self._resources.close()

    def _saved_state(self, image: Path) -> Path:
        """The state to go on from; made by a boot if there is none. Under the build lock."""
        state = image / f"state-{self._size.memory_mb}-{self._size.cpus}"
        if not state.exists():
            with cache.run_folder() as folder:
                _make_job_disk(folder, None)
                with Machine(image, self._size, folder, resume=False) as machine:
                    machine.boot(self._boot_timeout_s)
                    machine.save(state, self._boot_timeout_s)
        return state

    def run(
        self,
        *argv: str,
        stdin: str | bytes = b"",
        properties: Sequence[str] = (),
        timeout_s: float = 120.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a systemd service of its own, as the shim would be run.

        Its environment is that of a service: no HOME, and a PATH without surprises.

        Args:
            *argv: the command.
            stdin: what it reads.
            properties: settings of the service, such as "Delegate=yes".
            timeout_s: after this the whole service is killed.

        Returns:
            stdout, stderr and the exit code: 255 after a signal, but 1 after the OOM killer's.

        Raises:
            subprocess.TimeoutExpired: it took too long.
        """
        self._units += 1
        unit = f"bed-run-{self._units}.service"
        command = transient.command(unit, argv, properties)
        try:
            done = self.raw(*command, stdin=stdin, timeout_s=timeout_s)
        except subprocess.TimeoutExpired as error:
            self.raw("systemctl", "kill", "--signal=KILL", unit, timeout_s=_HOUSEKEEPING_S)
            error.cmd = argv
            raise
        return subprocess.CompletedProcess(argv, done.returncode, done.stdout, done.stderr)

    def raw(
        self, *argv: str, stdin: str | bytes = b"", timeout_s: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a child of the bed's agent, in the agent's cgroup; faster than `run`.

        Returns:
            stdout, stderr and the exit code; 127 if it could not be started, -N for signal N.

        Raises:
            subprocess.TimeoutExpired: it took too long, and was killed.
        """
        data = stdin.encode() if isinstance(stdin, str) else stdin
        try:
            return self._machine.agent.run(argv, data, timeout_s)
        except (EOFError, TimeoutError) as error:
            raise self._machine.broken(error) from error

    def write(self, path: str, data: str | bytes) -> None:
        """Write a file in the guest, with the folders it lies in.

        Raises:
            BedError: it cannot be written.
        """
        script = 'mkdir -p "$(dirname "$0")" && cat > "$0"'
        self._order("sh", "-c", script, path, stdin=data)

    def read(self, path: str) -> str:
        """Read a file in the guest.

        Raises:
            BedError: it cannot be read.
        """
        return self._order("cat", path)

    def _order(self, *argv: str, stdin: str | bytes = b"") -> str:
        """Run something that has to succeed and give back its stdout."""
        done = self.raw(*argv, stdin=stdin, timeout_s=_HOUSEKEEPING_S)
        if done.returncode != 0:
            raise BedError(f"VM: {' '.join(argv)}: {done.stderr.strip()}")
        return done.stdout


def _make_job_disk(folder: Path, src: Path | None) -> None:
    """Write job.img, with a copy of `src` (if any) in the folder src."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        content = Path(name)
        content.chmod(0o755)
        if src is not None:
            # mke2fs cannot leave anything out, and gives up on files that vanish meanwhile.
            shutil.copytree(src, content / "src", symlinks=True, ignore=_NOT_COPIED)
        vm_image.make_disk(folder / "job.img", content, vm_image.JOB_SIZE)
