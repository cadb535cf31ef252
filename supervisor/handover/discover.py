"""Finding what a killed supervisor has left: its fd store, its fd holder, its workers.

The fd holder keeps the store open; so does systemd, if it was asked to. The file `handover` of the
state directory names the inodes of the store's sockets, a nonce, and the inode of the counters'
memory, which every worker has mapped from its fork to its end.

The inode may be another process's socket by now. So only processes of the same user and the same
user namespace are examined. The store must have been made by that user, and have the nonce.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress

from supervisor.linux import fds, procfs, syscalls
from supervisor.linux.errors import reason
from supervisor.state import directory
from supervisor.state.fd_store import FdReader, FdStore, FdStoreError
from workers.common.records import dataclass
from workers.process.counters import MEMORY_NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping, Sequence

KEPT_NAMES = ("forkshim-front", "forkshim-back")
"""Names of the store's two sockets in systemd's FD store."""

_TITLE = b"forkshim: "
_FD_HOLDER = b" [fds]"
_COUNTERS = f"/memfd:{MEMORY_NAME}".encode()
_FIRST_LISTEN_FD = 3
_LAST_WORDS_MS = 5000
_LONGEST_HANDOVER = 256


@dataclass(frozen=True, slots=True)
class Handover:
    """The content of the file `handover`.

    Attributes:
        inodes: Of the store's two sockets.
        nonce: Of the store; "" in the file of an older forkshim.
        counters: The inode of the counters' memory; "" in the file of an older forkshim.
    """

    inodes: tuple[str, ...]
    nonce: str
    counters: str


class ForeignFdStoreError(FdStoreError):
    """The store belongs to another container: its state directory was copied or moved."""


def take_kept(environment: MutableMapping[str, str]) -> FdStore | None:
    """Return the store that systemd has passed to this process; None without one.

    Removes LISTEN_* from `environment`, unless there are descriptors for the container.

    Source: sd_listen_fds(3), sd_notify(3).
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return None
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    numbers = {name: _FIRST_LISTEN_FD + index for index, name in enumerate(names)}
    if not set(KEPT_NAMES) <= numbers.keys():
        return None
    if set(names) == set(KEPT_NAMES):  # else there are descriptors for the container
        for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
            environment.pop(variable, None)
    ends = (numbers[KEPT_NAMES[0]], numbers[KEPT_NAMES[1]])
    for fd, name in enumerate(names, _FIRST_LISTEN_FD):
        if fd in ends:
            os.set_inheritable(fd, False)
        elif name in KEPT_NAMES:
            os.close(fd)  # of an older store
    try:
        return FdStore(ends=ends)
    except FdStoreError:  # another program has put other descriptors there
        return None


def is_of(store: FdStore, state_dir: str) -> bool:
    """Return whether `store` belongs to the supervisor that was killed in `state_dir`."""
    with suppress(FdStoreError):
        wanted = _read_handover(state_dir)
        if wanted.inodes == tuple(str(os.fstat(end).st_ino) for end in store.fds):
            store.expect(wanted.nonce)
            return True
    return False


def find(state_dir: str) -> FdStore:
    """Return the fd store of the supervisor that was killed in `state_dir`, from its fd holder.

    Raises:
        FdStoreError: No process has the store open, or the kernel refuses its descriptors.
    """
    wanted = _read_handover(state_dir)
    refusals: list[str] = []
    for pid in _holders(wanted.inodes, refusals, _title(state_dir)):
        try:
            store = _copy(pid, wanted)
        except PermissionError as error:
            refusals.append(_refusal(pid, error))
            continue
        except OSError:  # the process has ended
            continue
        if store is not None:
            return store
    if refusals:
        raise FdStoreError(refusals[0])
    raise FdStoreError(
        "its fd holder was killed, too, and systemd has kept nothing: the descriptors of its "
        "streams and of its exit status are lost"
    )


def why_not(state_dir: str) -> str:
    """Return why `forkshim adopt` cannot adopt the container; "" if it can.

    Changes nothing. Does not look for a living supervisor.
    """
    try:
        store = find(state_dir)
        try:
            look(store, state_dir).close()
        finally:
            store.close()
    except FdStoreError as error:
        return str(error)
    return ""


def look(store: FdStore, state_dir: str) -> FdReader:
    """Return a copy of the store's content, owned by the caller.

    Raises:
        FdStoreError: This version cannot read the store.
        ForeignFdStoreError: The store belongs to another state directory.
    """
    contents = store.look()
    origin = contents.document.get("origin")
    if not isinstance(origin, dict) or not contents.document.keys() >= {"request", "container"}:
        contents.close()
        raise FdStoreError("handover: parts of the document are missing")
    if origin.get("path") != os.path.dirname(state_dir):
        contents.close()
        raise ForeignFdStoreError("handover: of another container")
    return contents


