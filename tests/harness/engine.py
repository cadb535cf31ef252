"""The 2016 daemon's side of the state-directory protocol, as small as it can be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.harness import runtime_calls, shim_log, waiting
from tests.harness.runtime_calls import RUNTIME, RuntimeCallError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

BIN = Path(os.environ.get("FORKSHIM_TEST_BIN", Path(sys.executable).parent))
SHIM = BIN / "forkshim-shim"
FORKSHIM = BIN / "forkshim"
_ENDS_S = 10.0


class Engine:
    """One state directory and the shim in it. Owns the shim, its fifos, its container.

    As the daemon did: mkdir, process.json, fifos, `exit` opened before the shim starts, the shim in
    a process group of its own on /dev/null.
    """

    def __init__(
        self,
        state_dir: Path,
        container_id: str,
        bundle: Path,
        *,
        runtime: str = RUNTIME,
        **process: Any,
    ) -> None:
        """Make the directory. `process` are fields of process.json; streams default to fifos."""
        self.dir = state_dir
        self.id = container_id
        self.bundle = bundle
        self.runtime = runtime
        self.dir.mkdir(parents=True)
        self.process: dict[str, Any] = {
            "containerdStdin": "",
            "containerdStdout": "stdout",
            "containerdStderr": "stderr",
            "runtimeArgs": None,
            **process,
        }
        for stream in ("stdin", "stdout", "stderr"):
            path = self.process["containerd" + stream.capitalize()]
            if path == stream:
                os.mkfifo(self.dir / stream)
        (self.dir / "process.json").write_text(json.dumps(self.process) + "\n")
        for name in ("exit", "control"):
            os.mkfifo(self.dir / name, 0o755)
        self._fds: dict[str, int] = {}
        self.exit_fd = self.open("exit", os.O_RDONLY | os.O_NONBLOCK)
        self.control_fd = self.open("control", os.O_RDWR | os.O_NONBLOCK)
        self.shim: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Engine:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave nothing behind, however the test went."""
        for name in list(self._fds):
            self.close(name)
        if self.shim is not None and self.shim.poll() is None:
            for pid in waiting.children_of(self.shim.pid):
                os.kill(pid, signal.SIGKILL)
            self.shim.kill()
            self.shim.wait()
        # A test that failed halfway may have left its container: the id is this test's own.
        if not self.process.get("exec"):
            runtime_calls.delete(self.id)

    def open(self, name: str, flags: int) -> int:
        """Open a file of the state directory; closed with the engine, or by `close`."""
        self._fds[name] = os.open(self.dir / name, flags | os.O_CLOEXEC)
        return self._fds[name]

    def close(self, name: str) -> None:
        """Close what `open` has opened."""
        os.close(self._fds.pop(name))

    def attach(self, *streams: str) -> list[int]:
        """Open output fifos for reading, as a client does; returns their descriptors."""
        return [self.open(stream, os.O_RDONLY | os.O_NONBLOCK) for stream in streams]

    def fd(self, name: str) -> int:
        """Return the descriptor of what `open` or `attach` has opened."""
        return self._fds[name]

    @property
    def attached(self) -> frozenset[str]:
        """The names that are open."""
        return frozenset(self._fds)

    @property
    def shim_pid(self) -> int:
        """The shim's pid, also its process group's."""
        assert self.shim is not None
        return self.shim.pid

    def open_when_waited_for(self, stream: str) -> int:
        """Open an output for reading, as a client that comes late: open(2) waits for the writer.

        In a thread: a shim that has ended has no writer for us, and open(2) has no limit.
        """
        client = threading.Thread(target=self.open, args=(stream, os.O_RDONLY), daemon=True)
        client.start()
        client.join(waiting.LIMIT_S)
        if client.is_alive():
            os.close(os.open(self.dir / stream, os.O_RDWR))  # a writer at last: lets it go
            client.join()
            raise TimeoutError(f"{stream}: no writer came; shim-log.json: {self.log()}")
        os.set_blocking(self._fds[stream], False)
        return self._fds[stream]

    def rewrite_process(self, **process: Any) -> None:
        """Change fields of process.json."""
        self.process.update(process)
        (self.dir / "process.json").write_text(json.dumps(self.process) + "\n")

    def launch(self, *, argv: Sequence[str] | None = None, shim: Path = SHIM, **popen: Any) -> int:
        """Start the shim; returns its pid."""
        self.shim = subprocess.Popen(
            [shim, *((self.id, str(self.bundle), self.runtime) if argv is None else argv)],
            cwd=self.dir,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **{"process_group": 0, **popen},
        )
        return self.shim.pid

    def created(self) -> int:
        """Wait until the container is created, and the shim knows; returns its pid.

        The pid file comes before the runtime's end, and the shim reads it only then: what is sent
        to it earlier is sent to a shim whose container does not exist yet.
        """
        assert self.shim is not None
        path = self.dir / "pid"
        waiting.wait_path(
            path, lambda p: self._has_content(p) or (self.dir / "exitStatus").exists()
        )
        waiting.wait_true(lambda: not self._has_runtime_to_reap())
        return int(path.read_text())

    def _has_runtime_to_reap(self) -> bool:
        """Say whether the create or exec is still a child of the shim; a zombie may be it.

        The container's process is not: a fork of crun's, it has crun's words until its own exec.
        """
        pid_file = self.dir / "pid"
        ours = int(pid_file.read_text())
        return any(
            waiting.state_of(pid) == "Z" or str(pid_file) in waiting.title_of(pid)
            for pid in waiting.children_of(self.shim_pid)
            if pid != ours
        )

    def start(self) -> None:
        """Run the runtime's start, as the daemon does.

        One that fails because its container was quicker has done its work: with short lives and
        a busy machine the shim may have deleted it all before runc has looked again.
        """
        try:
            runtime_calls.call("start", self.id)
        except RuntimeCallError as error:
            if not error.is_of_a_short_life:
                raise
            waiting.wait_path(self.dir / "exitStatus", Path.exists)

    def run(self, **launch: Any) -> int:
        """Launch, wait until it is created, start it; returns the container's pid."""
        self.launch(**launch)
        pid = self.created()
        if not self.process.get("exec"):
            self.start()
        return pid

    def control(self, text: str) -> None:
        """Write to the control fifo, in one write(2)."""
        os.write(self.control_fd, text.encode())

    def read_end(self, *streams: str) -> list[bytes]:
        """Read each attached output to its end."""
        return [waiting.read_to_end(self._fds[stream]) for stream in streams]

    def run_attached(self) -> list[int]:
        """Attach every output that is a fifo of ours, then `run`; returns their descriptors."""
        outputs = [name for name in ("stdout", "stderr") if (self.dir / name).exists()]
        attached = self.attach(*outputs)
        self.run()
        return attached

    def leftovers(self) -> list[str]:
        """Wait for the shim; return what it left, files, processes or the container."""
        own = {"process.json", "exit", "control", "shim-log.json", "exitStatus", "pid", "log.json"}
        own |= {"stdin", "stdout", "stderr"}
        found = [f"file {name}" for name in sorted(set(os.listdir(self.dir)) - own)]
        if self.shim is not None:
            self.wait_shim()
            with suppress(TimeoutError):  # what the kernel is killing needs a moment under load
                waiting.wait_true(lambda: not self._living(), limit_s=_ENDS_S)
            found += [f"process {pid}" for pid in sorted(self._living())]
        if not self.process.get("exec") and (state := self.runtime_state()) is not None:
            found.append(f"container {state['status']}")
        return found

    def _living(self) -> set[int]:
        assert self.shim is not None
        return {*waiting.living_orphans(), *waiting.living_in_group(self.shim.pid)}

    def wait_end(self) -> int:
        """Wait for the hang-up of `exit`; returns the number in `exitStatus`."""
        waiting.wait_hangup(self.exit_fd)
        return self.exit_status()

    def exit_status(self) -> int:
        """Return the number in `exitStatus`, which has no newline."""
        text = (self.dir / "exitStatus").read_text()
        assert text.isdecimal(), text
        return int(text)

    def wait_shim(self) -> int:
        """Wait for the shim itself; returns its exit status."""
        assert self.shim is not None
        return self.shim.wait(waiting.LIMIT_S)

    def log(self, level: str | None = None) -> list[str]:
        """Return the messages of shim-log.json."""
        return shim_log.messages(self.dir / "shim-log.json", level)

    def runtime_state(self) -> dict[str, Any] | None:
        """Return what the runtime says of the container; None if it knows none."""
        try:
            state: dict[str, Any] = json.loads(runtime_calls.call("state", self.id))
        except RuntimeCallError as error:
            if not error.is_of_no_container:
                raise
            return None
        return state

    @staticmethod
    def _has_content(path: Path) -> bool:
        try:
            return path.stat().st_size > 0
        except FileNotFoundError:
            return False
