"""The same faults under the stock runtime-v2 shim and under ours: the README's table of them.

python -m tests.faults.contrast_v2 [--execs N] [FAULT...]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.engines.containerd import OURS, STOCK, Containerd, containerd
from tests.engines.image import IMAGE
from tests.engines.shim_client import ShimClient
from tests.engines.test_ctr import STAYS, detached
from tests.engines.test_faults import BEGUN, HANGS, write_runtime
from tests.harness import bundles, leaks, waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GROUP = ("--annotation", "io.containerd.runc.v2.group=g")
TOTAL_BYTES = 1 << 30
KILLS = 500
PODS = 20
ENDS = 5
HANGS_S = 10
_WAIT_S = 5.0
_LOOK_S = 0.001
_PROCESS = {
    "args": ["true"],
    "cwd": "/",
    "env": ["PATH=/bin"],
    "user": {"uid": 0, "gid": 0},
    "noNewPrivileges": True,
}


def workers(cd: Containerd, runtime: str) -> str:
    """The copier of stdout is killed again and again while 1 GiB goes to `ctr run`."""
    if runtime == STOCK:
        return "no workers: the shim copies"
    script = f"dd if=/dev/zero bs=1M count={TOTAL_BYTES >> 20} 2>/dev/null"
    words = cd.words("run", "--rm", "--runtime", runtime, IMAGE, "a", "sh", "-c", script)
    received, killed, last = 0, 0, 0
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        while chunk := os.read(client.stdout.fileno(), 1 << 20):
            received += len(chunk)
            if received * KILLS // TOTAL_BYTES > killed and (pid := _worker(cd, last)):
                os.kill(pid, signal.SIGKILL)
                killed, last = killed + 1, pid
    return f"killed {killed} times in 1 GiB: {TOTAL_BYTES - received} bytes lost"


def _worker(cd: Containerd, other_than: int) -> int:
    """Return the pid of the worker for stdout that is not `other_than`; 0 if there is none."""
    found = (pid for shim in cd.shims() for pid in waiting.children_of(shim.pid))
    stdout = (pid for pid in found if waiting.title_of(pid) == "forkshim: a [stdout]")
    return next((pid for pid in stdout if pid != other_than), 0)


def shim(cd: Containerd, runtime: str) -> str:
    """The shim is killed once."""
    cd.run(runtime, "a", *STAYS, options=["-d"])
    init = cd.sandbox.pid_outside(cd.tasks()["a"].pid)
    (process,) = cd.shims()
    os.kill(process.pid, signal.SIGKILL)
    began_s = time.monotonic()
    while waiting.is_alive(init) and time.monotonic() - began_s < _WAIT_S:
        time.sleep(_LOOK_S)
    if waiting.is_alive(init):
        said = f"the container is {cd.status('a')} {_WAIT_S:.0f} s later"
        cd.ctr("task", "kill", "-s", "TERM", "a")
        cd.wait_status("a", "STOPPED")
        said += f", its status {cd.remove_task('a')}"
    else:
        said = "containerd kills the container"
        waiting.wait_true(lambda: not cd.tasks())
        for left in cd.sandbox.path("/run/containerd/s").iterdir():
            left.unlink()
    cd.ctr("container", "rm", "a", check=False)
    return said


def daemon(cd: Containerd, runtime: str) -> str:
    """The daemon is killed beside 20 containers, 5 of which end before it is back."""
    with ExitStack() as stack:
        for number in range(PODS):
            stack.enter_context(detached(cd, runtime, f"c{number}", *STAYS))
        tasks = cd.tasks()
        ends = [cd.sandbox.pid_outside(tasks[f"c{number}"].pid) for number in range(ENDS)]
        cd.end(signal.SIGKILL)
        for pid in ends:
            os.kill(pid, signal.SIGTERM)
            waiting.wait_process(pid)
        cd.start()
        waiting.wait_true(
            lambda: [each.status for each in cd.tasks().values()].count("STOPPED") == ENDS
        )
        running = [each.status for each in cd.tasks().values()].count("RUNNING")
        statuses = {cd.remove_task(f"c{number}") for number in range(ENDS)}
    return f"{running} run, {ENDS} have ended, with status {statuses}"


def hang(cd: Containerd, runtime: str) -> str:
    """A container of the pod is asked for its state while `runc create` of another one hangs."""
    begun = cd.directory / BEGUN
    begun.unlink(missing_ok=True)
    with detached(cd, runtime, "a", *STAYS, options=GROUP):
        words = cd.words("run", "-d", "--runtime", runtime, *GROUP, IMAGE, HANGS, *STAYS)
        with subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
            waiting.wait_path(begun, Path.exists)
            with _client(cd, "a") as asked:
                began_s = time.monotonic()
                asked.ask("State", {"id": "a"})
                took_ms = (time.monotonic() - began_s) * 1e3
            client.wait(waiting.LIMIT_S)
        cd.ctr("container", "rm", HANGS, check=False)
    return f"its State comes after {took_ms:.1f} ms"


def execs(cd: Containerd, runtime: str, count: int) -> str:
    """Processes are executed in one container, one after another."""
    with detached(cd, runtime, "a", *STAYS), _client(cd, "a") as client:
        (process,) = cd.shims()
        warm_up = min(500, count // 4)
        before, began_s = _size(process.pid), time.monotonic()
        for number in range(count):
            if number == warm_up:
                before = _size(process.pid)
            ids = {"id": "a", "exec_id": f"e{number}"}
            spec = {"type_url": "x/Process", "value": json.dumps(_PROCESS).encode()}
            client.ask("Exec", {**ids, "spec": spec})
            wait = client.send("Wait", ids)
            client.ask("Start", ids)
            client.answer(wait)
            client.ask("Delete", ids)
        took_ms = (time.monotonic() - began_s) * 1e3 / count
        after = _size(process.pid)
    grown = [now - then for then, now in zip(before, after, strict=True)]
    rest = count - warm_up
    return (
        f"{count} execs of {took_ms:.0f} ms; in the last {rest} RSS {grown[0]:+} KiB (of "
        f"{before[0]}), descriptors {grown[1]:+}, zombies {after[2]}"
    )


def _size(pid: int) -> tuple[int, int, int]:
    """Return RSS in KiB, the number of descriptors, that of children that have ended."""
    status = Path(f"/proc/{pid}/status").read_text()
    (rss,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    dead = [child for child in waiting.children_of(pid) if not waiting.is_alive(child)]
    return int(rss), len(os.listdir(f"/proc/{pid}/fd")), len(dead)


@contextmanager
def _client(cd: Containerd, name: str) -> Iterator[ShimClient]:
    address = (cd.bundle(name) / "address").read_text().removeprefix("unix://")
    with ShimClient(cd.sandbox.path(address)) as client:
        yield client


def main() -> None:
    """Print a line for each fault and shim."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.contrast_v2")
    parser.add_argument("faults", nargs="*", metavar="FAULT")
    parser.add_argument("--execs", type=int, default=10_000)
    words = parser.parse_args()
    faults: dict[str, Callable[[Containerd, str], str]] = {
        "workers": workers,
        "shim": shim,
        "containerd": daemon,
        "hang": hang,
        "execs": lambda cd, runtime: execs(cd, runtime, words.execs),
    }
    leaks.become_subreaper()
    with tempfile.TemporaryDirectory(prefix="cd-") as name:
        rootfs = bundles.make_rootfs(Path(name))
        write_runtime(Path(name), HANGS_S)
        first = f"{name}:{Path(sys.executable).parent}"
        with containerd(Path(name), rootfs, first_on_path=first) as cd:
            for fault in words.faults or faults:
                for runtime in (STOCK, OURS):
                    print(f"{fault}, {runtime}: {faults[fault](cd, runtime)}", flush=True)
                    cd.wait_clean()


if __name__ == "__main__":
    main()
