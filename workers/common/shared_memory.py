"""Memory that outlives a worker: words that change all at once, and room for bytes.

The parent makes it before it forks. A worker may be killed between any two instructions, and its
successor has to find either the state before a step or the state after it, never a mixture.

The memory is sealed: its size never changes. A worker is the one that reads what a container says,
and a page that it could take away would be SIGBUS for the supervisor. What it could still do is to
write any number there; each number is taken for what it may be, and no number is an index.
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

    A memfd, so that it can be locked (see `workers.sinks.log_file`) and outlives an exec. Pages
    that nobody has touched cost nothing. Owns the descriptor; a worker keeps `fd`.
    """

    def __init__(self, name: str, data_bytes: int = 0, *, fd: int = -1) -> None:
        """Make and map it; `name` is for /proc/PID/maps. Or take over `fd`, with what is in it.

        Raises:
            ValueError: `fd` is not sealed, or of another size; it is closed.
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
        """Lend the bytes `start` to `end` of the data, for somebody to fill."""
        return self._view[PAGE_BYTES + start : PAGE_BYTES + end]

    def close(self) -> None:
        """Give it back; every record on it is dead then."""
        for view in (self.words, self._page, self._view):
            view.release()
        self.data.close()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Record:
    """Numbers that are committed together, on `words_needed` words of a `Memory`.

    There are two copies and a word that says which of them counts. A commit writes the other copy
    and then that word: one aligned store of eight bytes, before which nothing has happened.
    """

    def __init__(self, words: memoryview, count: int) -> None:
        """Borrow `words`; `count` numbers, all 0 at first."""
        self._words = words
        self._count = count

    @staticmethod
    def words_needed(count: int) -> int:
        """Return how many words a record of `count` numbers takes."""
        return 1 + 2 * count

    def read(self) -> list[int]:
        """Return the numbers as they were committed last."""
        start = 1 + self._current() * self._count
        return self._words[start : start + self._count].tolist()

    def commit(self, numbers: Sequence[int]) -> None:
        """Make `numbers`, each 0 to 2**64 - 1, the ones that count. One process at a time."""
        other = 1 - self._current()
        start = 1 + other * self._count
        self._words[start : start + self._count] = array("Q", numbers)
        self._words[0] = other

    def _current(self) -> int:
        return self._words[0] & 1  # never an index out of range, whatever is written there

    def release(self) -> None:
        """Let go of the words, so that their memory can be closed."""
        self._words.release()


def _check(fd: int, name: str, size: int) -> None:
    """Refuse what could change its size under us, or has another one.

    Raises:
        ValueError: It is not sealed, or of another size.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:  # EINVAL: no memfd
        raise ValueError(f"{name}: not sealed memory: {error.strerror}") from error
    if seals & SEALS != SEALS:
        raise ValueError(f"{name}: memory that is not sealed against a change of its size")
    if (found := os.fstat(fd).st_size) != size:
        raise ValueError(f"{name}: memory of {found} bytes, not {size}")
