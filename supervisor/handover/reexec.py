"""Taking up another version in place: rehearse it in a child, then become it by execve(2).

execve keeps the pid, the children, the subreaper flag, blocked and pending signals; all else
travels as a `FdStore`. There is no way back from it, so a child does it first: the same
program on copies of the same descriptors, up to where it would begin to serve, and then a piece of
supervising of its own. Only a child that ends well is followed.
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
    """What this program was given by the one that it follows.

    Attributes:
        contents: The host's document. Owned by the caller of `arrive`.
        containers: The document of each container, in the host's order. Owned by the caller.
        lock: As `Claim` has it; not open for a state directory without one.
        is_rehearsal: Everything is a copy, and nothing may be done with it.
    """

    contents: FdReader
    containers: list[FdReader]
    lock: fds.Fd
    is_rehearsal: bool


def arrive() -> Arrival | None:
    """Return what came with an exec of this program by `reexec` or `dry_run`; None without one.

    Raises:
        FdStoreError: It cannot be used.
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
        raise FdStoreError(f"{HANDOVER_VARIABLE}: not ours: {text!r}") from None
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
    """Have a child do a dry run; `on_end` gets "" or, in one line, why it must not be done.

    Raises:
        ShimError: It cannot even be tried.
    """
    store = FdStore()

    def judge(termination: Termination, output: bytes) -> None:
        store.close()
        # The last line is the error, or that of its traceback.
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
    """Fork a worker, see it copy and end, and reap it, with descriptors of its own.

    Raises:
        FdStoreError: It does not work.
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
    """Tell the parent that the dry run went well."""
    os.write(1, READY)
    os._exit(0)


def reexec(
    command: Sequence[str],
    environment: Mapping[str, str],
    document: dict[str, Any],
    fd_writer: FdWriter,
    lock_fd: int,
) -> ShimError:
    """Become the program; returns only if that failed, with the reason, and all is as before.

    Every signal has to be held, see `signals.hold_all`; the caller releases them.
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
    """Return the variables that the program reads and a runtime does not get."""
    return {name: environment[name] for name in ("NOTIFY_SOCKET",) if name in environment}


def _text(word: str, store: FdStore, lock_fd: int) -> str:
    front, back = store.fds
    return f"{word} {front} {back} {lock_fd}"
