"""The socket of a group: who serves it, and how the next container of the group finds that one.

A group is a pod, or one container. Its socket's name is a hash that every shim computes alike.
`claim` either returns a socket, for the daemon that serves the group from now on, or finds a daemon
that answers. A daemon that leaves first calls `GroupSocket.release`, then closes its connections: a
`start` that is waiting for its answer reads the end of file at once.

An exclusive flock(2) on the directory guards the name: no file of ours lies beside the sockets. A
shim of another maker takes no lock, so the name is also made by link(2), which never replaces.

Source: pkg/shim of containerd: SocketAddress, and the annotations of the group.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import time
from contextlib import contextmanager, suppress

from supervisor.linux import plain_json
from supervisor.linux.errors import BundleError, ShimError, reason
from supervisor.linux.fds import Fd
from supervisor.wire import frames, messages
from supervisor.wire.protobuf import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_DIRECTORY = "/run/containerd/s"
_GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
_SCHEME = "unix://"
_LONGEST_PATH = 106
ANSWER_LIMIT_S = 5.0
"""A daemon that leaves closes its end, so only a daemon that is stopped or very busy takes long."""


class GroupSocket:
    """A listening socket and its name. Owns the listener until `release`.

    Attributes:
        path: The name.
        listener: Listens; for this user alone (0600).
        identity: Device and inode of the name. While the listener is open no other file has them.
    """

    __slots__ = ("identity", "listener", "path")

    def __init__(self, path: str, listener: socket.socket, identity: tuple[int, int]) -> None:
        self.path = path
        self.listener = listener
        self.identity = identity

    def release(self) -> None:
        """Remove the name, unless another daemon has it by now; then close the listener.

        Raises:
            OSError: The name cannot be removed. The listener is closed.
        """
        try:
            with _locked(os.path.dirname(self.path)), suppress(FileNotFoundError):
                if _identity(self.path) == self.identity:
                    os.unlink(self.path)
        finally:
            self.listener.close()


def group_of(bundle: str, container_id: str) -> str:
    """Return the group that the bundle's annotations name; the container's id if they name none.

    Raises:
        BundleError: config.json is missing or no JSON object.
    """
    path = os.path.join(bundle, "config.json")
    try:
        with open(path, "rb") as file:
            document = plain_json.loads(file.read())
    except (OSError, ValueError) as error:
        words = reason(error) if isinstance(error, OSError) else str(error)
        raise BundleError(f"{path}: {words}") from error
    annotations = document.get("annotations") if isinstance(document, dict) else None
    if not isinstance(annotations, dict):
        return container_id
    for name in _GROUP_ANNOTATIONS:
        group = annotations.get(name)
        if isinstance(group, str) and group:
            return group
    return container_id


def address_of(group: str, *, containerd_address: str, namespace: str, directory: str = "") -> str:
    """Return the group's address, as containerd gets it: unix:// and a path.

    `directory`: of the sockets, where containerd names one; "" is the usual one.

    Raises:
        ShimError: The path is too long for a socket.
    """
    joined = os.path.normpath("/".join(filter(None, (containerd_address, namespace, group))))
    name = hashlib.sha256(os.fsencode(joined)).hexdigest()
    path = os.path.join(directory or DEFAULT_DIRECTORY, name)
    if len(path) > _LONGEST_PATH:
        raise ShimError(f"socket {path}: longer than {_LONGEST_PATH} bytes")
    return _SCHEME + path


def claim(address: str, container_id: str) -> GroupSocket | None:
    """Return a listening socket at the address; None if a daemon serves it already.

    The name of a daemon that has died is replaced. The caller owns the socket.

    Raises:
        ShimError: The directory or the socket cannot be made.
    """
    path = address.removeprefix(_SCHEME)
    try:
        with _locked(os.path.dirname(path)):
            while True:
                if _is_served(path, container_id):
                    return None
                with suppress(FileNotFoundError):
                    os.unlink(path)
                with suppress(FileExistsError):  # a shim that takes no lock was quicker
                    return _listen(path)
    except OSError as error:
        raise ShimError(f"socket {path}: {reason(error)}") from error


@contextmanager
def _locked(directory: str) -> Iterator[None]:
    os.makedirs(directory, mode=0o700, exist_ok=True)
    lock = Fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
        yield
    finally:
        lock.close()


def _listen(path: str) -> GroupSocket:
    """Bind, listen, then give the socket its name: a client at that name is never refused.

    Raises:
        FileExistsError: The name is taken.
    """
    temporary = f"{path}.{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        listener.bind(temporary)
        os.chmod(temporary, 0o600)
        listener.listen(socket.SOMAXCONN)
        os.link(temporary, path)
        return GroupSocket(path, listener, _identity(temporary))
    except OSError:
        listener.close()
        raise
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path, follow_symlinks=False)
    return found.st_dev, found.st_ino


def _is_served(path: str, container_id: str) -> bool:
    """Say whether a daemon answers at the path. An error is an answer, too."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.settimeout(ANSWER_LIMIT_S)
        client.connect(path)
        payload = encode(messages.ConnectRequest, {"id": container_id})
        client.sendall(frames.encode_request(1, messages.TASK_SERVICES[0], "Connect", payload))
        return _reads_answer(client, time.monotonic() + ANSWER_LIMIT_S)
    except OSError:
        # ENOENT, ECONNREFUSED: no daemon; ECONNRESET, EPIPE: it is leaving; a time-out.
        return False
    finally:
        client.close()


def _reads_answer(client: socket.socket, deadline_s: float) -> bool:
    parser = frames.FrameParser()
    while (left_s := deadline_s - time.monotonic()) > 0:
        client.settimeout(left_s)
        data = client.recv(4096)
        if not data:
            return False
        if parser.feed(data):
            return True
    return False
