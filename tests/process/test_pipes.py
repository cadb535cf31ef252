"""The window of the container's console: the person's, as long as there is one."""

from __future__ import annotations

import errno
import os
import pty
import termios
from typing import TYPE_CHECKING

import pytest

from supervisor.io.client_stdio import Stdio
from supervisor.io.pipes import Pipes
from supervisor.io.stream_set import StreamSet
from supervisor.io.user_terminal import UserTerminal
from supervisor.linux import fds
from supervisor.oci import console_socket
from supervisor.oci.process_json import ProcessConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.rig import Rig

pytestmark = pytest.mark.process


class Joined:
    """A person's terminal and a container's console, joined by a `Plumbing`. Owns all of it."""

    def __init__(self, rig: Rig) -> None:
        self.null_fd = rig.null.fileno()
        self.stream_set = StreamSet(
            rig.loop,
            rig.reaper,
            rig.log,
            title="forkshim: joined",
            null_fd=self.null_fd,
            on_stream_over=lambda: None,
        )
        self.window, self.terminal = map(fds.Fd, pty.openpty())
        ptmx, self.inside = map(fds.Fd, pty.openpty())
        termios.tcsetwinsize(self.window.fileno(), (33, 101))
        self.pipes = self.plumb(self.terminal.fileno())
        self.pipes.join_console(ptmx, Stdio(names={"stdout": "null"}), self.stream_set)

    def plumb(self, terminal_fd: int) -> Pipes:
        user = UserTerminal(terminal_fd, is_input=False)
        return Pipes(ProcessConfig(terminal=True), user, self.null_fd)

    def close(self) -> None:
        self.pipes.close()
        self.stream_set.close()
        for owner in (self.window, self.terminal, self.inside):
            owner.close()


@pytest.fixture
def joined(rig: Rig) -> Iterator[Joined]:
    made = Joined(rig)
    yield made
    made.close()


def test_a_console_has_the_size_of_the_persons_window_and_follows_it(joined: Joined) -> None:
    assert console_socket.size(joined.inside.fileno()) == (101, 33)
    termios.tcsetwinsize(joined.window.fileno(), (19, 72))
    joined.pipes.fit_to_window()
    assert console_socket.size(joined.inside.fileno()) == (72, 19)


def test_a_window_that_was_closed_is_no_error_and_the_console_keeps_its_size(
    joined: Joined,
) -> None:
    joined.window.close()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        console_socket.size(joined.terminal.fileno())
    joined.pipes.fit_to_window()
    assert console_socket.size(joined.inside.fileno()) == (101, 33)


def test_any_other_error_of_a_window_is_one(joined: Joined) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOTTY)):
        joined.plumb(joined.null_fd).fit_to_window()
