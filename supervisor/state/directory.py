"""The state directory of one process. This module writes its files, but `pid` and `log.json`.

The names and contents are the protocol of containerd 0.2, from the shim's side:

    process.json    read once
    control         fifo: close stdin, resize
    exit            fifo: end of file tells the engine that the supervisor has finished
    exitStatus      decimal, no newline
    shim-log.json   the supervisor's log
    pid, log.json   written by the runtime

Every name is opened relative to a descriptor of the directory: a supervisor may have several
containers, but it has only one working directory.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from functools import partial

from supervisor.linux import fds, paths
from supervisor.linux.errors import MachineError, ShimError, reason
from supervisor.state import trust
from supervisor.state.log import LOG_NAME, Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

EXIT_STATUS_NAME = "exitStatus"
HANDOVER_NAME = "handover"
_LONGEST_PID = 10
_LONGEST_BOOT_ID = 64
_LONGEST_STATUS = len("unknown")


class StateDirectory:
    """One state directory. Owns a descriptor of it until `close`."""

    def __init__(self, fd: fds.Fd, path: str) -> None:
        """Own the descriptor. `path` is absolute, for the runtime's command lines. Use `open`."""
        self._fd = fd
        self.path = path

    @classmethod
    def open(cls, path: str) -> StateDirectory:
        """Open the directory `path`, which may be relative.

        Raises:
            MachineError: open(2) failed.
        """
        absolute = paths.absolute(path)
        try:
            fd = fds.Fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            return cls(fd, absolute)
        except OSError as error:
            raise MachineError(f"open {path}: {reason(error)}") from error

    def fileno(self) -> int:
        """Return the descriptor, borrowed, for openat(2)."""
        return self._fd.fileno()

    def close(self) -> None:
        """Close the descriptor."""
        self._fd.close()

    def check_trust(self) -> None:
        """Refuse a directory in which other users can create names: they could have code executed.

        Raises:
            UntrustedError: Other users can create names in it.
        """
        trust.check(self.fileno(), self.path, may_be_sticky=False)

    def open_log(self, mirror_prefix: str | None = None) -> Log:
        """Open shim-log.json for appending. Called first, because later failures are logged there.

        `mirror_prefix`: see `Log`.

        Raises:
            MachineError: open(2) failed.
            ShimError: The file is a fifo.
        """
        flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = fds.Fd(os.open(LOG_NAME, flags, 0o666, dir_fd=self.fileno()))
        except OSError as error:
            raise MachineError(f"open {LOG_NAME}: {reason(error)}") from error
        if fds.is_fifo(fd.fileno()):
            fd.close()
            raise ShimError(f"open {LOG_NAME}: not a regular file")
        return Log(fd, mirror_prefix)

    def open_fifo(self, name: str) -> fds.Fd:
        """Open `exit` or `control` with O_RDWR: open(2) does not wait, and there is no end of file.

        Raises:
            ShimError: open(2) failed, or the file is no fifo.

        Source: fifo(7), "O_RDWR succeeds in both blocking and nonblocking mode".
        """
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = fds.Fd(os.open(name, flags, dir_fd=self.fileno()))
        except OSError as error:
            why = reason(error)
            if isinstance(error, FileNotFoundError) and self._has_entry(name):
                why = "a symbolic link to nothing"
            raise ShimError(f"open {name}: {why}") from error
        if not fds.is_fifo(fd.fileno()):
            fd.close()
            raise ShimError(f"open {name}: not a fifo")
        return fd

    def _has_entry(self, name: str) -> bool:
        return name in os.listdir(self.fileno())

    def make_fifos(self) -> None:
        """Make the fifos `exit` and `control`, as an engine does before it starts a shim."""
        for name in ("exit", "control"):
            os.mkfifo(name, 0o600, dir_fd=self.fileno())

    def read(self, name: str, most_bytes: int) -> bytes:
        """Return the first `most_bytes` of a file.

        Raises:
            OSError: As open(2) and read(2); EAGAIN for a fifo of this name.
        """
        opener = partial(fds.open_without_waiting, dir_fd=self.fileno())
        with open(name, "rb", opener=opener) as file:
            return file.read(most_bytes) or b""

    def write(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """See `write_file`."""
        write_file(self.fileno(), name, content, mode)

    def remove(self, name: str) -> None:
        """Remove a file. Do nothing if it does not exist."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fileno())

    def remove_stale_pid(self, name: str = "pid") -> None:
        """Remove the `pid` file of an earlier run. A `pid` after `create` is then the runtime's.

        `name` may be an absolute path that an engine has chosen.

        Raises:
            ShimError: unlink(2) failed: the name is a directory's, for example.
        """
        try:
            self.remove(name)
        except OSError as error:
            raise ShimError(f"remove {name}: {reason(error)}") from error

    def check_file(self, name: str) -> None:
        """Refuse anything but a regular file or a missing one, before another program opens it.

        Raises:
            ShimError: It is a fifo, for example, whose open(2) would block.
        """
        try:
            mode = os.stat(name, dir_fd=self.fileno()).st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise ShimError(f"stat {name}: {reason(error)}") from error
        if not stat.S_ISREG(mode):
            raise ShimError(f"open {name}: not a regular file")

    def read_pid(self, name: str = "pid") -> int:
        """Return the pid that the runtime has written to `pid`, or to an engine's path.

        Raises:
            ShimError: The file is missing, or is not a decimal number above 0.
        """
        try:
            text = self.read(name, _LONGEST_PID + 1)
        except OSError as error:
            raise ShimError(f"open {name}: {reason(error)}") from error
        # The engine parses the same file. int() would accept "1_0", " 7" and "7\n", too.
        if not text.isdigit() or len(text) > _LONGEST_PID or int(text) == 0:
            shown = text.decode(errors="backslashreplace")
            raise ShimError(f"{name}: not a process id: {shown!r}")
        return int(text)

    def read_exit_status(self) -> str:
        """Return the content of `exitStatus`; "" if it cannot be read."""
        try:
            return self.read(EXIT_STATUS_NAME, _LONGEST_STATUS).decode(errors="replace")
        except OSError:
            return ""

    def write_handover(self, socket_fds: Iterable[int], nonce: str, counters_fd: int) -> None:
        """Write the file `handover`, with which a successor finds the fd store and the workers.

        The inodes of the store's sockets lead to the fd holder. The inode of the counters' memory
        leads to the workers. The mode is 0600: another user who can read the nonce could publish an
        fd store in the supervisor's name.

        Raises:
            OSError: As `write_file`.
        """
        inodes = [str(os.fstat(fd).st_ino) for fd in socket_fds]
        counters = str(os.fstat(counters_fd).st_ino)
        self.write(HANDOVER_NAME, " ".join([*inodes, boot_id(), nonce, counters]).encode(), 0o600)

    def remove_handover(self) -> None:
        """Remove the file `handover`: no successor can adopt the container any more."""
        self.remove(HANDOVER_NAME)


def write_file(dir_fd: int, name: str, content: bytes, mode: int = 0o644) -> None:
    """Write a file atomically and durably: after a power cut it has the old or the new content.

    Raises:
        OSError: A system call failed. `name` is unchanged; or, if the last fsync(2) failed, it is
            new and may not survive a power cut.

    Source: rename(2) is atomic; fsync(2) of the file before it, and of the directory after it.
    """
    temporary = _temporary_name(name)
    fd = _create(dir_fd, temporary, mode)
    try:
        _write_all(fd, content)
        _move_into_place(dir_fd, fd, temporary, name)
    except OSError:
        with suppress(FileNotFoundError):  # rename(2) has succeeded
            os.unlink(temporary, dir_fd=dir_fd)
        raise
    finally:
        fd.close()


def remove_tree(path: str) -> None:
    """Remove a directory and its content; follows no symbolic link.

    shutil is not used: importing it takes 3 ms, and a package upgrade may have removed its file.
    """
    # os.walk has one descriptor open at a time: a second may exceed RLIMIT_NOFILE.
    for here, directories, files in os.walk(path, topdown=False, onerror=_raise):
        for name in files:
            os.unlink(os.path.join(here, name))
        for name in directories:
            try:
                os.rmdir(os.path.join(here, name))
            except NotADirectoryError:  # a link to a directory
                os.unlink(os.path.join(here, name))
    os.rmdir(path)


def _raise(error: OSError) -> None:
    raise error


def boot_id() -> str:
    """Return the id of this boot of the machine; "unknown" where it is hidden.

    After the next boot an inode number belongs to another file.

    Source: proc(5), /proc/sys/kernel/random/boot_id.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return file.read(_LONGEST_BOOT_ID).decode("ascii", "replace").strip()
    except (FileNotFoundError, PermissionError):
        return "unknown"


class ExitStatusFile:
    """The file `exitStatus`, whose disk space is reserved at the start. Owns it until `write`.

    The disk may be full when the container dies, possibly from its own output. No process could
    report the exit status later.
    """

    def __init__(self, directory: StateDirectory, packed: Mapping[str, Any] | None = None) -> None:
        """Reserve the space, under a temporary name. If that fails, `write` tries again.

        `packed`: use the file of an earlier supervisor, see `snapshot`.
        """
        self._directory = directory
        self._temporary = _temporary_name(EXIT_STATUS_NAME)
        self._fd = fds.Fd(-1)
        if packed is not None:
            self._temporary, flags = packed["name"], os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            with suppress(OSError):  # ENOENT: the reservation failed, or the file was removed
                self._fd = fds.Fd(os.open(self._temporary, flags, dir_fd=directory.fileno()))
            return
        try:
            self._fd = _create(directory.fileno(), self._temporary, 0o644)
            _write_all(self._fd, b" " * _LONGEST_STATUS)
        except OSError:
            self.close()

    def snapshot(self) -> dict[str, Any]:
        """Return the state for another supervisor's `packed`."""
        return {"name": self._temporary}

    def write(self, status: str) -> None:
        """Write the status without a newline, durably. Called before the engine is notified.

        Raises:
            OSError: As `write_file`.
        """
        if not self._fd.is_open:
            self._directory.write(EXIT_STATUS_NAME, status.encode())
            return
        os.lseek(self._fd.fileno(), 0, os.SEEK_SET)
        text = status.encode()
        _write_all(self._fd, text)
        os.ftruncate(self._fd.fileno(), len(text))
        _move_into_place(self._directory.fileno(), self._fd, self._temporary, EXIT_STATUS_NAME)
        self._fd.close()

    def close(self) -> None:
        """Release the space if `write` was not called."""
        if self._fd.is_open:
            self._fd.close()
            with suppress(OSError):  # ENOENT: the directory was removed
                os.unlink(self._temporary, dir_fd=self._directory.fileno())


def _temporary_name(name: str) -> str:
    return f".{name}.{os.getpid()}"


def _create(dir_fd: int, temporary: str, mode: int) -> fds.Fd:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return fds.Fd(os.open(temporary, flags, mode, dir_fd=dir_fd))
    except FileExistsError:
        os.unlink(temporary, dir_fd=dir_fd)  # of a killed supervisor that had the same pid
        return fds.Fd(os.open(temporary, flags, mode, dir_fd=dir_fd))


def _write_all(fd: fds.Fd, content: bytes) -> None:
    rest = memoryview(content)
    while rest:  # on a nearly full disk write(2) writes a part, and the next one fails (ENOSPC)
        rest = rest[os.write(fd.fileno(), rest) :]


def _move_into_place(dir_fd: int, fd: fds.Fd, temporary: str, name: str) -> None:
    os.fsync(fd.fileno())
    os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    os.fsync(dir_fd)
