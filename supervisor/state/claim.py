"""ROOT/ID: the files of `forkshim run` beside those of the state-directory protocol.

    ROOT/ID/             0700, locked with flock(2) while its supervisor lives
    ROOT/ID/state.json   bundle, runtime, runtimeArgs, noPivotRoot: as the 2016 daemon writes it
    ROOT/ID/supervisor.pid
    ROOT/ID/init/        the state directory of the container's init

The lock is on the directory itself, so the kernel releases it when its holder dies. A second `run`
of a supervised id fails on the lock and changes nothing. A directory without a lock belongs to a
supervisor that was killed.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress

from supervisor.linux import fds, paths, plain_json, procfs
from supervisor.linux.errors import (
    AlreadySupervisedError,
    MachineError,
    ShimError,
    UntrustedError,
    reason_of_access,
)
from supervisor.state import directory, trust

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PID_NAME = "supervisor.pid"
_DEAD_LOCK_S = 2.0
_LOOK_AGAIN_S = 0.01
_ROOM_KIB = 64
_ROOM_FILES = 16
"""What a start takes in ROOT/ID: 11 files and directories, each of a page or two."""
STATE_NAME = "state.json"
_OURS = frozenset({PID_NAME, STATE_NAME, "init"})


class Claim:
    """A claimed ROOT/ID. Owns the lock until `release` or `remove`."""

    def __init__(self, path: str, lock: fds.Fd) -> None:
        """Own `lock`. Use `claim`."""
        self.path = path
        self._lock = lock

    @property
    def state_dir(self) -> str:
        """Absolute path of the state directory of the container's init."""
        return os.path.join(self.path, "init")

    @property
    def is_stale(self) -> bool:
        """Whether the state directory of an earlier supervisor exists."""
        return os.path.lexists(self.state_dir)

    @property
    def lock_fd(self) -> int:
        """Return the descriptor of the lock, borrowed. A daemon must keep it open."""
        return self._lock.fileno()

    def left_state(self) -> dict[str, Any]:
        """Return the state.json of the earlier supervisor; {} if it is missing or not an object."""
        try:
            path = os.path.join(self.path, STATE_NAME)
            with open(path, "rb", opener=fds.open_without_waiting) as file:
                state = plain_json.loads(file.read(1 << 20))
        except (FileNotFoundError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def clear(self) -> None:
        """Remove the files of an earlier supervisor. The claim stays."""
        temporary = {name for name in os.listdir(self.path) if name.startswith(".")}
        for name in (STATE_NAME, PID_NAME, *temporary):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self.path, name))
        if self.is_stale:
            directory.remove_tree(self.state_dir)

    def check_room(self) -> None:
        """Refuse a start if the disk has no room for it, before anything is created.

        The runtime writes its log here, too: on a full disk it could not log why it has failed.

        Raises:
            MachineError: The disk is full, or nearly full.

        Source: statvfs(3). A file system that counts no blocks or files reports 0.
        """
        disk = os.fstatvfs(self.lock_fd)
        free_kib, free_files = disk.f_bfree * disk.f_frsize >> 10, disk.f_ffree
        has_bytes = free_kib >= _ROOM_KIB or not disk.f_blocks
        has_files = free_files >= _ROOM_FILES or not disk.f_files
        if not (has_bytes and has_files):
            raise MachineError(
                f"{self.path}: no space left on device: {free_kib} KiB and {free_files} files are "
                f"free, a start needs {_ROOM_KIB} KiB and {_ROOM_FILES}"
            )

    def make_state_dir(self, state: dict[str, Any]) -> None:
        """Write state.json and create the state directory.

        Raises:
            OSError: As `directory.write_file` and mkdir(2).
        """
        directory.write_file(self.lock_fd, STATE_NAME, plain_json.dumps(state))
        os.mkdir("init", 0o700, dir_fd=self.lock_fd)

    def open_state_dir(self) -> directory.StateDirectory:
        """Return the state directory, which the caller closes.

        Raises:
            ShimError: It cannot be opened.
        """
        return directory.StateDirectory.open(self.state_dir)

    def write_pid(self) -> None:
        """Write the pid of this process, for `kill -TERM`. On a full disk over the earlier pid.

        Raises:
            OSError: There is no such file now.
        """
        text = f"{os.getpid()}\n".encode()
        try:
            directory.write_file(self.lock_fd, PID_NAME, text)
        except OSError as error:
            try:
                self._overwrite_pid(text)
            except OSError:
                self.remove_pid()  # it names another process
                raise error from None

    def _overwrite_pid(self, text: bytes) -> None:
        """Write in place, which needs no room on the disk. Readers see the old pid or the new."""
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = fds.Fd(os.open(PID_NAME, flags, dir_fd=self.lock_fd))
        try:
            # $(cat FILE) drops the newlines at the end.
            os.pwrite(fd.fileno(), text.ljust(os.fstat(fd.fileno()).st_size, b"\n"), 0)
        finally:
            fd.close()

    def remove_pid(self) -> None:
        """Remove the file of `write_pid`: this process supervises the container no more."""
        if self._lock.is_open:
            with suppress(OSError):
                os.unlink(PID_NAME, dir_fd=self.lock_fd)

    def remove(self) -> None:
        """Remove the directory, then release the claim, so that no other process sees a part."""
        os.chdir("/")
        # Other processes may have removed the directory and created it again.
        if _is_still_there(self.path, self._lock):
            self.clear()
            os.rmdir(self.path)
        self.release()

    def release(self) -> None:
        """Release the claim and leave the files."""
        self._lock.close()


