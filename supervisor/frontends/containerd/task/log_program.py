"""A program of the client that logs the outputs of one process: `binary://`, `binary-v2://`.

It reads stdout at descriptor 3 and stderr at 4, and closes 5 or writes a byte there when it is
ready. Both are fifos that the workers write to, as they write to those of any other client. They
outlive the program: if it dies, another run goes on with what the fifos hold.

Source: docs/runtime-v2.md of containerd, "Logging"; pkg/process/io.go for the variables, the end by
SIGTERM, and its time limit.
"""

from __future__ import annotations

import os
import shutil
import signal
import time

from supervisor.linux import fds, procfs, spawn
from supervisor.linux.errors import reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from supervisor.container.host import Host
    from supervisor.frontends.containerd.log_uri import LoggerTarget
    from supervisor.linux.exit_status import Termination

_NAMES = ("stdout", "stderr")
READY_LIMIT_S = 30.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.05, 5.0
READS_REST_S = 2.0
"""Time to read up to the end of file before SIGTERM. The stock shim gives none."""
TERM_LIMIT_S = 12.0


class LogProgram:
    """Owns the fifos and the running program, from `start` to the end of `stop`. Borrows the host.

    Many attributes: the fifos, the process, and the three waits for it.
    """

    def __init__(
        self,
        host: Host,
        target: LoggerTarget,
        *,
        bundle: str,
        directory: str,
        container_id: str,
        namespace: str,
    ) -> None:
        """Nothing happens before `start`.

        Args:
            host: As everywhere.
            target: The program.
            bundle: The program's working directory.
            directory: For the fifos; made by `start`, removed at the end.
            container_id: For the program's environment. An exec'd process has its own id there.
            namespace: containerd's.
        """
        self._host = host
        self._target = target
        self._bundle = bundle
        self._directory = directory
        self._environment = {"CONTAINER_ID": container_id, "CONTAINER_NAMESPACE": namespace}
        self._readers: list[fds.Fd] = []
        self._writers: list[fds.Fd] = []
        self._pid = 0
        self._began_s = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._is_over = False
        self._ready = fds.Fd(-1)
        self._on_ready: Callable[[str], None] | None = None
        self._on_stopped: Callable[[], None] | None = None
        self._again = host.loop.timer(self._run_again)
        self._limit = host.loop.timer(self._ready_limit_is_over)
        self._end_limit = host.loop.timer(self._terminate)

    @property
    def is_settled(self) -> bool:
        """Whether it runs, and is neither being started nor stopped."""
        return self._pid > 0 and self._on_ready is None and self._on_stopped is None

    # The start.

    def start(self, on_ready: Callable[[str], None]) -> None:
        """Run the program. `on_ready` gets "", or why it cannot be used; then nothing is left."""
        self._on_ready = on_ready
        try:
            shutil.rmtree(self._directory, ignore_errors=True)  # a killed shim may have left it
            os.makedirs(self._directory, 0o700)
            for name in _NAMES:
                os.mkfifo(os.path.join(self._directory, name), 0o600)
            self._open()
            self._run()
        except OSError as error:
            self._finish_start(f"{error.filename or self._target.program}: {reason(error)}")
            return
        self._limit.start(READY_LIMIT_S)

    def _open(self) -> None:
        """Open both ends of each fifo: the program reads the end only when `stop` closes ours."""
        for name in _NAMES:
            path = os.path.join(self._directory, name)
            reader = fds.Fd(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            self._readers.append(reader)
            self._writers.append(fds.Fd(os.open(path, os.O_WRONLY | os.O_CLOEXEC)))
            os.set_blocking(reader.fileno(), True)

    def _run(self) -> None:
        null_fd = self._host.null.fileno()
        program = self._target.program
        self._ready, said = fds.pipe(4096)
        try:
            self._pid = spawn.exec_program(
                program,
                [program, *self._target.arguments],
                cwd=self._bundle,
                stdio=(null_fd, null_fd, null_fd),
                environment=self._environment,
                from_three=(*(each.fileno() for each in self._readers), said.fileno()),
            )
        except OSError:
            self._ready.close()
            raise
        finally:
            said.close()
        self._began_s = time.monotonic()
        os.set_blocking(self._ready.fileno(), False)
        self._host.reaper.expect(self._pid, self._on_exit)
        self._host.loop.watch(self._ready.fileno(), self._on_said)

    def _on_said(self) -> None:
        is_byte = bool(os.read(self._ready.fileno(), 1))
        self._forget_ready()
        if is_byte or not self._target.must_say_ready:
            self._finish_start("")
        else:
            self._finish_start(f"{self._target.program}: closed descriptor 5 without a byte")

    def _ready_limit_is_over(self) -> None:
        self._finish_start(f"{self._target.program}: not ready within {READY_LIMIT_S:.0f} s")

    def _finish_start(self, error: str) -> None:
        self._limit.cancel()
        on_ready, self._on_ready = self._on_ready, None
        if on_ready is None:
            return  # a later run
        if not error:
            on_ready("")
            return

        def told() -> None:
            on_ready(f"log program {error}")

        self._on_stopped = told
        self._kill_or_end(signal.SIGKILL)

    def _forget_ready(self) -> None:
        if self._ready.is_open:
            self._host.loop.forget(self._ready.fileno())
            self._ready.close()

    # The life.

    def _on_exit(self, termination: Termination) -> None:
        self._pid = 0
        self._forget_ready()
        if self._on_ready is not None and self._target.must_say_ready:
            self._finish_start(f"{self._target.program}: {termination}")
            return
        self._finish_start("")
        if self._on_stopped is not None:
            self._end()
        if self._is_over:
            return
        if time.monotonic() - self._began_s > _LAST_PAUSE_S:
            self._pause_s = _FIRST_PAUSE_S
        self._host.log.warning(
            f"log program {self._target.program}: {termination}, "
            f"started again in {self._pause_s:g} s"
        )
        self._again.start(self._pause_s)
        self._pause_s = min(2 * self._pause_s, _LAST_PAUSE_S)

    def _run_again(self) -> None:
        try:
            self._run()
        except OSError as error:
            self._host.log.warning(f"log program {self._target.program}: {reason(error)}")
            self._again.start(_LAST_PAUSE_S)

    # The end.

    def stop(self, on_stopped: Callable[[], None]) -> None:
        """End the program behind the last byte. `on_stopped` follows when nothing is left."""
        if self._is_over:
            on_stopped()
            return
        self._on_stopped = on_stopped
        for each in self._writers:
            each.close()
        if self._again.is_running:  # a last run for what the fifos hold
            self._again.cancel()
            self._run_again()
            self._again.cancel()
        if self._pid:
            self._end_limit.start(READS_REST_S)
        else:
            self._end()

    def _terminate(self) -> None:
        self._kill_or_end(signal.SIGTERM)
        self._end_limit = self._host.loop.timer(lambda: self._kill_or_end(signal.SIGKILL))
        self._end_limit.start(TERM_LIMIT_S)

    def _kill_or_end(self, signum: int) -> None:
        if self._pid:
            os.kill(self._pid, signum)  # unreaped, so the pid is its own
        else:
            self._end()

    def _end(self) -> None:
        self._is_over = True
        self._end_limit.cancel()
        self._close()
        shutil.rmtree(self._directory, ignore_errors=True)
        on_stopped, self._on_stopped = self._on_stopped, None
        if on_stopped is not None:
            on_stopped()

    def _close(self) -> None:
        for each in (*self._readers, *self._writers):
            each.close()

    # A reload.

    def snapshot(self) -> dict[str, Any]:
        """Return what `restore` needs, in values that JSON has; only while `is_settled`."""
        return {"pid": self._pid}

    def restore(self, packed: Mapping[str, Any]) -> bool:
        """Go on with the program of a reloaded shim, or with another run after a kill -9.

        The workers and the fd store keep the fifos open meanwhile. Returns False if the fifos
        cannot be opened: then no program logs.
        """
        try:
            self._open()
        except OSError as error:
            self._host.log.warning(f"log program: {error.filename}: {reason(error)}")
            self._close()
            return False
        pid = packed["pid"]

        def begin() -> None:
            if pid in procfs.children():
                self._pid = pid
                self._host.reaper.expect(pid, self._on_exit)
            else:
                self._run_again()

        # In the loop: a rehearsal never gets there.
        self._host.loop.timer(begin).start(0.0)
        return True
