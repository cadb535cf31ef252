"""Runtimes that are not quite runc: scripts that record, wait, or get it wrong."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_RECORDER = """\
#!{python} -IS
import ctypes, json, os, sys
pdeathsig = ctypes.c_int(-1)
assert ctypes.CDLL(None).prctl(2, ctypes.byref(pdeathsig), 0, 0, 0) == 0
fds = {{}}
for fd in os.listdir("/proc/self/fd"):
    try:
        fds[fd] = os.readlink("/proc/self/fd/" + fd)
    except FileNotFoundError:
        pass  # the one that lists them
with open("/proc/self/status") as file:
    status = dict(line.rstrip("\\n").split(":\\t", 1) for line in file if ":\\t" in line)
record = {{
    "argv": sys.argv[1:], "cwd": os.getcwd(), "ppid": os.getppid(), "pdeathsig": pdeathsig.value,
    "fds": fds, "ignored": status["SigIgn"], "blocked": status["SigBlk"],
    "files": sorted(os.listdir({state!r})),
}}
with open({log!r}, "ab", buffering=0) as file:
    file.write(json.dumps(record).encode() + b"\\n")
os.execvp("runc", ["runc", *sys.argv[1:]])
"""


@dataclass(frozen=True)
class Recorder:
    """A runtime that notes how it was called, then becomes runc."""

    path: Path
    log: Path

    def calls(self) -> list[dict[str, Any]]:
        """Return the calls so far, the oldest first."""
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def verbs(self) -> list[str]:
        """Return the verb of each call so far."""
        return [verb_of(call["argv"]) for call in self.calls()]


def recorder(directory: Path, state_dir: Path) -> Recorder:
    """Make a recording runtime; it also notes what is in `state_dir` at each call."""
    found = Recorder(directory / "recorder", directory / "calls")
    source = _RECORDER.format(python=sys.executable, log=str(found.log), state=str(state_dir))
    _write_program(found.path, source)
    return found


def script(path: Path, text: str) -> Path:
    """Make a runtime of a shell script, which has the verb in $verb.

    It ends by becoming runc, unless `text` ends it earlier.
    """
    verbs = "create|exec|start|state|kill|delete"
    source = (
        "#!/bin/sh\n"
        f"for word; do case $word in {verbs}) verb=$word; break;; esac; done\n"
        f"{text}\n"
        'exec runc "$@"\n'
    )
    _write_program(path, source)
    return path


def gate(directory: Path, verb: str) -> tuple[Path, Path]:
    """Make a runtime that waits at `verb`; returns it and the fifo that lets it go on.

    The test opens the fifo for writing, which waits until the runtime has come that far.
    """
    fifo = directory / f"gate-{verb}"
    os.mkfifo(fifo)
    text = f"if [ $verb = {verb} ]; then read go < {shlex.quote(str(fifo))}; fi"
    return script(directory / f"waits-at-{verb}", text), fifo


def lingering(directory: Path, verb: str = "create") -> tuple[Path, Path]:
    """Make a runtime whose `verb` goes on, with all done, until the test has closed the fifo."""
    fifo = directory / "gate"
    os.mkfifo(fifo)
    lingers = f'runc "$@" || exit; read go < {shlex.quote(str(fifo))}; exit 0'
    text = f"if [ $verb = {verb} ]; then {lingers}; fi"
    return script(directory / "lingers", text), fifo


def verb_of(argv: list[str]) -> str:
    """Return the runtime's verb in a command line of the shim's."""
    return next(word for word in argv if word in {"create", "exec", "state", "kill", "delete"})


def _write_program(path: Path, source: str) -> None:
    path.write_text(source)
    path.chmod(0o755)


_WITHOUT_EXEC = """\
#!{python} -IS
import os, sys
words, gate = sys.argv[1:], {gate!r}
if "create" in words:
    os.mkfifo(gate)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        open(gate).read()
        os._exit({exit_status})
    with open(words[words.index("--pid-file") + 1], "w") as file:
        file.write(str(pid))
elif "start" in words:
    open(gate, "w").close()
elif "state" in words:
    sys.exit(1)
"""


def without_exec(path: Path, *, exit_status: int) -> Path:
    """Make a runtime at `path` whose init ends with `exit_status`, and never executes anything."""
    gate = str(path) + ".gate"
    source = _WITHOUT_EXEC.format(python=sys.executable, gate=gate, exit_status=exit_status)
    _write_program(path, source)
    return path
