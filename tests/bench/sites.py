"""A bundle whose container waits for a word, which the bench gives when its clock is ready."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

from tests.harness import bundles, waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

WAIT = "until read word < /tmp/c/go; do :; done"
"""In a script: waits for `let_go`. A process that holds the fifo open after its word lets
the next `read` open it and find an end of file."""

MEMORY = "/dev/shm"
"""A file system in memory, for logs whose disk is not to be measured."""

LOOK_S = 0.0002
"""Between two looks at what has no event."""

STOPPED_S = 30.0
"""More than forkshim takes to stop a container that does not listen: 10 s, and 5 s to drain."""


def make_site(
    directory: Path,
    rootfs: Path,
    block: bytes,
    script: str,
    *,
    terminal: bool = False,
    annotations: Mapping[str, str] | None = None,
) -> Path:
    """Make a bundle whose container finds a fifo `go` and the file `block` in /tmp/c."""
    shared = directory / "shared"
    shared.mkdir()
    os.mkfifo(shared / "go")
    (shared / "block").write_bytes(block)
    mount = {
        "destination": "/tmp/c",
        "type": "bind",
        "source": str(shared),
        "options": ["bind", "ro"],
    }
    document = bundles.config(rootfs, bundles.shell(script), mounts=[mount], terminal=terminal)
    document["annotations"] = {**(annotations or {})}
    return bundles.make_bundle(directory / "bundle", document)


def let_go(directory: Path, word: str = "go", *, limit_s: float = waiting.LIMIT_S) -> None:
    """Wait until the container waits for its word, and give it."""
    fd = _wait_opened(directory, limit_s)
    os.write(fd, f"{word}\n".encode())
    os.close(fd)


def wait_waiting(directory: Path) -> None:
    """Wait until the container waits for its word, and give none."""
    os.close(_wait_opened(directory, waiting.LIMIT_S))


def _wait_opened(directory: Path, limit_s: float) -> int:
    deadline_s = time.monotonic() + limit_s
    while (fd := _opened(directory / "shared/go")) is None:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{directory}: no container waits for its word")
        time.sleep(LOOK_S)
    return fd


def _opened(fifo: Path) -> int | None:
    try:
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


@contextlib.contextmanager
def running(command: Sequence[str | Path], **popen: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program and wait for its end; in a bad end it is asked to end, and then killed."""
    with subprocess.Popen(command, **popen) as process:
        try:
            yield process
            process.wait(waiting.LIMIT_S)
        except BaseException:
            process.terminate()  # forkshim stops its container
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOPPED_S)
            process.kill()
            raise


def arrival_s(path: Path, is_there: Callable[[Path], bool]) -> float:
    """Wait until `is_there(path)`; returns when it was seen, by time.perf_counter().

    That is before `wait_path` has ended: to close an inotify descriptor takes the kernel 10 ms.
    """
    seen_s = 0.0

    def look(path: Path) -> bool:
        nonlocal seen_s
        seen = is_there(path)
        seen_s = time.perf_counter()
        return seen

    waiting.wait_path(path, look)
    return seen_s


def has_content(path: Path) -> bool:
    """Say whether a file is there and not empty."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False
