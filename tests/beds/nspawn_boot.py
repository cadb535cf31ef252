"""Boots the systemd of a root file system in systemd-nspawn, and waits until it is up."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.beds import cache, nspawn_cgroup
from tests.beds.apt import BedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

_START = Path(__file__).with_name("nspawn_start.sh")
_JOURNALD = """\
[Journal]
Storage=persistent
SystemMaxUse=4G
RuntimeMaxUse=4G
SystemKeepFree=16M
RuntimeKeepFree=16M
SystemMaxFileSize=1G
RateLimitIntervalSec=0
RateLimitBurst=0
"""
_FILES = {
    # Empty, not absent: systemd then makes an id for this boot, without its first-boot presets.
    "/etc/machine-id": "",
    "/etc/hostname": "forkshim-bed\n",
    "/etc/systemd/journald.conf.d/zz-bed.conf": _JOURNALD,
}
# systemd starts a login on the console of a container, where nobody is to log in; and daemons that
# few beds need, where they are installed: `Bed.unmask`.
_MASKED = ("console-getty.service", "containerd.service", "docker.service", "docker.socket")
_NSPAWN = (
    *("systemd-nspawn", "--quiet", "--machine=forkshim-bed", "--boot"),
    *("--register=no", "--keep-unit"),  # in our control group; PID 1 need not be systemd
    *("--notify-ready=yes", "--console=pipe", "--private-network"),
    *("--resolv-conf=off", "--timezone=off", "--link-journal=no"),
    # What runc needs and nspawn forbids: a keyring for each container, filters for devices.
    "--system-call-filter=@keyring bpf pidfd_getfd",
)
_JANITOR_S = 60.0


def _quoted(text: str) -> str:
    """As systemd.syntax(7) wants a word in which nothing is special."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _bind(option: str, source: str | Path, target: str | Path) -> str:
    escaped = (str(path).replace("\\", "\\\\").replace(":", "\\:") for path in (source, target))
    return f"{option}={':'.join(escaped)}"


def _fill(folder: Path, files: Mapping[str, str], env: Mapping[str, str]) -> None:
    """Write what goes over the bed's root file system."""
    texts = {**_FILES, **files}
    if env:
        words = " ".join(_quoted(f"{name}={value}") for name, value in env.items())
        texts["/etc/systemd/system.conf.d/zz-bed.conf"] = f"[Manager]\nDefaultEnvironment={words}\n"
    for name, text in texts.items():
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for unit in _MASKED:
        path = folder / "etc/systemd/system" / unit
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to("/dev/null")


class Container:
    """A booted systemd with its journal. Owns its processes, control group and folder.

    All of it is gone when the block is left or this process is killed: see nspawn_cgroup.
    """

    def __init__(
        self,
        *,
        lower: Path,
        bind_ro: Sequence[Path],
        bind: Mapping[Path, str],
        files: Mapping[str, str],
        env: Mapping[str, str],
        timeout_s: float,
    ) -> None:
        """Boot over the root file system `lower`; other arguments as those of `nspawn.Bed`.

        Raises:
            BedError: it did not come up in time.
        """
        binds = [_bind("--bind-ro", path, path) for path in bind_ro]
        binds += [_bind("--bind", source, target) for source, target in bind.items()]
        with ExitStack() as stack:
            folder = stack.enter_context(cache.run_folder())
            group = stack.enter_context(nspawn_cgroup.new())
            for name in ("files", "ram"):
                (folder / name).mkdir()
            _fill(folder / "files", files, env)
            notify = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            notify.bind("")  # a free abstract name: no limit to the length of our folder's path
            self._console = folder / "console.log"
            self._janitor = _start_janitor(group, notify)
            stack.callback(self._end)
            with self._console.open("wb") as console:
                self._process = subprocess.Popen(
                    [
                        *("unshare", "--mount", "--propagation", "private"),
                        *(str(_START), str(folder), str(group), str(lower)),
                        *(*_NSPAWN, f"--directory={folder / 'ram/root'}", *binds),
                        "systemd.unit=multi-user.target",
                    ],
                    env={
                        "PATH": os.environ["PATH"],
                        "NOTIFY_SOCKET": "@" + notify.getsockname()[1:].decode(),
                        "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
                    },
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a Ctrl-C is for the tests
                )
            self.leader_pid = self._await_ready(notify, timeout_s)
            # systemd goes on telling its status through nspawn, and waits for whoever does not read
            # it: from here on the janitor does. Closed, its name would be any other socket's.
            assert self._janitor.stdin is not None
            self._janitor.stdin.write(b"\n")
            self._janitor.stdin.flush()
            notify.close()
            # Held open, it can be read when the bed and its mount namespace are gone.
            journal = Path("/proc", str(self.leader_pid), "root/var/log/journal")
            self.journal_fd = os.open(journal, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, self.journal_fd)
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
        """Kill everything in it and wait until nothing is left."""
        self._resources.close()

    @property
    def has_ended(self) -> bool:
        """Whether nspawn has ended, and with it all that was in it."""
        return self._process.poll() is not None

    def wait(self, timeout_s: float) -> None:
        """Wait until it has shut itself down.

        Raises:
            BedError: it did not, or not in an orderly way.
        """
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise self.broken(f"no end within {timeout_s} s") from error
        if status != 0:
            raise self.broken(f"ended with {status}")

    def broken(self, reason: str) -> BedError:
        """An error that shows what the bed's console said last."""
        console = self._console.read_text(errors="replace")[-3000:]
        return BedError(f"nspawn bed: {reason}\n{console}")

    def _await_ready(self, notify: socket.socket, timeout_s: float) -> int:
        """Wait for the end of systemd's start; gives back the pid of the systemd inside."""
        deadline_s = time.monotonic() + timeout_s
        pidfd = os.pidfd_open(self._process.pid)
        try:
            poller = select.poll()
            poller.register(notify, select.POLLIN)
            poller.register(pidfd, select.POLLIN)
            leader = 0
            while True:
                events = poller.poll(max(0.0, deadline_s - time.monotonic()) * 1000)
                if not events:
                    raise self.broken(f"not up within {timeout_s} s")
                if notify.fileno() not in (fd for fd, _event in events):
                    raise self.broken(f"did not come up: status {self._process.wait()}")
                for line in notify.recv(1 << 16).decode().splitlines():
                    if line.startswith("X_NSPAWN_LEADER_PID="):
                        leader = int(line.partition("=")[2])
                    elif line == "READY=1":
                        return leader
        finally:
            os.close(pidfd)

    def _end(self) -> None:
        assert self._janitor.stdin is not None
        self._janitor.stdin.close()
        status = self._janitor.wait(_JANITOR_S)
        self._process.wait(_JANITOR_S)
        if status != 0:
            raise BedError("nspawn bed: its janitor has failed; see stderr")


def _start_janitor(group: Path, notify: socket.socket) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-IS", nspawn_cgroup.__file__]
    return subprocess.Popen(
        [*program, str(os.getpid()), str(group), str(notify.fileno())],
        stdin=subprocess.PIPE,
        pass_fds=[notify.fileno()],
        start_new_session=True,
    )
