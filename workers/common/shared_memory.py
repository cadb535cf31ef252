"""Memory that outlives a worker: words that change atomically, and space for bytes.

The supervisor makes it before fork(2). A worker may be killed between any two instructions. Its
successor then finds the state before a step or the state after it, never a mixture.

The memory is sealed, so its size never changes. A worker parses what a container writes. If it
could truncate the memory, the supervisor would get SIGBUS. A worker can still write any number. So
readers clamp each number to its range, and use none as an index.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE_BYTES = mmap.PAGESIZE
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
"""Source: fcntl(2), F_ADD_SEALS."""


class Memory:
    """One page of 64-bit words and `data_bytes` of data, zeroed, shared across fork(2).

    A memfd: processes can lock it (`workers.sinks.log_file`), and it outlives an exec. Untouched
    pages cost nothing. Owns the descriptor; a worker keeps `fd` open.
    """

    def __init__(self, name: str, data_bytes: int = 0, *, fd: int = -1) -> None:
        """Make and map the memory, or take over `fd` with its content.

        Args:
            name: For /proc/PID/maps and error messages.
            data_bytes: Size of the data after the page of words.
            fd: A memfd of the same size; closed if it is refused.

        Raises:
            ValueError: `fd` is not sealed, or has another size.
            OSError: EMFILE, ENOMEM.
        """
        size = PAGE_BYTES + data_bytes
        self.fd = fd if fd >= 0 else os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            if fd < 0:
                os.ftruncate(self.fd, size)
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)
            else:
                _check(fd, name, size)
            self.data = mmap.mmap(self.fd, size)
        except (OSError, ValueError):
            os.close(self.fd)
            raise
        self._view = memoryview(self.data)
        self._page = self._view[:PAGE_BYTES]
        self.words = self._page.cast("Q")

    def room(self, start: int, end: int) -> memoryview:
        """Lend the bytes `start` to `end` of the data, writable."""
        return self._view[PAGE_BYTES + start : PAGE_BYTES + end]

    def close(self) -> None:
        """Unmap and close the memory. Release every record on it first."""
        for view in (self.words, self._page, self._view):
            view.release()
        self.data.close()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Record:
    """Numbers that are committed together, on `words_needed` words of a `Memory`.

    The record has two copies and a word that selects the current copy. A commit writes the other
    copy, then the word: one aligned store of eight bytes. Before that store nothing has changed.
    """

    def __init__(self, words: memoryview, count: int) -> None:
        """Borrow `words` for `count` numbers, all 0 at first."""
        self._words = words
        self._count = count

    @staticmethod
    def words_needed(count: int) -> int:
        """Return how many words a record of `count` numbers takes."""
        return 1 + 2 * count

    def read(self) -> list[int]:
        """Return the numbers of the last commit."""
        start = 1 + self._current() * self._count
        return self._words[start : start + self._count].tolist()

    def commit(self, numbers: Sequence[int]) -> None:
        """Make `numbers`, each 0 to 2**64 - 1, the current ones. One process at a time."""
        other = 1 - self._current()
        start = 1 + other * self._count
        self._words[start : start + self._count] = array("Q", numbers)
        self._words[0] = other

    def _current(self) -> int:
        return self._words[0] & 1  # in range, whatever a worker has written there

    def release(self) -> None:
        """Release the words, so that the memory can be closed."""
        self._words.release()


def _check(fd: int, name: str, size: int) -> None:
    """Refuse memory whose size could change or is wrong.

    Raises:
        ValueError: `fd` is not sealed, or has another size.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:  # EINVAL: no memfd
        raise ValueError(f"{name}: not sealed memory: {error.strerror}") from error
    if seals & SEALS != SEALS:
        raise ValueError(f"{name}: memory is not sealed against a change of its size")
    if (found := os.fstat(fd).st_size) != size:
        raise ValueError(f"{name}: memory of {found} bytes, expected {size}")
