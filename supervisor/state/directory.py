"""The state directory of one process: the only writer of its files, `pid` and `log.json` apart.

The names and contents are the protocol of containerd 0.2, from the shim's side:

    process.json   read once                       exit     fifo: end of file means we are done
    control        fifo: stdin close, resize       pid      written by the runtime
    exitStatus     decimal, no newline             shim-log.json, log.json   ours, the runtime's

Every name is opened relative to a descriptor of the directory: a supervisor may have several
containers, and only one current directory.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from functools import partial

from supervisor.linux import fds, paths
from supervisor.linux.errors import ShimError, reason
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
        """Take the descriptor. `path` is absolute, for the runtime's command lines; see `open`."""
        self._fd = fd
        self.path = path

    @classmethod
    def open(cls, path: str) -> StateDirectory:
        """Open the directory `path`; "." is the current one, whose absolute path is noted.

        Raises:
            ShimError: It cannot be opened.
        """
        absolute = paths.absolute(path)
        try:
            fd = fds.Fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            return cls(fd, absolute)
        except OSError as error:
            raise ShimError(f"open {path}: {reason(error)}") from error

    def fileno(self) -> int:
        """Lend the descriptor, to open names by."""
        return self._fd.fileno()

    def close(self) -> None:
        """Close the descriptor."""
        self._fd.close()

    def check_trust(self) -> None:
        """Refuse a directory in which others can create names: they choose what is executed.

        Raises:
            UntrustedError: They can.
        """
        trust.check(self.fileno(), self.path, may_be_sticky=False)

    def open_log(self, mirror_prefix: str | None = None) -> Log:
        """Open shim-log.json for appending. It comes first: every later failure is written there.

        Raises:
            ShimError: It cannot be opened.
        """
        flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = fds.Fd(os.open(LOG_NAME, flags, 0o666, dir_fd=self.fileno()))
        except OSError as error:
            raise ShimError(f"open {LOG_NAME}: {reason(error)}") from error
        if fds.is_fifo(fd.fileno()):
            fd.close()
            raise ShimError(f"open {LOG_NAME}: not a regular file")
        return Log(fd, mirror_prefix)

    def open_fifo(self, name: str) -> fds.Fd:
        """Open `exit` or `control` for both directions: it never waits and never sees end of file.

        Raises:
            ShimError: Missing, not a fifo, or not to be opened.

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
        """Make `exit` and `control`, as an engine does before it starts a shim."""
        for name in ("exit", "control"):
            os.mkfifo(name, 0o600, dir_fd=self.fileno())

    def read(self, name: str, most_bytes: int) -> bytes:
        """Return the first `most_bytes` of a file.

        Raises:
            OSError: It cannot be opened or read; EAGAIN for a fifo in its place.
        """
        opener = partial(fds.open_without_waiting, dir_fd=self.fileno())
        with open(name, "rb", opener=opener) as file:
            return file.read(most_bytes) or b""

    def write(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Write a file that is there either whole or not at all; see `write_file`."""
        write_file(self.fileno(), name, content, mode)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fileno())

    def remove_stale_pid(self, name: str = "pid") -> None:
        """Remove a `pid` of an earlier run: what is there after `create` is then the runtime's.

        `name` may be the absolute path of an engine.

        Raises:
            ShimError: It cannot be removed; a directory, say.
        """
        try:
            self.remove(name)
        except OSError as error:
            raise ShimError(f"remove {name}: {reason(error)}") from error

    def check_file(self, name: str) -> None:
        """Refuse what is no regular file, before another program opens it; it may be missing.

        Raises:
            ShimError: A fifo, say, in which an open(2) waits for ever.
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
        """Read what the runtime wrote to `pid`, or to an engine's path.

        Raises:
            ShimError: Missing, or anything but a decimal number above 0.
        """
        try:
            text = self.read(name, _LONGEST_PID + 1)
        except OSError as error:
            raise ShimError(f"open {name}: {reason(error)}") from error
        # Strict: the engine parses the same file, and int() would take "1_0", " 7" and "7\n".
        if not text.isdigit() or len(text) > _LONGEST_PID or int(text) == 0:
            shown = text.decode(errors="backslashreplace")
            raise ShimError(f"{name}: not a process id: {shown!r}")
        return int(text)

    def read_exit_status(self) -> str:
        """Read what `exitStatus` says; empty if there is none."""
        try:
            return self.read(EXIT_STATUS_NAME, _LONGEST_STATUS).decode(errors="replace")
        except OSError:
            return ""

    def write_handover(self, socket_fds: Iterable[int], nonce: str, counters_fd: int) -> None:
        """Write where a successor finds the fd store and the workers, and the store's nonce.

        The inodes of the store's sockets lead to the fd holder, that of the counters' memory to the
        workers. The file is 0600: another user who read the nonce could publish an fd store in our
        name.

        Raises:
            OSError: As `write_file`.
        """
        inodes = [str(os.fstat(fd).st_ino) for fd in socket_fds]
        counters = str(os.fstat(counters_fd).st_ino)
        self.write(HANDOVER_NAME, " ".join([*inodes, boot_id(), nonce, counters]).encode(), 0o600)

    def remove_handover(self) -> None:
        """Remove it: no successor can find anything any more."""
        self.remove(HANDOVER_NAME)


def write_file(dir_fd: int, name: str, content: bytes, mode: int = 0o644) -> None:
    """Write a file in a directory that is there either whole or not at all, also after a power cut.

    Raises:
        OSError: The system call that failed, and `name` is as it was before; or, if it was the last
            system call, is new and might not outlive a power cut.

    Source: rename(2) is atomic; fsync(2) of the file before it, and of the directory after it.
    """
    temporary = _temporary_name(name)
    fd = _create(dir_fd, temporary, mode)
    try:
        _write_all(fd, content)
        _move_into_place(dir_fd, fd, temporary, name)
    except OSError:
        with suppress(FileNotFoundError):  # it has its name already
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
    """Return the id of this boot of the machine: after the next boot, inodes are other files'.

    Source: proc(5), /proc/sys/kernel/random/boot_id. Where it is hidden all boots are alike.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return file.read(_LONGEST_BOOT_ID).decode("ascii", "replace").strip()
    except (FileNotFoundError, PermissionError):
        return "unknown"


