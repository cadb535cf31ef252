"""Finding what a killed supervisor had: its deposit, with whoever still has that open.

Its workers do, and go on copying; so does systemd, if it was asked to (the FD store). What is found
by its inode belongs to the container whose state directory names it; nobody without root's rights
can bring a process of his own in its place.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress

from supervisor import fds, linux, statedir
from supervisor.deposit import Contents, Deposit, DepositError
from supervisor.errors import reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping, Sequence

KEPT_NAMES = ("forkshim-front", "forkshim-back")
"""Of a deposit's ends in systemd's FD store."""

_TITLE = b"forkshim: "
_FIRST_LISTEN_FD = 3
_LAST_WORDS_MS = 5000
_LONGEST_HANDOVER = 128


class AnothersDepositError(DepositError):
    """It is that of another container: its directory was copied, or moved."""


def take_kept(environment: MutableMapping[str, str]) -> Deposit | None:
    """Return the deposit that systemd has given back to us; `environment` tells no more of it.

    Source: sd_listen_fds(3), sd_notify(3).
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return None
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    numbers = {name: _FIRST_LISTEN_FD + index for index, name in enumerate(names)}
    if not set(KEPT_NAMES) <= numbers.keys():
        return None
    if set(names) == set(KEPT_NAMES):  # else there are some for whoever comes after us
        for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
            environment.pop(variable, None)
    ends = (numbers[KEPT_NAMES[0]], numbers[KEPT_NAMES[1]])
    for fd, name in enumerate(names, _FIRST_LISTEN_FD):
        if fd in ends:
            os.set_inheritable(fd, False)
        elif name in KEPT_NAMES:
            os.close(fd)  # an older one
    try:
        return Deposit(ends=ends)
    except DepositError:  # somebody else has put them there
        return None


def is_of(deposit: Deposit, state_dir: str) -> bool:
    """Say whether it is the deposit of the supervisor that was killed in `state_dir`."""
    with suppress(DepositError):
        return _inodes(state_dir) == tuple(str(os.fstat(end).st_ino) for end in deposit.fds)
    return False


def find(state_dir: str) -> Deposit:
    """Return the deposit of the supervisor that was killed in `state_dir`, from one of its workers.

    Raises:
        DepositError: There is none any more, or never was.
    """
    inodes = _inodes(state_dir)
    for pid in _holders(inodes):
        with suppress(OSError):  # it has ended meanwhile
            deposit = _copy(pid, inodes)
            if deposit is not None:
                return deposit
    raise DepositError("no worker of it lives any more, and systemd has kept nothing")


def look(deposit: Deposit, state_dir: str) -> Contents:
    """Return a copy of what is in there, which the caller owns.

    Raises:
        DepositError: Nothing that this version can read, or nothing of the one in `state_dir`.
    """
    contents = deposit.look()
    front = contents.document.get("front")
    if not isinstance(front, dict) or not contents.document.keys() >= {"order", "supervisor"}:
        contents.close()
        raise DepositError("handover: parts of the document are missing")
    if front.get("path") != os.path.dirname(state_dir):
        contents.close()
        raise AnothersDepositError("handover: of another container")
    return contents


def workers(state_dir: str) -> list[fds.Fd]:
    """Return pidfds of the workers that a killed supervisor has left; the caller owns them.

    Two workers on one stream would not be harmless: a new one has to wait for their end.

    Raises:
        DepositError: As `find`.
    """
    found: list[fds.Fd] = []
    inodes = _inodes(state_dir)
    for pid in _holders(inodes):
        with suppress(OSError):
            pidfd = fds.Fd(os.pidfd_open(pid))
            # Looked at once more: what the pidfd is, it stays.
            if _is_worker(pid) and any(inode in inodes for inode in _sockets(pid).values()):
                found.append(pidfd)
            else:
                pidfd.close()
    return found


def end_workers(state_dir: str) -> None:
    """Kill them: nobody needs what they hold. Waits until they are gone, for a while.

    Where nothing leads to them there is nothing to do; another container's are left alone.
    """
    try:
        deposit = find(state_dir)
    except DepositError:
        return
    try:
        look(deposit, state_dir).close()
    except AnothersDepositError:
        return
    except DepositError:  # of another version, or it was killed before it had put anything there
        pass
    finally:
        deposit.close()
    for pidfd in workers(state_dir):
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd.fileno(), signal.SIGKILL)
        poller = select.poll()
        poller.register(pidfd.fileno(), select.POLLIN)
        poller.poll(_LAST_WORDS_MS)
        pidfd.close()


def _inodes(state_dir: str) -> tuple[str, ...]:
    try:
        path = os.path.join(state_dir, statedir.HANDOVER_NAME)
        with open(path, "rb", opener=fds.open_without_waiting) as file:
            words = (file.read(_LONGEST_HANDOVER) or b"").decode("ascii", "replace").split()
    except OSError as error:
        raise DepositError(f"{statedir.HANDOVER_NAME}: {reason(error)}") from error
    inodes, boots = words[: len(KEPT_NAMES)], words[len(KEPT_NAMES) :]
    # Without the third word it is an older forkshim's, which goes on until it is reloaded.
    if len(inodes) != len(KEPT_NAMES) or len(boots) > 1 or not all(map(str.isdecimal, inodes)):
        raise DepositError(f"{statedir.HANDOVER_NAME}: not a supervisor's")
    if boots and boots[0] != statedir.boot_id():
        raise DepositError(f"{statedir.HANDOVER_NAME}: of another boot of the machine")
    return tuple(inodes)


def _holders(inodes: Sequence[str]) -> Iterator[int]:
    """Return the other processes that have one of these sockets open."""
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid():
            with suppress(OSError):  # gone, or not ours to look into
                if any(found in inodes for found in _sockets(int(name)).values()):
                    yield int(name)


def _sockets(pid: int) -> dict[int, str]:
    """Return the inodes of a process's sockets by their numbers. Source: proc(5), /proc/PID/fd."""
    found = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            if target.startswith("socket:["):
                found[int(fd)] = target.removeprefix("socket:[").removesuffix("]")
    return found


def _copy(pid: int, inodes: Sequence[str]) -> Deposit | None:
    """Return the deposit that `pid` has open; None if it has only a part of it."""
    copies: list[fds.Fd] = []
    pidfd = fds.Fd(os.pidfd_open(pid))
    try:
        numbers = {inode: fd for fd, inode in _sockets(pid).items()}
        copies.extend(
            fds.Fd(linux.pidfd_getfd(pidfd.fileno(), numbers[inode]))
            for inode in inodes
            if inode in numbers
        )
        # What was copied is looked at, not what was there before: the number may be another's.
        if [str(os.fstat(copy.fileno()).st_ino) for copy in copies] != [*inodes]:
            return None
        return Deposit(ends=(copies[0].take(), copies[1].take()))
    finally:
        for owner in (pidfd, *copies):
            owner.close()


def _is_worker(pid: int) -> bool:
    """Say whether it is one of ours, and not systemd with its FD store. Source: proc(5), cmdline.

    One that was forked an instant before still has its parent's title.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            if file.read().rpartition(b")")[2].split()[0] in b"ZX":
                return False
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(len(_TITLE)) == _TITLE
    except (FileNotFoundError, ProcessLookupError):
        return False
