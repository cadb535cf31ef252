"""Messages in the system's log, which may not read, or not be there."""

from __future__ import annotations

import os
import re
import socket
from typing import TYPE_CHECKING

import pytest

from supervisor.linux import fds
from supervisor.state.log import Log
from supervisor.state.syslog import Syslog, encode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.process

CID = "d290b693a9239d4a40d9002ead56310d5d2c063fff6302cb"


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(os.fspath(tmp_path / "log"))
        made.setblocking(False)
        yield made


def test_a_message_has_the_form_of_syslog_and_the_words_of_conmon() -> None:
    data = encode(CID, "warn", "ctl: what", pid=7, at_s=0)
    stamp = rb"(Jan  1|Dec 31) \d\d:\d\d:\d\d"
    text = rb"conmon\[7\]: conmon d290b693a9239d4a40d9 <nwarn>: ctl: what"
    assert re.fullmatch(rb"<28>" + stamp + b" " + text, data)
    assert encode(CID, "error", "x", pid=7, at_s=0).startswith(b"<27>")
    assert encode(CID, "info", "x", pid=7, at_s=0).startswith(b"<30>")


def test_levels_that_were_not_asked_for_are_not_sent(reader: socket.socket, tmp_path: Path) -> None:
    fd = fds.Fd(os.open(tmp_path / "own", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    log = Log(fd)
    log.use_syslog(CID, ("error", "warn"), os.fspath(tmp_path / "log"))
    assert len(log.fds) == 2
    log.info("one")
    log.notice("two")
    log.warning("three\nlines")
    log.error("four")
    log.close()
    assert reader.recv(999).endswith(b"<nwarn>: three\\nlines")
    assert reader.recv(999).endswith(b"<error>: four")
    with pytest.raises(BlockingIOError):
        reader.recv(999)


def test_a_log_that_does_not_read_or_is_gone_is_not_waited_for(
    reader: socket.socket, tmp_path: Path
) -> None:
    to = Syslog(CID, ("info",), os.fspath(tmp_path / "log"))
    for number in range(2000):  # net.unix.max_dgram_qlen is far below
        to.send("info", f"{number} {'x' * 999}")
    assert b"<ninfo>: 0 x" in reader.recv(9999)
    reader.close()
    to.send("info", "no process reads this")
    (tmp_path / "log").unlink()
    to.send("info", "nor this")
    to.close()
