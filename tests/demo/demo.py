"""Show forkshim at work: `make demo`.

Makes a small bundle, has forkshim run it, shows the processes, sends SIGTERM, and checks that
the container's last words and its exit status come through. Ends with status 0 only if they do.
Leaves nothing behind, not even when interrupted.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from types import FrameType

FORKSHIM = Path(sys.executable).with_name("forkshim")
CONTAINER_ID = f"forkshim-demo-{os.getpid()}"
EXIT_STATUS = 7
PATIENCE_S = 30.0  # for one step; a machine under load needs a second

CONTAINER_PROGRAM = f"""\
#!/bin/sh
trap 'echo "demo: got TERM, finishing"; echo "demo: bye"; exit {EXIT_STATUS}' TERM
echo "demo: started"
n=0
while :; do
    n=$((n + 1))
    echo "demo: line $n"
    [ $((n % 3)) -ne 0 ] || echo "demo: $n lines so far, says stderr" >&2
    sleep 0.5 &
    wait $!  # a trap waits for a program in the foreground, but interrupts this
done
"""


class BrokenPromiseError(Exception):
    """Something did not go as this demo says it goes."""


def main() -> int:
    """Run the demo and clean up after it, however it ends."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _exit_by_signal)
    with tempfile.TemporaryDirectory(prefix="forkshim-demo-") as directory:
        try:
            with Demo(Path(directory)) as demo:
                demo.run()
        except (BrokenPromiseError, FileNotFoundError) as error:
            say("The demo FAILED", str(error))
            return 1
        except KeyboardInterrupt:
            say("Interrupted", "The container has been stopped and deleted.")
            return 128 + signal.SIGINT
    say(
        "As promised",
        "Each line came through on its own stream, in order, up to the last words; the exit\n"
        "status of the container became the supervisor's; no process and no container is left.",
    )
    return 0


def say(heading: str, text: str) -> None:
    """Print a section's heading and its explanation."""
    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}== {heading} =={plain}\n{text}\n", flush=True)


