"""Makes text printable before forkshim writes it to a terminal, the journal, systemd or a file.

Messages contain text that the container chooses: arguments, file names, errors of the runtime. A
terminal obeys escape sequences and direction marks in it, and a line feed would forge a message.
`printable` replaces each such character by an escape, so a message is one line.
"""

from __future__ import annotations

_SURROGATES = range(0xDC80, 0xDD00)
"""What os.fsdecode returns for bytes that are not UTF-8."""


def printable(text: str) -> str:
    r"""Return `text` with each unprintable character as an escape: `\n`, `\x1b`, `\u2028`.

    Unprintable are control characters (C0 and C1), line and paragraph separators, direction marks,
    zero-width and unassigned characters. A byte that is not UTF-8 becomes `\xff`. Source:
    str.isprintable.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _written_out(each) for each in text)


def _written_out(character: str) -> str:
    code = ord(character)
    if code in _SURROGATES:
        return f"\\x{code - 0xDC00:02x}"
    return ascii(character)[1:-1]
