"""Text that leaves us: for a terminal, the journal, systemd, a log file, a record.

What a container chooses (its arguments, names of its files, the words of the runtime about it) is
in our messages, and a terminal acts on what it shows: an escape sequence, a line that looks like
another message of ours, a direction that turns the rest around. Every such character is written as
what it is, and one message is one line.
"""

from __future__ import annotations

_SURROGATES = range(0xDC80, 0xDD00)
"""What os.fsdecode makes of bytes that are not UTF-8."""


def printable(text: str) -> str:
    r"""Return `text` with `\n`, `\x1b`, `\u2028` and their like written out.

    So are all that Unicode does not call printable: controls (C0 and C1), line and paragraph
    separators, marks of direction, zero widths, unassigned ones. A byte that is not UTF-8 is
    `\xff`. A blank, and every letter, stays. Source: str.isprintable.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _written_out(each) for each in text)


def _written_out(character: str) -> str:
    code = ord(character)
    if code in _SURROGATES:
        return f"\\x{code - 0xDC00:02x}"
    return ascii(character)[1:-1]