class Demo:
    """One run. A context manager: on leaving it no process and no container is left."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._bundle = directory / "bundle"
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._processes: list[int] = []
        self._lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._unfinished = {"stdout": b"", "stderr": b""}
        self._streams = selectors.DefaultSelector()
        self._environ = os.environ.copy()
        if os.geteuid() != 0:
            # Where a rootless runc keeps its state. A login sets it; sudo, su and cron do not.
            self._environ.setdefault("XDG_RUNTIME_DIR", str(directory))

    def __enter__(self) -> Demo:
        """Start nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop what is still running, deaf to a second Ctrl-C."""
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        if self._supervisor is not None:
            self._stop(self._supervisor)
        self._streams.close()

    def run(self) -> None:
        """Go through the acts one by one."""
        self._make_bundle()
        supervisor = self._start()
        self._show_processes(supervisor)
        self._read_until("stderr", "says stderr")
        self._terminate(supervisor)
        self._judge(supervisor)

    def _make_bundle(self) -> None:
        say(
            "1. A bundle",
            "What an OCI runtime runs: a directory with a root file system (here: busybox and a\n"
            f"little script) and a config.json. This one is {self._bundle}",
        )
        rootfs = self._bundle / "rootfs"
        for name in ("bin", "dev", "proc", "sys", "tmp"):
            (rootfs / name).mkdir(parents=True)
        busybox = shutil.which("busybox", path=f"{os.environ['PATH']}:/bin:/usr/bin")
        if busybox is None:
            raise BrokenPromiseError("busybox is missing: run tests/setup/packages as root")
        shutil.copy(busybox, rootfs / "bin/busybox")
        for applet in _output_of(busybox, "--list").split():
            if applet != "busybox":
                (rootfs / "bin" / applet).symlink_to("busybox")
        (rootfs / "demo").write_text(CONTAINER_PROGRAM)
        (rootfs / "demo").chmod(0o755)

        rootless = [] if os.geteuid() == 0 else ["--rootless"]
        _output_of("runc", "spec", "--bundle", str(self._bundle), *rootless)
        config_path = self._bundle / "config.json"
        config = json.loads(config_path.read_bytes())
        config["process"] |= {"terminal": False, "args": ["/bin/sh", "/demo"]}
        config["hostname"] = "demo"
        config_path.write_text(json.dumps(config, indent=2))
        print(textwrap.indent(CONTAINER_PROGRAM, "    "), end="")

    def _start(self) -> subprocess.Popen[bytes]:
        argv = [os.path.relpath(FORKSHIM), "run", "--root", str(self._directory / "state")]
        argv += ["--bundle", str(self._bundle), "--runtime", "runc", CONTAINER_ID]
        say(
            "2. Run it",
            f"$ {' '.join(argv)}\n\n"
            "forkshim has runc create and start the container; workers copy what it writes:",
        )
        # A session of its own: Ctrl-C reaches the demo alone, which then stops the container.
        supervisor = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environ,
            start_new_session=True,
        )
        self._supervisor = supervisor
        assert supervisor.stdout
        assert supervisor.stderr
        self._streams.register(supervisor.stdout, selectors.EVENT_READ, "stdout")
        self._streams.register(supervisor.stderr, selectors.EVENT_READ, "stderr")
        self._read_until("stdout", "demo: line 1")
        return supervisor

    def _show_processes(self, supervisor: subprocess.Popen[bytes]) -> None:
        say(
            "3. The processes",
            "The supervisor, its workers with the stream they copy in brackets, and the\n"
            "container's first process (/bin/sh /demo), which is the supervisor's child:",
        )
        self._processes = _tree(supervisor.pid)
        pids = ",".join(map(str, self._processes))
        processes = _output_of("ps", "--cols", "100", "--forest", "-o", "pid,ppid,args", "-p", pids)
        print(textwrap.indent(processes, "    "), flush=True)
        if "/demo" not in processes:
            raise BrokenPromiseError("the container is no descendant of the supervisor")

    def _terminate(self, supervisor: subprocess.Popen[bytes]) -> None:
        say(
            "4. Stop it",
            f"$ kill -TERM {supervisor.pid}\n\n"
            "The supervisor hands the signal to the container and waits for its last words:",
        )
        supervisor.terminate()
        self._read_until(None, None)
        try:
            supervisor.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise BrokenPromiseError("the supervisor closed its output but did not end") from None

    def _judge(self, supervisor: subprocess.Popen[bytes]) -> None:
        status = supervisor.returncode
        say(
            "5. How it ended",
            f"exit status {status}: "
            + ("the one the container chose" if status == EXIT_STATUS else "NOT the container's"),
        )
        if status != EXIT_STATUS:
            raise BrokenPromiseError(f"the container exits with {EXIT_STATUS}")
        lines = self._lines["stdout"]
        if lines[-2:] != ["demo: got TERM, finishing", "demo: bye"]:
            raise BrokenPromiseError("the last words of the container are missing")
        numbered = [f"demo: line {n}" for n in range(1, len(lines) - 2)]
        if lines[:-2] != ["demo: started", *numbered]:
            raise BrokenPromiseError("lines of stdout are missing, doubled or out of order")
        if left := [pid for pid in self._processes if _is_alive(pid)]:
            raise BrokenPromiseError(f"still running: {left}")
        if CONTAINER_ID in _output_of("runc", "list", "--quiet", env=self._environ).split():
            raise BrokenPromiseError("runc still knows the container")

    def _read_until(self, stream: str | None, text: str | None) -> None:
        """Copy lines to the terminal until one of `stream` holds `text`, or to the end of both.

        Raises:
            BrokenPromiseError: The output ended before, or nothing came for too long.
        """
        deadline = time.monotonic() + PATIENCE_S
        while self._streams.get_map():
            events = self._streams.select(deadline - time.monotonic())
            if not events and time.monotonic() >= deadline:
                raise BrokenPromiseError(f"waited {PATIENCE_S:.0f} s for {text or 'the end'}")
            found = False
            for key, _ in events:
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    self._streams.unregister(key.fileobj)
                for line in self._lines_of(key.data, chunk):
                    print(f"    {key.data} | {line}", flush=True)
                    found = found or (key.data == stream and text is not None and text in line)
            if found:
                return
        if text is not None:
            raise BrokenPromiseError(f"forkshim ended before the container wrote '{text}'")

    def _lines_of(self, stream: str, chunk: bytes) -> list[str]:
        """Take `chunk`, empty at end of file, and return and note the lines it ends."""
        *whole, rest = (self._unfinished[stream] + chunk).split(b"\n")
        if not chunk and rest:
            whole, rest = [rest], b""
        self._unfinished[stream] = rest
        lines = [line.decode(errors="replace") for line in whole]
        self._lines[stream] += lines
        return lines

    def _stop(self, supervisor: subprocess.Popen[bytes]) -> None:
        """Leave nothing running: first with the supervisor's help, then without."""
        if supervisor.poll() is None:
            supervisor.terminate()
            try:
                supervisor.communicate(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                for pid in _tree(supervisor.pid):
                    os.kill(pid, signal.SIGKILL)
                supervisor.wait()
        # --force: deleted already is fine, and usual.
        _output_of("runc", "delete", "--force", CONTAINER_ID, env=self._environ)


def _exit_by_signal(signum: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)


def _output_of(*argv: str, env: dict[str, str] | None = None) -> str:
    path = f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"  # Debian has runc in sbin
    environ = (env or dict(os.environ)) | {"PATH": path}
    try:
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as error:
        raise BrokenPromiseError(f"{' '.join(argv)}: {error.stderr.strip()}") from error
    return done.stdout


def _tree(root_pid: int) -> list[int]:
    """Return `root_pid` and its living descendants."""
    children: dict[int, list[int]] = {}
    for row in _output_of("ps", "-e", "-o", "pid=,ppid=").splitlines():
        pid, ppid = map(int, row.split())
        children.setdefault(ppid, []).append(pid)
    tree = [root_pid]
    for pid in tree:
        tree += children.get(pid, [])
    return tree


def _is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"  # a zombie waits for init, proc(5)


if __name__ == "__main__":
    sys.exit(main())
