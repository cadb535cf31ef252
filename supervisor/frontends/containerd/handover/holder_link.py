"""The shim's side of its fd holder: it says what to hold, and forks another one after its death."""

from __future__ import annotations

import array
import json
import os
import signal
import socket

from supervisor.children.fd_holder import FdHolder
from supervisor.frontends.containerd.handover.group_holder import (
    DROP,
    KEEP,
    SERVES,
    GroupHolder,
    channel,
)
from supervisor.linux import spawn
from supervisor.linux.errors import reason
from supervisor.linux.fds import Fd
from supervisor.state.log import Log
from workers.process import isolate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from supervisor.linux.event_loop import Loop
    from supervisor.linux.reaper import Reaper
    from supervisor.state.fd_store import FdReader, FdWriter


class HolderLink:
    """Tells the fd holder. Owns the channel and pidfds until `end`; borrows what is held.

    It is the `StoreHolder` of every container of the shim, and the `Starter` of the next fd holder.
    Both ends of the channel stay open here: the next fd holder takes over the other one.
    """

    def __init__(
        self,
        command: Sequence[str],
        ends: tuple[socket.socket, socket.socket],
        holder: Fd,
        kept: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """Take the link to an fd holder.

        Args:
            command: How to start this program again.
            ends: The channel: this side's end, and the fd holder's.
            holder: A pidfd of the fd holder; a closed one if it has died.
            kept: What it holds already, by name.
        """
        self._command = [*command]
        self._mine, self._theirs = ends
        self._holder = holder
        self._passed = Fd(-1)
        self._shim = Fd(-1)
        self._kept = {**(kept or {})}
        self._log = Log(Fd(os.dup(2)))
        self._loop: Loop | None = None
        self._next: FdHolder | None = None

    def below(self, holder_pid: int) -> HolderLink:
        """Note that the parent of this process is the fd holder, if it lives; return this."""
        try:
            holder = Fd(os.pidfd_open(holder_pid))
        except OSError:  # it has died; or EMFILE
            return self
        if os.getppid() == holder_pid:  # so the pid was its own
            self._holder = holder
        else:
            holder.close()
        return self

    def attach(self, loop: Loop, reaper: Reaper, *, title: str, null_fd: int) -> None:
        """Have another fd holder from now on, whenever one has died. Borrows everything."""
        self._shim = Fd(os.pidfd_open(os.getpid()))
        self._loop = loop
        self._next = FdHolder(
            loop, reaper, self._log, title=title, null_fd=null_fd, store_fds=(), starter=self
        )
        if self._holder.is_open:
            loop.watch(self._holder.fileno(), self._on_death)
        else:
            self._next.ensure()

    def _on_death(self) -> None:
        if self._loop is None or self._next is None:
            raise AssertionError("not attached yet")
        self._loop.forget(self._holder.fileno())
        self._holder.close()
        self._log.warning("fd holder: killed, forked again")
        self._next.ensure()

    def end(self) -> None:
        """Kill the fd holder: the group is over. What it has open is closed when it is dead."""
        if self._next is not None:
            self._next.stop()
        if self._holder.is_open:
            if self._loop is not None:
                self._loop.forget(self._holder.fileno())
            self._kill_holder()
            self._holder.close()
        for each in (self._mine, self._theirs, self._shim, self._passed, self._log):
            each.close()

    def _kill_holder(self) -> None:
        try:
            signal.pidfd_send_signal(self._holder.fileno(), signal.SIGKILL)
        except ProcessLookupError:
            return  # it has died, and its pidfd will tell

    # What it holds.

    def keep(self, name: str, kept: tuple[int, ...]) -> None:
        """Have descriptors held under a name, in place of those before. The same change nothing."""
        if self._kept.get(name) != kept:
            self._kept[name] = kept
            self._tell(KEEP, name, kept)

    def drop(self, name: str) -> None:
        """Have a name's descriptors closed there. Called before they are closed here."""
        if self._kept.pop(name, None) is not None:
            self._tell(DROP, name)

    def tell_serves(self) -> None:
        """Say that this process serves: it is the group's shim from now on."""
        self._tell(SERVES)

    def _tell(self, word: str, name: str = "", kept: tuple[int, ...] = ()) -> None:
        if not self._holder.is_open and not (self._next and self._next.pid):
            return  # the next fd holder knows by its fork
        message = json.dumps([word, name] if name else [word]).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", kept))] if kept else []
        try:
            self._mine.sendmsg([message], rights)
        except OSError as error:
            # EAGAIN: it was stopped, and reads nothing. The next one knows by its fork.
            self._log.warning(f"fd holder: {reason(error)}; killed")
            if self._holder.is_open:
                self._kill_holder()
            elif self._next is not None and self._next.pid:
                os.kill(self._next.pid, signal.SIGKILL)  # unreaped, so the pid is its own

    # The reload.

    def snapshot(self, fd_writer: FdWriter) -> dict[str, Any]:
        """Return what `restore` needs; the names have to be kept again then."""
        self._passed.close()
        if not self._holder.is_open and self._next is not None and self._next.pid:
            self._passed = Fd(os.pidfd_open(self._next.pid))  # unreaped, so the pid is its own
        holder = self._holder if self._holder.is_open else self._passed
        return {
            "channel": [fd_writer.add(each.fileno()) for each in (self._mine, self._theirs)],
            "holder": fd_writer.add(holder.fileno()),
        }

    @staticmethod
    def restore(
        packed: Mapping[str, Any], contents: FdReader, command: Sequence[str]
    ) -> HolderLink:
        """Return the link of the program before this one in this process."""
        mine, theirs = (
            socket.socket(fileno=contents.take(each).take()) for each in packed["channel"]
        )
        return HolderLink(command, (mine, theirs), contents.take(packed["holder"]))

    # The process of the fd holder; see `Starter`.

    @property
    def fds(self) -> tuple[int, ...]:
        """What an fd holder has open: the channel, the shim's pidfd, its log, and what it holds."""
        kept = (fd for each in self._kept.values() for fd in each)
        ends = (self._mine.fileno(), self._theirs.fileno())
        own = (*ends, self._shim.fileno(), *self._log.fds)
        return (*(fd for fd in own if fd >= 0), *kept)

    @property
    def starts_successors(self) -> bool:
        """It does, but takes no signal for it: it is killed when no more are wanted."""
        return False

    def stand_down(self) -> None:
        """Do nothing; see `starts_successors`."""

    def serve(self, _supervisor_pid: int) -> None:
        """Be the fd holder that the shim has forked."""
        self.hold(self._shim)

    def hold(self, shim: Fd) -> None:
        """Be the fd holder of `shim`, a pidfd, which is owned from now on."""
        os.dup2(self._log.fds[0], 2)  # the successor's
        ends = (self._mine, self._theirs)
        GroupHolder(self._command, ends, self._kept, self._log.warning).serve(shim)


def fork_shim(
    command: Sequence[str],
    kept: Mapping[str, tuple[int, ...]],
    *,
    title: str,
    null_fd: int,
    serve: Callable[[HolderLink], None],
) -> None:
    """Fork the shim, which calls `serve`, and be its fd holder until it has ended.

    Without memory or processes for a fork this process is the shim, and forks its fd holder later.
    `kept`: what the fd holder has from the beginning.
    """
    link = HolderLink(command, channel(), Fd(-1), kept)
    holder_pid = os.getpid()
    try:
        pid = spawn.fork_worker(lambda: serve(link.below(holder_pid)))
        shim = Fd(os.pidfd_open(pid))  # unreaped, so the pid is its own
    except OSError:  # EAGAIN, ENOMEM, EMFILE: no second process now
        serve(link)
        return
    isolate.enter_worker(f"{title} [fds]", (*link.fds, shim.fileno()), null_fd)
    link.hold(shim)
