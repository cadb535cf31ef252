"""The worker that reads a container's notify socket: hung, stopped, killed, flooded."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from supervisor.children import notify_worker
from supervisor.children.notify_worker import NotifyWorker
from supervisor.systemd.notify_proxy import DIRECTORY, NotifyProxy
from tests.harness import waiting
from workers.notify.rate_limit import AT_ONCE
from workers.notify.words import Words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.rig import Rig

pytestmark = pytest.mark.process


class NotifySite:
    """A notify_proxy and its worker; this process is the container."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.words: list[Words] = []
        self.notify_proxy = NotifyProxy.make(uid=os.geteuid(), gid=os.getegid())
        self.notify_proxy.belongs_to(os.getpid())
        self.worker = NotifyWorker(
            rig.loop,
            rig.reaper,
            rig.log,
            self.notify_proxy,
            title="forkshim: test",
            null_fd=rig.null.fileno(),
            on_words=self.words.append,
            on_change=lambda: None,
        )
        self.out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.out.setblocking(False)
        self.out.connect(f"{DIRECTORY}/notify.sock")

    @property
    def pid(self) -> int:
        return self.worker._process.pid if self.worker._process else 0

    def say(self, text: str, *fds: int) -> None:
        """Say it when there is room: our worker is forked by this very process."""

        def has_sent() -> bool:
            try:
                socket.send_fds(self.out, [text.encode()], fds)
            except BlockingIOError:
                return False
            return True

        self.until(has_sent)

    def until(self, is_over: Callable[[], bool]) -> None:
        """Serve until then; what is in shared memory is no event, so look again and again."""
        tick = self.rig.loop.timer(lambda: tick.start(0.01))
        tick.start(0.0)
        self.rig.run_until(is_over)
        tick.cancel()

    def has_seen(self, count: int) -> Callable[[], bool]:
        return lambda: self.notify_proxy.memory.seen >= count

    def hear(self, *words: Words) -> None:
        """Serve until these have been told, each once or more, in this order."""
        self.until(lambda: self.said[-len(words) :] == [*words])

    @property
    def said(self) -> list[Words]:
        """What was told, without repetitions."""
        told = self.words
        return [each for index, each in enumerate(told) if index == 0 or told[index - 1] != each]

    def close(self) -> None:
        self.worker.stop()
        self.until(lambda: self.worker.is_gone)
        self.worker.close()
        self.notify_proxy.close()
        self.out.close()


@pytest.fixture
def notify_site(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NotifySite]:
    monkeypatch.chdir(tmp_path)
    made = NotifySite(rig)
    yield made
    made.close()


