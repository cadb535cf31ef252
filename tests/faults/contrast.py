"""What the same faults do to others: a copier that reads and writes, and conmon.

python -m tests.faults.contrast
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from tests.bench import peers, sites
from tests.harness import bundles, leaks, waiting

TOTAL_BYTES = 1 << 30
KILLS = 500
_BLOCK = os.urandom(1 << 20)
_WAIT_S = 5.0


def copier() -> str:
    """`cat` from pipe to pipe, killed and started again on the same two descriptors."""
    source_rfd, source_wfd = os.pipe()
    sink_rfd, sink_wfd = os.pipe()
    writer = threading.Thread(target=_write_all, args=(source_wfd,))
    writer.start()
    chosen = random.Random(20161109)
    received = kills = next_kill = 0
    process = subprocess.Popen(["cat"], stdin=source_rfd, stdout=sink_wfd)
    while True:
        _wait_for_either(sink_rfd, process)
        if not waiting.is_readable(sink_rfd):
            if process.poll() == 0:
                break
            continue  # the one that was killed is seen to have ended
        received += len(os.read(sink_rfd, 1 << 16))
        if kills < KILLS and received >= next_kill:
            process.kill()
            process.wait()
            kills += 1
            next_kill = received + chosen.randrange(2 * TOTAL_BYTES // KILLS // 2)
            process = subprocess.Popen(["cat"], stdin=source_rfd, stdout=sink_wfd)
    writer.join()
    for fd in (source_rfd, sink_rfd, sink_wfd):
        os.close(fd)
    return f"cat, killed {kills} times in 1 GiB: {TOTAL_BYTES - received} bytes lost"


def _wait_for_either(rfd: int, process: subprocess.Popen[bytes]) -> None:
    """Wait for something to read, or for its end: as we have the pipe, too, that tells nothing."""
    pidfd = os.pidfd_open(process.pid)
    try:
        poller = select.poll()
        for fd in (rfd, pidfd):
            poller.register(fd, select.POLLIN)
        assert poller.poll(waiting.LIMIT_S * 1000)
    finally:
        os.close(pidfd)


def _write_all(fd: int) -> None:
    for _ in range(TOTAL_BYTES // len(_BLOCK)):
        rest = memoryview(_BLOCK)
        while rest:
            rest = rest[os.write(fd, rest) :]
    os.close(fd)


def conmon(rootfs: Path) -> str:
    """The monitor is killed once while the container writes."""
    script = "read go < /tmp/c/go; while cat /tmp/c/block; do :; done"
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        bundle = sites.make_site(directory, rootfs, b"x" * 99 + b"\n", script)
        with peers.conmon(directory, bundle, f"k8s-file:{directory / 'log'}") as monitor:
            pid = int((directory / "pid").read_text())
            sites.let_go(directory)
            waiting.wait_path(directory / "log", lambda path: path.stat().st_size > 1 << 16)
            # conmon has forked: the one that supervises is the container's parent.
            os.kill(_parent(pid), signal.SIGKILL)
            monitor.wait()
            began_s = time.monotonic()
            while waiting.is_alive(pid) and time.monotonic() - began_s < _WAIT_S:
                os.sched_yield()
            lives = "still runs" if waiting.is_alive(pid) else "is dead: its writer got SIGPIPE"
            told = os.listdir(directory / "exits") or "no exit status anywhere"
            return f"conmon, killed once: the container {lives}; {told}"


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


if __name__ == "__main__":
    leaks.become_subreaper()
    print(copier())
    with tempfile.TemporaryDirectory() as made:
        print(conmon(bundles.make_rootfs(Path(made))))
