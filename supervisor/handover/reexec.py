"""Executing the installed version in this process: a dry run in a child, then execve(2).

execve(2) keeps the pid, the children, the subreaper flag, and blocked and pending signals. All else
travels in an `FdStore`. A program that has been executed cannot give the process back. So a child
executes it first, on copies of the same descriptors, up to where it would begin to serve. Then the
child copies a byte with a worker. Only after a child that has succeeded this process follows.
"""

from __future__ import annotations

import os

from supervisor.handover.own_command import HANDOVER_VARIABLE
from supervisor.io.stream import Stream
from supervisor.io.stream_set import StreamSet
from supervisor.linux import fds, signals
from supervisor.linux.errors import ShimError, reason
from supervisor.linux.event_loop import Loop
from supervisor.linux.exit_status import Exited
from supervisor.linux.reaper import Reaper
from supervisor.state.fd_store import FdReader, FdStore, FdStoreError, FdWriter
from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

    from supervisor.linux.exit_status import Termination
    from supervisor.oci.invoke import RuntimeInvoker
    from supervisor.state.log import Log

READY = b"ready\n"
_REHEARSE, _BECOME = "rehearse", "become"
_LONGEST_REASON = 400


@dataclass(frozen=True, slots=True)
class Arrival:
    """What this program was given by the program before it in this process.

    Attributes:
        contents: The host's document. Owned by the caller of `arrive`.
        containers: The document of each container, in the host's order. Owned by the caller.
        lock: The lock of `Claim`; closed if the front end has none.
        is_rehearsal: This process is the child of a dry run. All descriptors are copies.
    """

    contents: FdReader
    containers: list[FdReader]
    lock: fds.Fd
    is_rehearsal: bool


def arrive() -> Arrival | None:
    """Return what `reexec` or `dry_run` has passed; None if this program was not executed by them.

    Raises:
        FdStoreError: The store or the variable cannot be used.
    """
    text = os.environ.pop(HANDOVER_VARIABLE, None)
    if text is None:
        return None
    try:
        word, *numbers = text.split()
        front, back, lock_fd = map(int, numbers)
        is_rehearsal = {_REHEARSE: True, _BECOME: False}[word]
        if lock_fd >= 0:
            os.set_inheritable(lock_fd, False)
    except (KeyError, ValueError, OSError):
        raise FdStoreError(f"{HANDOVER_VARIABLE}: not written by a supervisor: {text!r}") from None
    lock = fds.Fd(lock_fd)
    try:
        store = FdStore(ends=(front, back))
        try:
            contents = store.look()
        finally:
            store.close()
        try:
            _check(contents.document, os.getppid() if is_rehearsal else os.getpid())
            containers = _containers(contents)
        except FdStoreError:
            contents.close()
            raise
    except FdStoreError:
        lock.close()
        raise
    return Arrival(contents, containers, lock, is_rehearsal)


def document(stores: list[dict[str, Any]], front_end: Any) -> dict[str, Any]:  # noqa: ANN401 -- JSON
    """Return the document of a host.

    Args:
        stores: `ends` and `nonce` of the fd store with the document of each container.
        front_end: What the front end needs after the reload, as JSON.
    """
    return {"pid": os.getpid(), "containers": stores, "front_end": front_end}


def _check(document: dict[str, Any], pid: int) -> None:
    if not document.keys() >= {"front_end"} or not document.get("containers"):
        raise FdStoreError("handover: parts of the document are missing")
    if document.get("pid") != pid:
        raise FdStoreError(f"{HANDOVER_VARIABLE}: meant for another process")


def _containers(contents: FdReader) -> list[FdReader]:
    """Read the document of each container.

    Raises:
        FdStoreError: One cannot be read. Nothing stays open.
    """
    found: list[FdReader] = []
    try:
        found.extend(_container(contents, each) for each in contents.document["containers"])
    except (FdStoreError, KeyError, TypeError, ValueError) as error:
        for reader in found:
            reader.close()
        if isinstance(error, FdStoreError):
            raise
        raise FdStoreError(f"handover: {type(error).__name__}: {error}") from error
    return found


