"""One QEMU process: started, saved, resumed, and gone with the test run that started it."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tests.beds.apt import BedError
from tests.beds.vm_channel import Agent, Qmp

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_KERNEL_COMMAND_LINE = (
    "console=ttyS0 panic=-1 quiet mitigations=off"
    " systemd.unit=multi-user.target systemd.show_status=0"
)


@dataclass(frozen=True)
class Size:
    """What the guest is given; a saved state fits only a VM of the same size."""

    memory_mb: int
    cpus: int


def _option(path: Path) -> str:
    """A path as QEMU's comma-separated options want it."""
    return str(path).replace(",", ",,")


def _disk(name: str, path: Path) -> list[str]:
    drive = f"file={_option(path)},if=none,id={name},format=raw,readonly=on"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={name}"]


def _boot_options(image: Path) -> list[str]:
    files = ["-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initramfs")]
    return [*files, "-append", _KERNEL_COMMAND_LINE]


def _line_options(agent_fd: int, qmp_fd: int) -> list[str]:
    """The agent's port, QMP, and a source of entropy for the guest."""
    return [
        *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=agent,fd={agent_fd}"),
        *("-device", "virtserialport,chardev=agent,name=forkshim-bed"),
        *("-chardev", f"socket,id=qmp,fd={qmp_fd}", "-mon", "chardev=qmp,mode=control"),
    ]


def _die_with_parent(argv: list[str]) -> list[str]:
    """The command, killed by the kernel when the thread that starts it ends.

    A parent that died before the kernel was told would not count: hence the look at PPID.
    """
    guard = '[ "$PPID" = "$0" ] && exec "$@"'
    return ["setpriv", "--pdeathsig", "KILL", "sh", "-c", guard, str(os.getpid()), *argv]


class Machine:
    """A VM that was started and is to be booted or resumed; ends with the `with` block."""

    def __init__(self, image: Path, size: Size, folder: Path, *, resume: bool) -> None:
        """Start QEMU.

        Args:
            image: the folder made by vm_image.
            size: memory and processors.
            folder: a folder of this VM alone, with job.img in it; takes QEMU's logs.
            resume: whether `resume` is to be called next, instead of `boot`.
        """
        self._logs = (folder / "console.log", folder / "qemu.log")
        with ExitStack() as stack:
            # Connected pairs instead of sockets in the file system: their names may be too long.
            agent, agent_end = socket.socketpair()
            qmp, qmp_end = socket.socketpair()
            stack.enter_context(agent)
            stack.enter_context(qmp)
            with agent_end, qmp_end, self._logs[1].open("wb") as log:
                self._process = subprocess.Popen(
                    _die_with_parent(
                        [
                            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "qemu64"),
                            *("-M", "q35", "-m", str(size.memory_mb), "-smp", str(size.cpus)),
                            *("-display", "none", "-nodefaults", "-no-reboot"),
                            *_boot_options(image),
                            *("-chardev", f"file,id=console,path={_option(self._logs[0])}"),
                            *("-serial", "chardev:console"),
                            *_disk("root", image / "root.img"),
                            *_disk("job", folder / "job.img"),
                            *_line_options(agent_end.fileno(), qmp_end.fileno()),
                            *(("-incoming", "defer") if resume else ()),
                        ]
                    ),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(agent_end.fileno(), qmp_end.fileno()),
                    start_new_session=True,
                )
            stack.callback(self._end)
            self.agent = Agent(agent)
            try:
                self._qmp = Qmp(qmp)
            except (EOFError, TimeoutError) as error:
                raise self.broken(error) from error
            self._resources = stack.pop_all()

    def __enter__(self) -> Self:
        """Give back itself: it runs already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill QEMU and wait for its end."""
        self._resources.close()

    def _end(self) -> None:
        # No shutdown: the disks are read-only, and everything else was in memory.
        self._process.kill()
        self._process.wait()

    def broken(self, error: Exception) -> BedError:
        """An error that shows what the guest's console and QEMU said last."""
        logs = [log.read_text(errors="replace")[-3000:] for log in self._logs if log.exists()]
        return BedError("\n".join((f"VM: {error!r}", *logs)))

    def boot(self, timeout_s: float) -> None:
        """Wait for the agent and then for the end of systemd's start.

        Raises:
            BedError: it did not come up, or units failed.
        """
        deadline = time.monotonic() + timeout_s
        try:
            self.agent.await_ready(timeout_s)
            remaining = max(1.0, deadline - time.monotonic())
            started = self.agent.run(["systemctl", "is-system-running", "--wait"], b"", remaining)
            if started.stdout.strip() != "running":
                units = self.agent.run(["systemctl", "--failed", "--no-legend"], b"", remaining)
                raise BedError(f"VM: systemd is {started.stdout.strip()}: {units.stdout}")
        except (EOFError, TimeoutError, subprocess.TimeoutExpired) as error:
            raise self.broken(error) from error

    def save(self, state: Path, timeout_s: float) -> None:
        """Stop the guest for good and write its memory and devices to a file, whole or not at all.

        Raises:
            BedError: QEMU could not.
        """
        part = state.with_name(f"{state.name}.part")
        try:
            # Shrinks the file, and makes a resumed guest read the job disk it then finds anew.
            self.agent.run(["sh", "-c", "echo 3 > /proc/sys/vm/drop_caches"], b"", timeout_s)
            self._qmp.execute("stop")
            # Saving is limited to a network's speed unless told otherwise.
            self._qmp.execute("migrate-set-parameters", **{"max-bandwidth": 10 << 30})
            self._qmp.execute("migrate", uri=f"exec:cat > {shlex.quote(str(part))}")
            self._qmp.finish_migration(timeout_s)
        except (EOFError, TimeoutError, subprocess.TimeoutExpired) as error:
            raise self.broken(error) from error
        part.rename(state)

    def resume(self, state: Path, timeout_s: float) -> None:
        """Load a saved guest, let it go on and set its clock.

        Raises:
            BedError: QEMU could not.
        """
        try:
            self._qmp.execute("migrate-incoming", uri=f"exec:cat {shlex.quote(str(state))}")
            self._qmp.finish_migration(timeout_s)
            self._qmp.execute("cont")
            clock = ["date", "--utc", "--set", f"@{time.time():.3f}"]
            self.agent.run(clock, b"", timeout_s)
        except (EOFError, TimeoutError, subprocess.TimeoutExpired) as error:
            raise self.broken(error) from error
