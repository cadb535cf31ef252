"""Finds where records begin and end in a stream of bytes. Pure.

A record is a line with its newline. A line longer than the limit becomes pieces of exactly the
limit, without a newline, and a rest. The end of the stream, if its last byte is no newline, is cut
the same way. The ends of records depend only on the bytes after the start of any record. So a
successor that cuts the same bytes makes the same records.
"""

from __future__ import annotations

from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Run(NamedTuple):
    """Adjacent records: whole lines; with `is_piece` a single piece of a line."""

    start: int
    end: int
    is_piece: bool


def runs(content: bytes, limit_bytes: int) -> Iterator[Run]:
    """Cut `content`, which begins at the start of a record, into as few runs as possible.

    The bytes after the last newline are a piece, too, so pass only bytes that become records now.
    It takes one step per `limit_bytes`, not per line.
    """
    start = here = 0
    while here < len(content):
        newline = content.rfind(b"\n", here, here + limit_bytes + 1)
        if newline >= 0:
            here = newline + 1
            continue
        if here > start:
            yield Run(start, here, is_piece=False)
        start, here = here, min(here + limit_bytes, len(content))
        yield Run(start, here, is_piece=True)
        start = here
    if here > start:
        yield Run(start, here, is_piece=False)


def end_of_first(content: bytes, limit_bytes: int) -> int:
    """Return where the first record of `content` ends."""
    newline = content.find(b"\n", 0, limit_bytes + 1)
    return min(len(content), limit_bytes) if newline < 0 else newline + 1


def end_of_nth(content: bytes, limit_bytes: int, count: int) -> int:
    """Return where record number `count` of `content` ends; 0 is before the first record."""
    end = 0
    for start, stop, is_piece in runs(content, limit_bytes):
        here = 1 if is_piece else content.count(b"\n", start, stop)
        if count < here:
            for _ in range(count):
                end = content.index(b"\n", end) + 1
            break
        count -= here
        end = stop
    return end


def end_of_last(rest_start: int, end: int, limit_bytes: int) -> int:
    """Return where the last complete record ends. The bytes after `rest_start` have no newline.

    Args:
        rest_start: Position after the last newline.
        end: Position after the last byte. A piece is complete when another byte follows it.
        limit_bytes: As for `runs`; 0 if any byte may end a record.
    """
    if end == rest_start or limit_bytes == 0:
        return end
    return rest_start + (end - rest_start - 1) // limit_bytes * limit_bytes
