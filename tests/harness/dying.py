"""Workers that die by SIGKILL at a chosen instruction, or in the middle of a write(2)."""

from __future__ import annotations

import dis
import mmap
import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import workers
from tests.harness.forked import finishing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

_NEVER = 0
_WORKERS = os.path.dirname(workers.__file__) + "/"  # a checkout may lie below another "workers"
_WITHOUT_EFFECT = ("/isolate.py", "/report.py", "/records.py")
_ACTS = ("CALL", "STORE_SUBSCR", "STORE_SLICE")


def _traced(work: Callable[[], None], die_at: int, counted: memoryview) -> Callable[[], None]:
    """Make `work` die before bytecode instruction number `die_at` of the package `workers`.

    Random kills nearly always hit a system call: there are few instructions between two calls.
    Only instructions with an effect outside the interpreter count: calls and stores into
    memory. Death between two of them is death before the second.
    """

    def run() -> None:
        seen = 0
        codes: dict[Any, bytes] = {}

        def step(frame: Any, event: str, _arg: Any) -> Any:
            nonlocal seen
            if event == "opcode":
                if frame.f_code not in codes:
                    codes[frame.f_code] = frame.f_code.co_code
                code = codes[frame.f_code]
                if dis.opname[code[frame.f_lasti]].startswith(_ACTS):
                    seen += 1
                    if seen == die_at:
                        os.kill(os.getpid(), signal.SIGKILL)
            return step

        def enter(frame: Any, _event: str, _arg: Any) -> Any:
            name = frame.f_code.co_filename
            if not name.startswith(_WORKERS) or name.endswith(_WITHOUT_EFFECT):
                return None
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
            return step

        sys.settrace(enter)
        try:
            work()
        finally:
            sys.settrace(None)
            counted[0] = seen

    return run


@contextmanager
def _count() -> Iterator[memoryview]:
    with mmap.mmap(-1, 8) as memory, memoryview(memory) as view, view.cast("Q") as counted:
        yield counted


def instructions(work: Callable[[], None]) -> int:
    """Run `work` in a child to its end; return its number of instructions in `workers`."""
    with _count() as counted:
        with finishing(_traced(work, _NEVER, counted)):
            pass
        return int(counted[0])


def die_at(instruction: int, work: Callable[[], None]) -> None:
    """Run `work` in a child that is killed at this instruction, unless it ends before."""
    with _count() as counted, finishing(_traced(work, instruction, counted)):
        pass


def die_writing(work: Callable[[], None], written_bytes: int) -> None:
    """Run `work` in a child that is killed after `written_bytes`, in the middle of a write(2)."""

    def run() -> None:
        whole_write = os.write

        def torn(fd: int, content: bytes) -> int:
            nonlocal written_bytes
            if len(content) <= written_bytes:
                written_bytes -= len(content)
                return whole_write(fd, content)
            whole_write(fd, memoryview(content)[:written_bytes])
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("not dead")

        os.write = torn  # type: ignore[assignment] # in the child only
        work()

    with finishing(run):
        pass


def small_reads(monkeypatch: pytest.MonkeyPatch, read_bytes: int) -> None:
    """Make new line buffers small, so that few bytes take every path."""
    monkeypatch.setattr("workers.lines.buffer.READ_BYTES", read_bytes)
    monkeypatch.setattr("workers.lines.reader.READ_BYTES", read_bytes)
