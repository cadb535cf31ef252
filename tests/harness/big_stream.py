"""A container that says gigabytes of random bytes, and what they come to."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

from tests.harness import bundles

if TYPE_CHECKING:
    from pathlib import Path


class BigStream:
    """One block of a little more than 1 MiB, `blocks` times; then the container ends."""

    def __init__(
        self, directory: Path, rootfs: Path, *, blocks: int, status: int, seed: int
    ) -> None:
        """Make the bundle in `directory`; the container's status is `status`."""
        self._block = random.Random(seed).randbytes((1 << 20) + 4321)
        self._blocks = blocks
        path = directory / "block"
        path.write_bytes(self._block)
        mount = bundles.bind(path, "/tmp/block")
        script = f"i=0; while [ $i -lt {blocks} ]; do cat /tmp/block; i=$((i+1)); done"
        document = bundles.config(rootfs, bundles.shell(f"{script}; exit {status}"), mounts=[mount])
        self.bundle = bundles.make_bundle(directory / "big", document)
        self._digest = hashlib.sha256()
        self.read_bytes = 0

    @property
    def total_bytes(self) -> int:
        return len(self._block) * self._blocks

    def came(self, chunk: bytes) -> None:
        """Take note of what has come."""
        self._digest.update(chunk)
        self.read_bytes += len(chunk)

    def check(self) -> None:
        """See that it is what was said, all of it."""
        wanted = hashlib.sha256()
        for _ in range(self._blocks):
            wanted.update(self._block)
        assert (self.read_bytes, self._digest.hexdigest()) == (
            self.total_bytes,
            wanted.hexdigest(),
        )