def workers(state_dir: str) -> list[fds.Fd]:
    """Return pidfds of the workers that a killed supervisor has left, owned by the caller.

    Two workers on one stream would mix its bytes. So a new worker waits for the old worker's end.

    Raises:
        FdStoreError: As `find`, or the kernel refuses to show a process with that title.
    """
    counters = _read_handover(state_dir).counters
    return workers_with(counters, os.path.basename(os.path.dirname(state_dir)))


def workers_with(counters: str, container_id: str) -> list[fds.Fd]:
    """Return pidfds of the workers that have mapped the counters with this inode; as `workers`.

    Raises:
        FdStoreError: The kernel refuses to show a process with the container's title.
    """
    title, found = _TITLE + os.fsencode(container_id), list[fds.Fd]()
    for pid in _processes():
        try:
            if not _is_worker(pid, title) or _is_fd_holder(pid):
                continue
            pidfd = fds.Fd(os.pidfd_open(pid))
            # Checked after pidfd_open(2): the pidfd never becomes another process.
            if _maps(pid, counters) and _is_ours(pid) and not _is_gone(pidfd):
                found.append(pidfd)
            else:
                pidfd.close()
        except PermissionError as error:
            raise FdStoreError(_refusal(pid, error)) from error
        except OSError:  # the process has ended
            continue
    return found


def fd_holders(state_dir: str) -> list[fds.Fd]:
    """Return pidfds of the container's fd holders, owned by the caller. systemd is not included.

    Raises:
        FdStoreError: As `find`.
    """
    found: list[fds.Fd] = []
    inodes = _read_handover(state_dir).inodes
    for pid in _holders(inodes):
        with suppress(OSError):
            pidfd = fds.Fd(os.pidfd_open(pid))
            # Checked again after pidfd_open(2): the pidfd never becomes another process.
            has_one = any(inode in inodes for inode in _sockets(pid).values())
            if has_one and _is_worker(pid) and _is_ours(pid):
                found.append(pidfd)
            else:
                pidfd.close()
    return found


def end_leftovers(state_dir: str) -> None:
    """Kill the workers and the fd holder of a dead container. Wait at most 5 s for each.

    Does nothing where the file `handover` is missing, spoilt or another container's.
    """
    try:
        _check_not_foreign(state_dir)
        # The fd holder first: it starts successors.
        left = [*fd_holders(state_dir), *workers(state_dir)]
    except FdStoreError:
        return
    for pidfd in left:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd.fileno(), signal.SIGKILL)
        poller = select.poll()
        poller.register(pidfd.fileno(), select.POLLIN)
        poller.poll(_LAST_WORDS_MS)
        pidfd.close()


def _check_not_foreign(state_dir: str) -> None:
    """Raise `ForeignFdStoreError` if the store exists and belongs to another container."""
    try:
        store = find(state_dir)
    except FdStoreError:
        return
    try:
        look(store, state_dir).close()
    except ForeignFdStoreError:
        raise
    except FdStoreError:  # of another version, or killed before anything was published
        pass
    finally:
        store.close()


def _read_handover(state_dir: str) -> Handover:
    try:
        path = os.path.join(state_dir, directory.HANDOVER_NAME)
        with open(path, "rb", opener=fds.open_without_waiting) as file:
            words = (file.read(_LONGEST_HANDOVER) or b"").decode("ascii", "replace").split()
    except FileNotFoundError as error:
        raise FdStoreError("its supervisor has left no file `handover`") from error
    except OSError as error:
        raise FdStoreError(f"{directory.HANDOVER_NAME}: {reason(error)}") from error
    count = len(KEPT_NAMES)
    inodes, boots = words[:count], words[count : count + 1]
    nonces, counters = words[count + 1 : count + 2], words[count + 2 :]
    # A running supervisor of an older forkshim has written fewer words.
    numbers = [*inodes, *counters]
    if len(inodes) != count or len(counters) > 1 or not all(map(str.isdecimal, numbers)):
        raise FdStoreError(f"{directory.HANDOVER_NAME}: not written by a supervisor")
    if boots and boots[0] != directory.boot_id():
        raise FdStoreError(f"{directory.HANDOVER_NAME}: of another boot of the machine")
    return Handover(tuple(inodes), "".join(nonces), "".join(counters))


def _title(state_dir: str) -> bytes:
    """Return the beginning of the process titles of the container's supervisor and workers."""
    return _TITLE + os.fsencode(os.path.basename(os.path.dirname(state_dir)))