def _container(contents: FdReader, packed: dict[str, Any]) -> FdReader:
    front, back = (contents.take(end).take() for end in packed["ends"])
    store = FdStore(ends=(front, back), nonce=packed["nonce"])
    try:
        found = store.look()
    finally:
        store.close()
    if not found.document.keys() >= {"origin", "request", "container"}:
        found.close()
        raise FdStoreError("handover: parts of the document are missing")
    return found


def dry_run(
    calls: RuntimeInvoker,
    command: Sequence[str],
    environment: Mapping[str, str],
    document: dict[str, Any],
    fd_writer: FdWriter,
    on_end: Callable[[str], None],
) -> None:
    """Execute the program in a child. `on_end` gets "", or one line: why the dry run has failed.

    Raises:
        ShimError: The child cannot be started.
    """
    store = FdStore()

    def judge(termination: Termination, output: bytes) -> None:
        store.close()
        # The last line of the output is the error, or the last line of a traceback.
        lines = output.decode(errors="replace").strip().splitlines()
        if termination == Exited(0) and output.endswith(READY):
            on_end("")
        else:
            detail = f": {lines[-1][:_LONGEST_REASON]}" if lines else ""
            on_end(f"{termination}{detail}")

    try:
        store.put(document, fd_writer)
        calls.capture(
            command,
            judge,
            with_stderr=True,
            program=command[0],
            keep=store.fds,
            environment={**_for_us(environment), HANDOVER_VARIABLE: _text(_REHEARSE, store, -1)},
        )
    except ShimError:
        store.close()
        raise


def try_a_worker(log: Log, title: str) -> None:
    """Fork a worker, which copies a byte between two new pipes, and reap the worker.

    Raises:
        FdStoreError: The worker has died, or has not copied the byte.
    """
    loop, reaper, router = Loop(), Reaper(), signals.SignalRouter(has_job_control=False)

    def reap(_signum: int) -> None:
        reaper.reap()

    loop.watch(router.fileno(), lambda: router.dispatch(reap))
    with open(os.devnull, "r+b") as null:
        stream_set = StreamSet(
            loop, reaper, log, title=title, null_fd=null.fileno(), on_stream_over=lambda: None
        )
        source, container_side = fds.pipe()
        client_side, sink = fds.pipe()
        stream = Stream("rehearsal", source, sink)
        stream_set.add(stream)
        os.write(container_side.fileno(), b"!")
        container_side.close()
        stream_set.start()
        loop.run_until(lambda: stream.is_closed or stream_set.deaths(stream) > 0)
        if stream_set.deaths(stream) or os.read(client_side.fileno(), 2) != b"!":
            raise FdStoreError("a worker does not work")


def end_rehearsal() -> NoReturn:
    """Tell the parent that the dry run has succeeded, and end this process."""
    os.write(1, READY)
    os._exit(0)


def reexec(
    command: Sequence[str],
    environment: Mapping[str, str],
    document: dict[str, Any],
    fd_writer: FdWriter,
    lock_fd: int,
) -> ShimError:
    """Execute the program in this process. Returns only after a failure: the reason.

    After a failure every descriptor is as before. The caller holds every signal, see
    `signals.block_all`, and releases them after a failure.
    """
    try:
        store = FdStore()
    except FdStoreError as error:
        return error
    kept = [*store.fds, *((lock_fd,) if lock_fd >= 0 else ())]
    try:
        store.put(document, fd_writer)
        variable = {HANDOVER_VARIABLE: _text(_BECOME, store, lock_fd)}
        for fd in kept:
            os.set_inheritable(fd, True)
        os.execve(command[0], [*command], {**environment, **variable})
    except ShimError as error:
        failed = error
    except OSError as error:
        failed = ShimError(f"exec {command[0]}: {reason(error)}")
    for fd in kept:
        os.set_inheritable(fd, False)
    store.close()
    return failed


def _for_us(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the program reads, and that `RuntimeInvoker` removes."""
    return {name: environment[name] for name in ("NOTIFY_SOCKET",) if name in environment}


def _text(word: str, store: FdStore, lock_fd: int) -> str:
    front, back = store.fds
    return f"{word} {front} {back} {lock_fd}"
