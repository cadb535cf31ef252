"""The shared memory of a notify worker, its successors and the supervisor: messages and counters.

A worker may be killed at any instant. So it stores a message before it receives the datagram. A
message may be sent twice, and is never lost.
"""

from __future__ import annotations

from workers.common.shared_memory import Memory
from workers.notify import words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from workers.notify.words import Words

_SEEN, _BUSY, _MERGED, _CURRENT, _LENGTH = 0, 1, 2, 3, 4
_ROOM = 4096
"""Size of each of two copies. Four messages, one with a status of 1 KiB, take 2 KiB at most."""


class NotifyMemory:
    """The supervisor owns it, the living worker writes it. Readers trust no number in it."""

    def __init__(self, *, fd: int = -1) -> None:
        """Make the memory. `fd`: see `Memory`."""
        self._memory = Memory("forkshim:notify", 2 * _ROOM, fd=fd)

    @property
    def fd(self) -> int:
        """Descriptor of the memory, borrowed."""
        return self._memory.fd

    @property
    def seen(self) -> int:
        """How many datagrams the workers have received."""
        return self._memory.words[_SEEN]

    @property
    def is_busy(self) -> bool:
        """Whether the worker is receiving, which can sleep, see `workers.notify.reader`."""
        return bool(self._memory.words[_BUSY])

    @property
    def merged(self) -> int:
        """How many messages the workers have merged with others."""
        return self._memory.words[_MERGED]

    def begin(self) -> None:
        """Note that the worker begins to receive a datagram."""
        self._memory.words[_BUSY] = 1

    def done(self) -> None:
        """Note that the worker has received it."""
        self._memory.words[_SEEN] = (self._memory.words[_SEEN] + 1) % 2**64
        self._memory.words[_BUSY] = 0

    def abandoned(self) -> None:
        """Note that the worker was killed."""
        self._memory.words[_BUSY] = 0

    def count_merged(self) -> None:
        """Count one merged message."""
        self._memory.words[_MERGED] = (self._memory.words[_MERGED] + 1) % 2**64

    def waiting(self) -> list[Words]:
        """Return the messages that were not sent yet."""
        current = self._memory.words[_CURRENT] & 1
        length = min(self._memory.words[_LENGTH + current], _ROOM)
        text = bytes(self._memory.room(current * _ROOM, current * _ROOM + length))
        messages = [words.parse(each) for each in text.split(b"\0")]
        return [each for each in messages if each != words.NOTHING]

    def keep(self, messages: list[Words]) -> None:
        """Replace the messages that were not sent yet, in one step."""
        text = b"\0".join(words.encode(each) for each in messages)
        other = 1 - (self._memory.words[_CURRENT] & 1)
        self._memory.room(other * _ROOM, other * _ROOM + len(text))[:] = text
        self._memory.words[_LENGTH + other] = len(text)
        self._memory.words[_CURRENT] = other

    def close(self) -> None:
        """Close the memory."""
        self._memory.close()
