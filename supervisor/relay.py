"""--sdnotify=container: what the container says to its service manager reaches ours, word by word.

The container gets a socket of its own, and never the manager's. What each datagram says is told in
`workers.notify_words`. BARRIER=1 is answered here, by closing the descriptor that came with it.

Who speaks is told by the kernel (SO_PASSCRED) and has to be in the container's cgroup or below.

Source: sd_notify(3), unix(7).
"""

from __future__ import annotations

import array
import os
import socket
import struct

from supervisor import cgroups
from workers import notify_words

DIRECTORY = "notify"
_NAME = "notify.sock"
_MOST_FDS = 253  # SCM_MAX_FD
_MOST_IN_A_ROUND = 64
_PF_EXITING = 4
_CREDENTIALS = struct.Struct("=iII")


class Relay:
    """The container's socket. Owned until `close`, which leaves the file to its directory."""

    def __init__(self, *, uid: int, gid: int, fd: int = -1) -> None:
        """Make DIRECTORY in the current directory with the socket in it, for this host's `uid`.

        `fd`: take over an earlier supervisor's socket instead.

        Raises:
            OSError: It cannot be made.
        """
        self._cgroups: dict[str, str] = {}
        if fd >= 0:
            self._socket = socket.socket(fileno=fd)
            return
        os.mkdir(DIRECTORY, 0o755)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        path = f"{DIRECTORY}/{_NAME}"
        self._socket.bind(path)
        os.chmod(path, 0o666)  # noqa: S103 -- whichever user the service in the container becomes
        for each in (DIRECTORY, path):
            os.chown(each, uid, gid)

    def fileno(self) -> int:
        """Lend the descriptor to watch."""
        return self._socket.fileno()

    def belongs_to(self, pid: int) -> None:
        """Take the cgroup that `pid`, just created, is in for the container's."""
        self._cgroups = cgroups.membership(pid)

    def hear(self) -> list[notify_words.Words]:
        """Return what has been said since, by those who may, boundedly; never waits."""
        heard = []
        for _each in range(_MOST_IN_A_ROUND):
            try:
                words = self._receive()
            except BlockingIOError:
                break
            if words is not None:
                heard.append(words)
        return heard

    def _receive(self) -> notify_words.Words | None:
        room = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(_MOST_FDS * 4)
        data, ancillary, flags, _address = self._socket.recvmsg(
            notify_words.MOST_BYTES, room, socket.MSG_CMSG_CLOEXEC
        )
        pid = 0
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                for fd in fds:
                    os.close(fd)
            elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                pid = _CREDENTIALS.unpack(content)[0]
        if flags & socket.MSG_TRUNC or not self._is_of_the_container(pid):
            return None
        return notify_words.parse(data)

    def _is_of_the_container(self, pid: int) -> bool:
        """Say whether a sender may speak; of one that has ended nothing can be known.

        Such a one may: only root of this machine and the container reach the socket at all.
        """
        if pid == 0:  # of a pid namespace that is neither ours nor below it
            return False
        theirs = {} if _is_ending(pid) else cgroups.membership(pid)
        return not theirs or all(
            theirs.get(name, "") == path or theirs.get(name, "").startswith(path.rstrip("/") + "/")
            for name, path in self._cgroups.items()
        )

    def close(self) -> None:
        """Close it: who speaks from now on gets ECONNREFUSED."""
        self._socket.close()


def _is_ending(pid: int) -> bool:
    """Say whether a process is on its way out: of one that is, cgroup v1 names no cgroup but `/`.

    Source: proc(5), /proc/PID/stat, (9) flags: PF_EXITING.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            after_name = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return bool(int(after_name[6]) & _PF_EXITING)


def place_for(destinations: set[str]) -> str:
    """Return where the directory is mounted in a container with mounts at `destinations`.

    /run/notify, as runc has it. Unless /run is a mount, it would be made in the user's own root
    file system; /dev nearly always is one.
    """
    if "/run" not in destinations and "/dev" in destinations:
        return "/dev/notify"
    return "/run/notify"


def address_in(place: str) -> str:
    """Return the container's NOTIFY_SOCKET."""
    return f"{place}/{_NAME}"
