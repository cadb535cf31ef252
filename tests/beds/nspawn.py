"""Real systemd and journald in systemd-nspawn, over the machine's root file system or a release's.

It boots in half a second, so a test may have one of its own. What it cannot offer, because it has
the machine's kernel and control groups, is in README.md; `vm.VM` is the bed for that.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.beds import apt, debian, transient
from tests.beds.apt import BedError
from tests.beds.nspawn_boot import Container

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

PACKAGES = ("systemd-container", "util-linux")
_ENV = (
    *("env", "-i", "LANG=C.UTF-8"),
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
)
_HOUSEKEEPING_S = 60.0
_LOOK_S = 0.05  # between two looks at a unit: each is a process


class Bed:
    """A running systemd, for the length of a `with` block.

    Everything it writes is kept in memory and lost with it. It sees the files of the machine (or
    of the release `suite`) as they are on its root file system; /tmp and /run are new, and so is
    the journal.

    At the end of the block, or of this process in whatever way, everything in it is killed.
    """

    def __init__(
        self,
        *,
        suite: str | None = None,
        bind_ro: Sequence[Path] = (),
        bind: Mapping[Path, str] | None = None,
        files: Mapping[str, str] | None = None,
        debs: Sequence[Path] = (),
        env: Mapping[str, str] | None = None,
        boot_timeout_s: float = 120.0,
    ) -> None:
        """Describe a bed; it is made and booted on entry.

        Args:
            suite: the Debian release that it runs, if that is not the machine's own.
            bind_ro: what is seen at the same path, read-only. Whatever may change meanwhile, and
                whatever lies in /tmp, must be bound to be seen.
            bind: folders of the machine, and where they are seen, writable.
            files: files that are there before the boot, by path.
            debs: packages that are installed when it has booted, as on a user's machine.
            env: environment of every service.
            boot_timeout_s: how long the boot may take.
        """
        self._suite = suite or debian.own()
        self._bind_ro = [*bind_ro, *debs]
        self._bind = dict(bind or {})
        self._files = dict(files or {})
        self._debs = list(debs)
        self._env = dict(env or {})
        self._boot_timeout_s = boot_timeout_s
        self._units = itertools.count(1)

    def __enter__(self) -> Self:
        """Boot.

        Raises:
            BedError: it does not come up.
        """
        apt.ensure(PACKAGES)
        with ExitStack() as stack:
            self._container = stack.enter_context(
                Container(
                    lower=stack.enter_context(debian.tree(self._suite)),
                    bind_ro=self._bind_ro,
                    bind=self._bind,
                    files=self._files,
                    env=self._env,
                    timeout_s=self._boot_timeout_s,
                )
            )
            if self._debs:
                self.run("dpkg", "--install", *map(str, self._debs), check=True)
            self._resources = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill everything in it at once; `poweroff` before that for an orderly end."""
        self._resources.close()

    @property
    def leader_pid(self) -> int:
        """The pid, on this machine, of the systemd inside.

        Raises:
            BedError: it has ended.
        """
        if self._container.has_ended:
            raise self._container.broken("has ended")
        return self._container.leader_pid

    def run(
        self,
        *argv: str,
        stdin: str = "",
        properties: Sequence[str] = (),
        timeout_s: float = 60.0,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a systemd service of its own, as the shim would be run.

        Its environment is that of a service: no HOME, and a PATH without surprises.

        Args:
            *argv: the command.
            stdin: what it reads.
            properties: settings of the service, such as "Delegate=yes".
            timeout_s: after this the whole service is killed.
            check: whether any end but 0 is an error.

        Returns:
            stdout, stderr and the exit code; 255 after a signal.

        Raises:
            subprocess.TimeoutExpired: it took too long.
            BedError: `check` was asked for, and it failed.
        """
        unit = f"bed-run-{next(self._units)}.service"
        command = transient.command(unit, argv, properties)
        try:
            done = self._enter(command, stdin, timeout_s)
        except subprocess.TimeoutExpired as error:
            self.ctl("systemctl", "kill", "--signal=KILL", unit)
            error.cmd = argv
            raise
        return _checked(argv, done) if check else done

    def ctl(
        self, *argv: str, timeout_s: float = _HOUSEKEEPING_S, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run systemctl or the like in the bed; four times as fast as `run`.

        Not for what is tested: it has this process's control group and rights, not a service's.

        Raises:
            subprocess.TimeoutExpired: it took too long.
            BedError: `check` was asked for, and it failed.
        """
        done = self._enter(argv, "", timeout_s)
        return _checked(argv, done) if check else done

    def unmask(self, *units: str) -> None:
        """Let units start that no bed starts by itself."""
        for unit in units:
            self.path(f"/etc/systemd/system/{unit}").unlink()
        self.ctl("systemctl", "daemon-reload", check=True)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file in the bed, with the folders it lies in."""
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def read(self, path: str) -> str:
        """Read a file in the bed."""
        return self.path(path).read_text()

    def path(self, path: str) -> Path:
        """Where this process finds a file of the bed, while it runs.

        An absolute symbolic link in it leads to the machine's files, not to the bed's.
        """
        return Path("/proc", str(self.leader_pid), "root", path.lstrip("/"))

    def journal(self, unit: str | None = None, *args: str) -> list[dict[str, Any]]:
        """What the journal has of a unit (of all, without one), the oldest first; also afterwards.

        What a process has written before this is called is in it. A message that is not UTF-8 is a
        list of numbers, as journalctl gives it.

        Args:
            unit: a unit's name.
            *args: more arguments of journalctl, such as "--output-fields=MESSAGE".
        """
        return list(self.journal_entries(unit, *args))

    def journal_entries(self, unit: str | None = None, *args: str) -> Iterator[dict[str, Any]]:
        """Yield the same one by one, for more than fits into memory."""
        if not self._container.has_ended:
            self.ctl("journalctl", "--sync", check=True)
        fd = self._container.journal_fd
        flags = [
            "--output=json",
            "--all",
            "--no-pager",
            "--quiet",
            f"--directory=/proc/self/fd/{fd}",
        ]
        only = [] if unit is None else [f"--unit={unit}"]
        with tempfile.TemporaryFile() as complaints:
            reader = subprocess.Popen(
                ["journalctl", *flags, *only, *args],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
                pass_fds=[fd],
            )
            with reader:
                assert reader.stdout is not None
                for line in reader.stdout:
                    yield json.loads(line)
            if reader.returncode != 0:
                complaints.seek(0)
                raise BedError(f"journalctl: {complaints.read().decode(errors='replace')}")

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit, as `systemctl show` has them; all of them if none is named."""
        wanted = [f"--property={name}" for name in properties]
        done = self.ctl("systemctl", "show", *wanted, "--", unit, check=True)
        pairs = (line.partition("=") for line in done.stdout.splitlines())
        return {name: value for name, equals, value in pairs if equals}

    def wait_until_active(self, unit: str, timeout_s: float = _HOUSEKEEPING_S) -> None:
        """Wait until a unit is active.

        Raises:
            BedError: it has failed, or is not in time.
        """
        state = self._wait(unit, {"active", "failed"}, timeout_s)
        if state != "active":
            raise BedError(f"{unit}: {state}, not active")

    def wait_until_inactive(self, unit: str, timeout_s: float = _HOUSEKEEPING_S) -> str:
        """Wait until a unit has ended and is not about to be restarted.

        Returns:
            "inactive", or "failed".

        Raises:
            BedError: it has not in time.
        """
        return self._wait(unit, {"inactive", "failed"}, timeout_s)

    def poweroff(self, timeout_s: float = 180.0) -> None:
        """Shut the bed down, as a machine is, and wait for its end; `journal` works afterwards.

        Raises:
            BedError: it did not end.
        """
        os.kill(self.leader_pid, signal.SIGRTMIN + 4)  # starts poweroff.target: systemd(1)
        self._container.wait(timeout_s)

    def _enter(
        self, argv: Sequence[str], stdin: str, timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in all namespaces of the bed."""
        namespaces = ("-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w")
        target = ("-t", str(self.leader_pid))
        return subprocess.run(
            ["nsenter", *target, *namespaces, "--", *_ENV, *argv],
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )

    def _wait(self, unit: str, wanted: set[str], timeout_s: float) -> str:
        """Wait until a unit is in one of these states and no job for it is waiting.

        Looks again and again: systemctl has no command that waits for this.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            found = self.show(unit, "ActiveState", "SubState", "Job")
            if found["ActiveState"] in wanted and not found.get("Job"):
                return found["ActiveState"]
            if time.monotonic() > deadline_s:
                raise BedError(f"{unit}: {found} after {timeout_s} s")
            time.sleep(_LOOK_S)


def _checked(
    argv: Sequence[str], done: subprocess.CompletedProcess[str]
) -> subprocess.CompletedProcess[str]:
    if done.returncode != 0:
        tail = (done.stdout + done.stderr)[-2000:]
        raise BedError(f"{' '.join(argv)}: exit code {done.returncode}\n{tail}")
    return done
