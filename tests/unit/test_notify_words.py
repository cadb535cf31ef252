"""Which of a container's messages pass to the service manager, and in which form."""

from __future__ import annotations

import re
import socket
from functools import partial
from typing import TYPE_CHECKING

import pytest

from supervisor.systemd.notify import Notifier
from workers.notify.words import LONGEST_STATUS, MOST_BYTES, NOTHING, Words, encode, parse

if TYPE_CHECKING:
    from pathlib import Path

MOST = 2**64 - 1
ALLOWED = (
    b"READY=1",
    b"RELOADING=1\nMONOTONIC_USEC=5",
    b"STOPPING=1",
    b"WATCHDOG=1",
    b"WATCHDOG=trigger",
    b"STATUS=up",
    b"ERRNO=2",
    b"BUSERROR=org.x.Y_2",
    b"WATCHDOG_USEC=7",
    b"EXTEND_TIMEOUT_USEC=8",
)
FORMS = {
    "READY": "1",
    "RELOADING": "1",
    "STOPPING": "1",
    "MONOTONIC_USEC": r"[0-9]+",
    "WATCHDOG": "1|trigger",
    "STATUS": r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]*",
    "ERRNO": r"[0-9]+",
    "BUSERROR": r"[A-Za-z0-9_.]+",
    "WATCHDOG_USEC": r"[0-9]+",
    "EXTEND_TIMEOUT_USEC": r"[0-9]+",
}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", NOTHING),
        (b"READY=1", Words(state="READY")),
        (b"STATUS=up\nREADY=1\n", Words(state="READY", status="up")),
        (b"READY=1\nRELOADING=1\nMONOTONIC_USEC=5", Words(state="RELOADING", monotonic_usec=5)),
        (b"RELOADING=1\nREADY=1\nMONOTONIC_USEC=5", Words(state="READY")),
        (b"STATUS=a\nSTATUS=b", Words(status="a")),
        (b"WATCHDOG=1\rWATCHDOG=trigger", Words(watchdog="1")),
        (b"WATCHDOG_USEC=007", Words(watchdog_usec=7)),
        (b"EXTEND_TIMEOUT_USEC=%d" % MOST, Words(extend_timeout_usec=MOST)),
        (b"EXTEND_TIMEOUT_USEC=%d" % (MOST + 1), NOTHING),
        (b"EXTEND_TIMEOUT_USEC=\xd9\xa1", NOTHING),  # a digit elsewhere, which int() reads
        (b"EXTEND_TIMEOUT_USEC=1_0", NOTHING),
        (b"EXTEND_TIMEOUT_USEC=-1\nERRNO=+1\nWATCHDOG_USEC= 1", NOTHING),
        (b"ERRNO=0", Words(errno=0)),
        (b"ERRNO=4095", Words(errno=4095)),
        (b"ERRNO=4096", NOTHING),
        (b"BUSERROR=org.x", Words(bus_error="org.x")),
        (b"BUSERROR=x\nERRNO=1", Words(errno=1)),
        (b"BUSERROR=a..b", NOTHING),
        (b"BUSERROR=a.1", NOTHING),
        (b"BUSERROR=a." + b"b" * 253, Words(bus_error="a." + "b" * 253)),
        (b"BUSERROR=a." + b"b" * 254, NOTHING),
        (b"MAINPID=1\nFDSTORE=1\nFDNAME=x\nNOTIFYACCESS=all\nBARRIER=1\nFDSTOREREMOVE=1", NOTHING),
        (b"READY=2\nREADY=\nready=1\n READY=1\nWATCHDOG=2\nSTOPPING=0", NOTHING),
        (b"STATUS=\xff \x1b[2J\t\xc3\xa4", Words(status="\ufffd ?[2J?ä")),
        (b"STATUS=\xe2\x80\xa8\xe2\x80\xae", Words(status="??")),
        (b"STATUS=" + b"x" * 4000, Words(status="x" * LONGEST_STATUS)),
        (b"READY=1\0", Words(state="READY")),  # systemd accepts a NUL at the end
        (b"READY=1\0\0", NOTHING),
        (b"READY=1\0STATUS=x", NOTHING),
        (b"READY=1\nSTATUS=".ljust(MOST_BYTES + 1, b"x"), NOTHING),
    ],
)
def test_a_datagram_is_read_as_systemd_reads_it(data: bytes, words: Words) -> None:
    assert parse(data) == words
    assert parse(encode(words)) == words


def test_no_byte_anywhere_in_an_allowed_word_makes_another_one(tmp_path: Path) -> None:
    """The result is split as systemd splits: at line feeds and carriage returns."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address)
        notifier = Notifier({"NOTIFY_SOCKET": address})
        for word in ALLOWED:
            for place in range(len(word) + 1):
                for byte in range(256):
                    inserted = bytes([byte])
                    for tail in (b"", b"MAINPID=1", b"NOTIFYACCESS=all", b"FDSTOREREMOVE=1"):
                        words = parse(word[:place] + inserted + tail + word[place:])
                        notifier.forward(words.lines(), words.status, partial(str, words.status))
                        if words.lines() or words.status:
                            _check(receiver)
        notifier.close()


def _check(receiver: socket.socket) -> None:
    try:
        message = receiver.recv(65536, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return  # the status was the same
    for line in re.split(r"[\r\n]", message.decode()):
        name, _equals, value = line.partition("=")
        assert re.fullmatch(FORMS[name], value), message