def _holders(
    inodes: Sequence[str], refusals: list[str] | None = None, title: bytes = _TITLE
) -> Iterator[int]:
    """Return the pids of this user's other processes that have a socket with these inodes open.

    `refusals` gets a line for each process with this title whose descriptors the kernel hides.
    """
    for pid in _processes():
        try:
            if any(found in inodes for found in _sockets(pid).values()) and _is_ours(pid):
                yield pid
        except PermissionError as error:
            if refusals is not None and _is_worker(pid, title):
                refusals.append(_refusal(pid, error))
        except OSError:  # the process has ended
            continue


def _processes() -> Iterator[int]:
    """Return the pids of all other processes."""
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid():
            yield int(name)


def _is_fd_holder(pid: int) -> bool:
    """Return whether the process has the title of an fd holder.

    The sockets do not tell: a worker has them, too, for an instant after its fork.
    """
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().rstrip(b"\0").endswith(_FD_HOLDER)


def _maps(pid: int, inode: str) -> bool:
    """Return whether a process has mapped the counters with this inode. Source: proc(5), maps."""
    with open(f"/proc/{pid}/maps", "rb") as file:
        lines = file.read().split(b"\n")
    mapped = (line.split(maxsplit=5) for line in lines if _COUNTERS in line)
    return any(words[4] == inode.encode() for words in mapped if len(words) == 6)


def _is_gone(pidfd: fds.Fd) -> bool:
    return fds.is_readable(pidfd.fileno())


def _is_ours(pid: int) -> bool:
    """Return whether the process has this process's user and user namespace.

    The owner of /proc/PID does not tell: root owns that of a process that is not dumpable.
    Source: proc(5), prctl(2) PR_SET_DUMPABLE, user_namespaces(7).
    """
    there, here = os.stat(f"/proc/{pid}/ns/user"), os.stat("/proc/self/ns/user")
    if not os.path.samestat(there, here):
        return False
    return {*procfs.status(pid)["Uid"].split()} == {str(os.geteuid())}


def _refusal(pid: int, error: OSError) -> str:
    """Return a line: the kernel refuses the descriptors of a process, and the likely causes.

    Source: ptrace(2), "Ptrace access mode checking", which pidfd_getfd(2) refers to.
    """
    status, reasons = procfs.status("self"), []
    if not procfs.has_capability(procfs.CAP_SYS_PTRACE):
        reasons.append("this process lacks CAP_SYS_PTRACE")
    if status.get("Seccomp", "0") != "0":
        reasons.append("a seccomp filter is in force here")
    with suppress(OSError, ValueError), open("/proc/sys/kernel/yama/ptrace_scope") as file:
        if (scope := int(file.read(8))) > 0:
            reasons.append(f"kernel.yama.ptrace_scope is {scope}")
    with suppress(OSError):
        if not _is_ours(pid):
            reasons.append("the process has another user, or another user namespace")
    return (
        f"process {pid} lives, but the kernel refuses its descriptors ({reason(error)}): "
        f"{', '.join(reasons) or 'a security module may forbid it'}"
    )


def _sockets(pid: int) -> dict[int, str]:
    """Return {descriptor: inode} of a process's sockets. Source: proc(5), /proc/PID/fd."""
    found = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            if target.startswith("socket:["):
                found[int(fd)] = target.removeprefix("socket:[").removesuffix("]")
    return found


def _copy(pid: int, wanted: Handover) -> FdStore | None:
    """Return a copy of the store that `pid` has open; None if `pid` has only one of its sockets."""
    copies: list[fds.Fd] = []
    pidfd = fds.Fd(os.pidfd_open(pid))
    try:
        numbers = {inode: fd for fd, inode in _sockets(pid).items()}
        copies.extend(
            fds.Fd(syscalls.pidfd_getfd(pidfd.fileno(), numbers[inode]))
            for inode in wanted.inodes
            if inode in numbers
        )
        # The copies are checked: the number may have become another file before pidfd_getfd(2).
        if [str(os.fstat(copy.fileno()).st_ino) for copy in copies] != [*wanted.inodes]:
            return None
        if not _is_ours(pid):  # checked after pidfd_open(2), as in `workers_with`
            return None
        return FdStore(ends=(copies[0].take(), copies[1].take()), nonce=wanted.nonce)
    finally:
        for owner in (pidfd, *copies):
            owner.close()


def _is_worker(pid: int, title: bytes = _TITLE) -> bool:
    """Return whether the process lives and has such a title. systemd, which has the store, has not.

    A process has its parent's title for an instant after its fork. Source: proc(5), cmdline.
    """
    try:
        if procfs.is_dead(pid):
            return False
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(len(title)) == title
    except (FileNotFoundError, ProcessLookupError):
        return False
