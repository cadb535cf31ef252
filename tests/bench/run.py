"""From exec of one command to the first word of the container's process, and to the command's end.

`forkshim run` makes its container by itself. `ctr run --rm` asks a containerd that runs already,
which starts containerd-shim-runc-v2; `runc run` has neither a supervisor nor a daemon. All three
are given the same config.json, /dev/null for stdin and a pipe for stdout, stay in the foreground,
and leave nothing of the container. Its process says a word and ends.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import peers
from tests.bench.case import Case, Sample, Setting, Variant, at_most
from tests.bench.sites import running
from tests.engines.containerd import STOCK
from tests.harness import bundles, waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.installed import Programs

_WORD = b"ready\n"
_Command = Callable[[Path, str], Sequence["str | Path"]]


def cases(setting: Setting) -> Iterator[Case]:
    """The one case."""
    ctr = Ctr()
    yield Case(
        "run",
        "exec to the first word and to the end",
        [
            Variant("forkshim", partial(_ours, setting.rootfs, setting.programs), is_ours=True),
            Variant("runc run", partial(measure, setting.rootfs, _runc)),
            Variant(
                "ctr run",
                partial(measure, setting.rootfs, ctr),
                peers.need(peers.CTR),
                around=ctr.daemon,
            ),
        ],
        [at_most(1, "ms to the first word", beside="ctr run")],
        times=3,
    )


class Ctr:
    """`ctr run`, and the daemon that it asks."""

    def __init__(self, runtime: str = STOCK, first_on_path: Path | None = None) -> None:
        """There is no daemon yet; the arguments are those of `peers.containerd`."""
        self._start = partial(peers.containerd, runtime, first_on_path)
        self._daemon: peers.Containerd | None = None

    @contextlib.contextmanager
    def daemon(self) -> Iterator[peers.Containerd]:
        """Have it for a while."""
        with self._start() as self._daemon:
            yield self._daemon
        self._daemon = None

    def __call__(self, bundle: Path, container_id: str, *options: str) -> Sequence[str | Path]:
        """Return the command."""
        assert self._daemon is not None
        return self._daemon.run_command(bundle, container_id, "--rm", *options)


def _ours(rootfs: Path, programs: Programs) -> Sample:
    with tempfile.TemporaryDirectory() as root:

        def command(bundle: Path, container_id: str) -> Sequence[str | Path]:
            return [*programs.run, "--root", root, "--bundle", bundle, container_id]

        return measure(rootfs, command)


def _runc(bundle: Path, container_id: str) -> Sequence[str | Path]:
    return ["runc", "run", "--bundle", bundle, container_id]


def measure(rootfs: Path, command: _Command) -> Sample:
    """Run a container that says a word and ends, by a command for its bundle and its id."""
    with tempfile.TemporaryDirectory() as name:
        document = bundles.config(rootfs, ["echo", _WORD.decode().strip()])
        bundle = bundles.make_bundle(Path(name) / "bundle", document)
        words = command(bundle, bundles.fresh_id("run"))
        began = time.perf_counter()
        with running(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            word = waiting.read_until(process.stdout.fileno(), b"\n")
            spoke = time.perf_counter()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            ended = time.perf_counter()
            status = process.wait()
        assert (word, status) == (_WORD, 0), (word, status)
    return {"ms to the first word": (spoke - began) * 1e3, "ms to the end": (ended - began) * 1e3}