def claim(root: str, container_id: str) -> Claim:
    """Lock ROOT/ID for this process and its forks. Create it if it is missing.

    Waits for at most 2 s for the lock of a supervisor that has died.

    Raises:
        AlreadySupervisedError: A living supervisor has the lock.
        MachineError: The directory cannot be created or opened, or the path is no directory.
        ShimError: The directory holds another program's files.
        UntrustedError: Others can create names in ROOT, ROOT/ID or ROOT/ID/init.
    """
    path = os.path.join(paths.absolute(root), container_id)
    try:
        trust.open_directory(os.path.dirname(path), make=0o755).close()
        deadline_s = time.monotonic() + _DEAD_LOCK_S
        while True:
            lock = _open_directory(path)
            _check_trust(lock, path)
            try:
                fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                if time.monotonic() < deadline_s and _is_owner_dead(path):
                    time.sleep(_LOOK_AGAIN_S)
                    continue
                raise AlreadySupervisedError(f"already supervised{_by_whom(path)}") from None
            if _is_still_there(path, lock):
                return _checked(path, lock)
            lock.close()  # its owner has removed the directory between open(2) and flock(2)
    except OSError as error:
        raise MachineError(f"{error.filename or path}: {reason_of_access(error)}") from error


def _is_owner_dead(path: str) -> bool:
    """Return whether the owner of the lock has died.

    A worker that it has just forked holds the lock until `isolate.enter_worker` closes the
    descriptor.
    """
    try:
        with open(os.path.join(path, PID_NAME), opener=fds.open_without_waiting) as file:
            pid = int(file.read(16))
    except (FileNotFoundError, ValueError):  # not written yet
        return False
    return procfs.is_dead(pid)


def _checked(path: str, lock: fds.Fd) -> Claim:
    """Return the claim if the directory holds only files of a supervisor.

    Otherwise it is another program's data (`--root /var/lib mysql`), which `clear` must not remove.
    """
    foreign = {
        name
        for name in os.listdir(path)
        if name not in _OURS and not name.startswith((f".{STATE_NAME}.", f".{PID_NAME}."))
    }
    if foreign:
        lock.close()
        raise ShimError(f"{path}: not a directory of forkshim: it contains {min(foreign)!r}")
    claimed = Claim(path, lock)
    if claimed.is_stale:
        try:
            trust.open_below("init", lock.fileno(), claimed.state_dir).close()
        except OSError as error:
            lock.close()
            raise MachineError(f"{claimed.state_dir}: {reason_of_access(error)}") from error
        except UntrustedError:
            lock.close()
            raise
    return claimed


def _check_trust(lock: fds.Fd, path: str) -> None:
    try:
        trust.check(lock.fileno(), path, may_be_sticky=False)
    except UntrustedError:
        lock.close()
        raise


def _open_directory(path: str) -> fds.Fd:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        with suppress(FileExistsError):  # the lock tells whether it has an owner
            os.mkdir(path, 0o700)
        with suppress(FileNotFoundError):  # its owner has removed it in between
            return fds.Fd(os.open(path, flags))


def _is_still_there(path: str, lock: fds.Fd) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(lock.fileno()))
    except FileNotFoundError:
        return False


def _by_whom(path: str) -> str:
    try:
        name = os.path.join(path, PID_NAME)
        with open(name, "rb", opener=fds.open_without_waiting) as file:
            return f" by process {int(file.read(20) or b'')}"
    except (OSError, ValueError):
        return ""  # the supervisor is starting or ending