class ExitStatusFile:
    """`exitStatus`, with its room on the disk taken while there is some. Owns the file until then.

    A disk that is full when the container dies, perhaps by its own output, would else take the one
    thing away that no process can tell a second time.
    """

    def __init__(self, directory: StateDirectory, packed: Mapping[str, Any] | None = None) -> None:
        """Take the room, under a temporary name; without room `write` has to find some.

        `packed`: go on with the room of an earlier supervisor, see `snapshot`.
        """
        self._directory = directory
        self._temporary = _temporary_name(EXIT_STATUS_NAME)
        self._fd = fds.Fd(-1)
        if packed is not None:
            self._temporary, flags = packed["name"], os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            with suppress(OSError):  # there never was any, or it was removed
                self._fd = fds.Fd(os.open(self._temporary, flags, dir_fd=directory.fileno()))
            return
        try:
            self._fd = _create(directory.fileno(), self._temporary, 0o644)
            _write_all(self._fd, b" " * _LONGEST_STATUS)
        except OSError:
            self.close()

    def snapshot(self) -> dict[str, Any]:
        """Return what a successor needs."""
        return {"name": self._temporary}

    def write(self, status: str) -> None:
        """Write it, no newline, whole before anyone is told.

        Raises:
            OSError: There is no `exitStatus`.
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
        """Give the room back, if it was not needed."""
        if self._fd.is_open:
            self._fd.close()
            with suppress(OSError):  # the directory may be gone
                os.unlink(self._temporary, dir_fd=self._directory.fileno())


def _temporary_name(name: str) -> str:
    return f".{name}.{os.getpid()}"


def _create(dir_fd: int, temporary: str, mode: int) -> fds.Fd:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return fds.Fd(os.open(temporary, flags, mode, dir_fd=dir_fd))
    except FileExistsError:
        os.unlink(temporary, dir_fd=dir_fd)  # of a supervisor that was killed here and had our pid
        return fds.Fd(os.open(temporary, flags, mode, dir_fd=dir_fd))


def _write_all(fd: fds.Fd, content: bytes) -> None:
    rest = memoryview(content)
    while rest:  # a disk that is nearly full takes a part first, and says ENOSPC next
        rest = rest[os.write(fd.fileno(), rest) :]


def _move_into_place(dir_fd: int, fd: fds.Fd, temporary: str, name: str) -> None:
    os.fsync(fd.fileno())
    os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    os.fsync(dir_fd)
