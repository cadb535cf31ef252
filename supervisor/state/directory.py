"""The state directory of one process: the only writer of its files, `pid` and `log.json` apart.

The names and contents are the protocol of containerd 0.2, from the shim's side:

    process.json   read once                       exit     fifo: end of file means we are done
    control        fifo: stdin close, resize       pid      written by the runtime
    exitStatus     decimal, no newline             shim-log.json, log.json   ours, the runtime's

Every name is opened relative to the current directory, which *is* the state directory.
"""

from __future__ import annotations

import os
from contextlib import suppress

from supervisor.linux import fds
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


def check_trust() -> None:
    """Refuse a current directory in which others can put names: they choose what we execute.

    Raises:
        UntrustedError: They can.
    """
    directory = fds.Fd(os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        trust.check(directory.fileno(), os.getcwd(), may_be_sticky=False)
    finally:
        directory.close()


def open_log(mirror_prefix: str | None = None) -> Log:
    """Open shim-log.json for appending. It comes first: every later failure is written there.

    Raises:
        ShimError: It cannot be opened.
    """
    flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = fds.Fd(os.open(LOG_NAME, flags, 0o666))
    except OSError as error:
        raise ShimError(f"open {LOG_NAME}: {reason(error)}") from error
    if fds.is_fifo(fd.fileno()):
        fd.close()
        raise ShimError(f"open {LOG_NAME}: not a regular file")
    return Log(fd, mirror_prefix)


def open_fifo(name: str) -> fds.Fd:
    """Open `exit` or `control` for both directions: it never waits and never sees end of file.

    Raises:
        ShimError: Missing, not a fifo, or not to be opened.

    Source: fifo(7), "O_RDWR succeeds in both blocking and nonblocking mode".
    """
    try:
        fd = fds.Fd(os.open(name, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        raise ShimError(f"open {name}: {reason(error)}") from error
    if not fds.is_fifo(fd.fileno()):
        fd.close()
        raise ShimError(f"open {name}: not a fifo")
    return fd


def make_fifos() -> None:
    """Make `exit` and `control`, as an engine does before it starts a shim."""
    for name in ("exit", "control"):
        os.mkfifo(name, 0o600)


def remove_stale_pid() -> None:
    """Remove a `pid` of an earlier run: what is there after `create` is then the runtime's."""
    try:
        os.unlink("pid")
    except FileNotFoundError:
        return


def read_pid() -> int:
    """Read what the runtime wrote to `pid`.

    Raises:
        ShimError: Missing, or anything but a decimal number above 0.
    """
    try:
        with open("pid", "rb", opener=fds.open_without_waiting) as file:
            text = file.read(_LONGEST_PID + 1)
    except OSError as error:
        raise ShimError(f"open pid: {reason(error)}") from error
    # Strict: the engine parses the same file, and int() would take "1_0", " 7" and "7\n".
    if not text.isdigit() or len(text) > _LONGEST_PID or int(text) == 0:
        raise ShimError(f"pid: not a process id: {text.decode(errors='backslashreplace')!r}")
    return int(text)


def write_file(name: str, content: bytes, mode: int = 0o644) -> None:
    """Write a file that is there either whole or not at all, also after a power cut.

    Raises:
        OSError: The system call that failed, and `name` is as it was before; or, if it was the last
            one, is new and might not outlive a power cut.

    Source: rename(2) is atomic; fsync(2) of the file before it, and of the directory after it.
    """
    temporary = _temporary_name(name)
    fd = _create(temporary, mode)
    try:
        _write_all(fd, content)
        _move_into_place(fd, temporary, name)
    except OSError:
        with suppress(FileNotFoundError):  # it has its name already
            os.unlink(temporary)
        raise
    finally:
        fd.close()


def read_exit_status() -> str:
    """Read what `exitStatus` says; empty if there is none."""
    try:
        with open(EXIT_STATUS_NAME, opener=fds.open_without_waiting) as file:
            return file.read(_LONGEST_STATUS)
    except OSError:
        return ""


def write_handover(socket_fds: Iterable[int], nonce: str) -> None:
    """Write the inodes of the sockets that lead to all that this supervisor holds, and its nonce.

    For whoever looks for a process that still has them open, if we are killed. Another user who
    read the nonce could lay something down in our name.

    Raises:
        OSError: As `write_file`.
    """
    inodes = [str(os.fstat(fd).st_ino) for fd in socket_fds]
    write_file(HANDOVER_NAME, " ".join([*inodes, boot_id(), nonce]).encode(), 0o600)


def remove_handover() -> None:
    """Remove it: there is nothing to be found any more."""
    with suppress(FileNotFoundError):
        os.unlink(HANDOVER_NAME)


def boot_id() -> str:
    """Return what the machine calls itself until it is booted anew: inodes are others' then.

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
    thing away that nobody can tell a second time.
    """

    def __init__(self, packed: Mapping[str, Any] | None = None) -> None:
        """Take the room, under a temporary name; without room `write` will have to find some.

        `packed`: go on with the room of an earlier supervisor, see `pack`.
        """
        self._temporary = _temporary_name(EXIT_STATUS_NAME)
        self._fd = fds.Fd(-1)
        if packed is not None:
            self._temporary, flags = packed["name"], os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            with suppress(OSError):  # there never was any, or somebody has cleared it up
                self._fd = fds.Fd(os.open(self._temporary, flags))
            return
        try:
            self._fd = _create(self._temporary, 0o644)
            _write_all(self._fd, b" " * _LONGEST_STATUS)
        except OSError:
            self.close()

    def pack(self) -> dict[str, Any]:
        """Return what a successor needs."""
        return {"name": self._temporary}

    def write(self, status: str) -> None:
        """Write it, no newline, whole before anyone is told.

        Raises:
            OSError: There is no `exitStatus`.
        """
        if not self._fd.is_open:
            write_file(EXIT_STATUS_NAME, status.encode())
            return
        os.lseek(self._fd.fileno(), 0, os.SEEK_SET)
        text = status.encode()
        _write_all(self._fd, text)
        os.ftruncate(self._fd.fileno(), len(text))
        _move_into_place(self._fd, self._temporary, EXIT_STATUS_NAME)
        self._fd.close()

    def close(self) -> None:
        """Give the room back, if it was not needed."""
        if self._fd.is_open:
            self._fd.close()
            with suppress(OSError):  # the directory may be gone
                os.unlink(self._temporary)


def _temporary_name(name: str) -> str:
    return f".{name}.{os.getpid()}"


def _create(temporary: str, mode: int) -> fds.Fd:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return fds.Fd(os.open(temporary, flags, mode))
    except FileExistsError:
        os.unlink(temporary)  # of a supervisor that was killed here and had our pid
        return fds.Fd(os.open(temporary, flags, mode))


def _write_all(fd: fds.Fd, content: bytes) -> None:
    rest = memoryview(content)
    while rest:  # a disk that is nearly full takes a part first, and says ENOSPC next
        rest = rest[os.write(fd.fileno(), rest) :]


def _move_into_place(fd: fds.Fd, temporary: str, name: str) -> None:
    os.fsync(fd.fileno())
    os.rename(temporary, name)
    directory = fds.Fd(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        os.fsync(directory.fileno())
    finally:
        directory.close()