@contextlib.contextmanager
def lingering() -> Iterator[int]:
    """Lend a descriptor whose last close(2) sleeps: unsent data, and SO_LINGER."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        peer, _address = listener.accept()
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 600))
        sender.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sender.send(bytes(1 << 16))
        yield sender.detach()
        peer.close()


@contextlib.contextmanager
def hung(notify_site: NotifySite, text: str) -> Iterator[int]:
    """Have the worker sleep in close(2); lend its pid."""
    notify_site.worker.start()
    pid = notify_site.pid
    with lingering() as fd:
        os.kill(pid, signal.SIGSTOP)  # or the last close would be ours, and we would sleep
        notify_site.say(text, fd)
        os.close(fd)
        os.kill(pid, signal.SIGCONT)
        notify_site.until(lambda: notify_site.notify_proxy.memory.is_busy)
        yield pid


def test_what_is_said_is_told_and_a_barrier_is_answered(notify_site: NotifySite) -> None:
    notify_site.worker.start()
    rfd, wfd = os.pipe()
    notify_site.say("READY=1\nERRNO=5")
    notify_site.say("BARRIER=1", wfd)
    os.close(wfd)
    notify_site.hear(Words(state="READY", errno=5))
    assert os.read(rfd, 1) == b""
    os.close(rfd)


def test_it_holds_the_socket_and_its_pipes_and_nothing_else(notify_site: NotifySite) -> None:
    notify_site.worker.start()
    notify_site.say("READY=1")
    notify_site.hear(Words(state="READY"))
    directory = f"/proc/{notify_site.pid}/fd"
    targets = sorted(
        os.readlink(f"{directory}/{fd}").partition(":")[0] for fd in os.listdir(directory)
    )
    assert targets == ["/dev/null"] * 3 + ["pipe"] * 2 + ["socket"]
    with open(f"/proc/{notify_site.pid}/cmdline", "rb") as file:
        assert file.read().rstrip(b"\0") == b"forkshim: test [notify]"


def test_a_descriptor_whose_close_sleeps_hangs_the_worker_alone(
    notify_site: NotifySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify_worker, "CHECK_S", 0.2)
    with hung(notify_site, "ERRNO=1") as pid:
        notify_site.say("ERRNO=2")
        notify_site.hear(Words(errno=1), Words(errno=2))
        assert notify_site.pid != pid
    assert notify_site.rig.messages("warn") == [
        f"notify: worker {pid} makes no progress, killed, replaced; deaths: 1"
    ]


def test_a_hung_worker_is_replaced_although_nothing_more_comes(
    notify_site: NotifySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify_worker, "CHECK_S", 0.2)
    with hung(notify_site, "ERRNO=1") as pid:
        notify_site.until(lambda: notify_site.pid not in (0, pid))


def test_a_stopped_worker_is_replaced_when_something_comes(
    notify_site: NotifySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify_worker, "CHECK_S", 0.05)
    notify_site.worker.start()
    os.kill(notify_site.pid, signal.SIGSTOP)
    notify_site.say("READY=1")
    notify_site.hear(Words(state="READY"))


def test_killed_at_any_time_it_loses_nothing_and_changes_no_order(notify_site: NotifySite) -> None:
    notify_site.worker.start()
    said = 0
    while said < 90:
        seen = notify_site.notify_proxy.memory.seen
        for _each in range(3):
            said += 1
            notify_site.say(f"ERRNO={said}")
        notify_site.until(notify_site.has_seen(seen + 1))
        if notify_site.pid:
            os.kill(
                notify_site.pid, signal.SIGKILL
            )  # unreaped: only this process reaps it, in `until`
    notify_site.until(lambda: notify_site.said[-1:] == [Words(errno=said)])
    numbers = [each.errno for each in notify_site.said if each.errno is not None]
    assert numbers == sorted(numbers)
    assert notify_site.notify_proxy.memory.merged + len(numbers) >= said, (
        "told, or merged with a later one"
    )


def test_a_flood_is_merged_and_counted(notify_site: NotifySite) -> None:
    notify_site.worker.start()
    for number in range(400):
        notify_site.say(f"STATUS={number}")
        if number == 350:
            notify_site.say("READY=1")
        notify_site.until(notify_site.has_seen(number - 5))
    notify_site.until(lambda: any(each.status == "399" for each in notify_site.words))
    assert any(each.state == "READY" for each in notify_site.words)
    assert len(notify_site.words) < 400
    assert len(notify_site.words) + notify_site.notify_proxy.memory.merged >= 401
    assert notify_site.words[AT_ONCE - 1].status == str(AT_ONCE - 1), "so many at once"


def test_what_waits_survives_the_worker(
    notify_site: NotifySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    notify_site.worker.start()
    for number in range(AT_ONCE):
        notify_site.say(f"ERRNO={number}")
        notify_site.hear(Words(errno=number))
    notify_site.say("READY=1\nSTATUS=up")
    notify_site.say("STOPPING=1")
    waiting.wait_true(notify_site.has_seen(AT_ONCE + 2))
    os.kill(notify_site.pid, signal.SIGKILL)
    notify_site.hear(Words(state="READY"), Words(state="STOPPING", status="up"))


def test_what_comes_from_other_cgroups_is_not_told(notify_site: NotifySite) -> None:
    notify_site.notify_proxy.cgroups = dict.fromkeys(
        notify_site.notify_proxy.cgroups, b"/of/another"
    )
    notify_site.worker.start()
    notify_site.say("READY=1")
    notify_site.until(notify_site.has_seen(1))
    assert notify_site.words == []


def test_last_words_are_told_at_once_and_a_hung_worker_does_not_keep_the_end(
    notify_site: NotifySite,
) -> None:
    notify_site.worker.start()
    for number in range(AT_ONCE + 5):
        notify_site.say(f"ERRNO={number}")
        notify_site.until(notify_site.has_seen(number + 1))
    notify_site.say("STOPPING=1")
    ended: list[bool] = []
    notify_site.worker.finish(lambda: ended.append(True))
    notify_site.until(lambda: bool(ended))
    assert notify_site.words[-1].state == "STOPPING"
    assert [each.errno for each in notify_site.words if each.errno is not None][-1] == AT_ONCE + 4


def test_the_end_does_not_wait_for_a_hung_worker(notify_site: NotifySite) -> None:
    ended: list[bool] = []
    with hung(notify_site, "ERRNO=1"):
        notify_site.worker.finish(lambda: ended.append(True))
        notify_site.until(lambda: bool(ended))


def test_an_error_ends_the_feature_and_the_container_is_told(notify_site: NotifySite) -> None:
    failed: list[str] = []

    def fail(_words: Words) -> None:
        raise ValueError("a bug")

    def on_failed(feature: str, error: Exception) -> None:
        failed.append(f"{feature}: {error}")
        notify_site.worker.give_up()

    notify_site.rig.loop._on_failed = on_failed
    notify_site.worker._on_words = fail
    notify_site.worker.start()
    notify_site.say("READY=1")
    notify_site.until(lambda: bool(failed))
    assert failed == ["notify: a bug"]

    def is_refused() -> bool:  # once the worker, too, is dead
        try:
            notify_site.out.send(b"READY=1")
        except ConnectionRefusedError:
            return True
        except BlockingIOError:
            pass
        return False

    notify_site.until(is_refused)
