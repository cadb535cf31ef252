"""A container that speaks sd_notify itself: what of it arrives, and from whom."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, waiting
from tests.runtime.test_service import Manager

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.runc

PROXIED = "--sdnotify=container"
PRELUDE = """
import os, signal, socket, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
if os.environ.get("NOTIFY_SOCKET"):
    out.connect(os.environ["NOTIFY_SOCKET"])
def say(text, *fds):
    socket.send_fds(out, [text.encode()], fds)
def wait():
    print("ready", flush=True)
    if signal.sigwait({signal.SIGUSR1, signal.SIGTERM}) == signal.SIGTERM:
        sys.exit()
"""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.close()


@pytest.fixture
def make_python(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a bundle of a Python script."""

    def make(script: str) -> Path:
        rootfs, mounts = bundles.make_host_rootfs(tmp_path / "rootfs")
        args = ["/usr/bin/python3", "-c", PRELUDE + script]
        document = bundles.config(rootfs, args, mounts=mounts)
        return bundles.make_bundle(tmp_path / "bundle", document)

    return make


def first_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def statuses(words: list[str]) -> list[str]:
    return [word for word in words if word.startswith("STATUS=")]


def test_status_and_ready_in_one_datagram_then_watchdog_and_more_time(
    manager: Manager, make_python: Callable[..., Path]
) -> None:
    script = """
say("STATUS=warming up")
say("STATUS=up\\nREADY=1")
say("WATCHDOG=1\\nEXTEND_TIMEOUT_USEC=5000000")
wait()
say("STOPPING=1\\nERRNO=7")
sys.exit(3)
"""
    process = manager.start(make_python(script), PROXIED)
    before = manager.hear("READY=1")
    assert any(": warming up, stdout " in word for word in statuses(before))
    assert ": up, stdout " in before[-1], "in the same message"
    after = manager.hear("EXTEND_TIMEOUT_USEC=5000000")
    assert "WATCHDOG=1" in after
    assert first_line(process) == b"ready\n"
    process.send_signal(signal.SIGUSR1)
    assert manager.ended()[:2] == (3, "")
    rest = manager.hear_rest()
    assert "READY=1" not in rest
    assert rest[rest.index("STOPPING=1") + 1] == "ERRNO=7"


def test_a_container_that_never_says_so_is_not_ready(
    manager: Manager, make_python: Callable[..., Path]
) -> None:
    process = manager.start(make_python("wait()"), PROXIED)
    assert first_line(process) == b"ready\n"
    process.terminate()
    assert manager.ended()[0] == 0
    assert "READY=1" not in manager.hear_rest()


def test_what_it_says_with_its_last_breath_is_heard(
    manager: Manager, make_python: Callable[..., Path]
) -> None:
    manager.start(make_python("say('READY=1\\nERRNO=5'); os._exit(5)"), PROXIED)
    assert manager.ended()[0] == 5
    heard = manager.hear_rest()
    assert heard.index("READY=1") + 1 == heard.index("ERRNO=5") < heard.index("STOPPING=1")


def test_it_cannot_become_the_main_process_nor_store_descriptors(
    manager: Manager, make_python: Callable[..., Path]
) -> None:
    script = """
say("MAINPID=1\\nNOTIFYACCESS=all\\nREADY=1")
say("FDSTORE=1\\nFDNAME=x", 0, 1, 2)
say("STATUS=" + "X" * 5000)
r, w = os.pipe()
say("BARRIER=1", w)
os.close(w)
os.read(r, 1)  # end of file: the barrier is answered, as systemd-notify waits for
wait()
"""
    process = manager.start(make_python(script), PROXIED)
    assert first_line(process) == b"ready\n"
    targets = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in _fds(process.pid)]
    assert targets.count("/dev/null") <= 2, targets
    process.terminate()
    manager.ended()
    words = manager.hear_rest()
    assert "READY=1" in words
    assert not [word for word in words if word.startswith(("MAINPID", "NOTIFYACCESS", "FD"))]
    assert not [word for word in statuses(words) if "XXX" in word]


def _fds(pid: int) -> list[str]:
    return os.listdir(f"/proc/{pid}/fd")


def test_nobody_else_is_heard(manager: Manager, make_python: Callable[..., Path]) -> None:
    process = manager.start(make_python("wait(); say('STATUS=its own'); wait()"), PROXIED)
    assert first_line(process) == b"ready\n"
    home = manager.root / manager.id
    assert home.stat().st_mode & 0o077 == 0, "root's alone"
    directory = os.open(home / "init/notify", os.O_PATH)  # its own path is too long for a socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        name = f"/proc/self/fd/{directory}/notify.sock"
        stranger.sendto(b"STATUS=a stranger's\nREADY=1", name)
    os.close(directory)
    process.send_signal(signal.SIGUSR1)
    assert first_line(process) == b"ready\n"
    process.terminate()
    manager.ended()
    words = manager.hear_rest()
    assert any(": its own, stdout " in word for word in statuses(words))
    assert "READY=1" not in words
    assert not [word for word in words if "stranger" in word]


def test_without_the_option_or_a_manager_it_has_no_socket(
    manager: Manager, make_python: Callable[..., Path]
) -> None:
    bundle = make_python("print(os.environ.get('NOTIFY_SOCKET'), flush=True)")
    manager.start(bundle)
    assert manager.ended()[:2] == (0, "None\n")
    assert "READY=1" in manager.hear_rest()
    manager.start(bundle, PROXIED, NOTIFY_SOCKET="")
    assert manager.ended()[:2] == (0, "None\n")


def test_its_signs_of_life_take_the_place_of_ours(
    manager: Manager, make_python: Callable[..., Path]
) -> None:
    """Else a container that hangs would be kept alive by a supervisor that does not."""
    script = """
print(os.environ["WATCHDOG_USEC"], flush=True)
wait()
say("WATCHDOG=1\\nERRNO=1")
time.sleep(0.3)  # thirty of ours
say("ERRNO=2")
wait()
"""
    process = manager.start(make_python(script), PROXIED, WATCHDOG_USEC="20000")
    assert first_line(process) == b"20000\n"
    assert first_line(process) == b"ready\n"
    manager.hear("WATCHDOG=1")  # ours
    process.send_signal(signal.SIGUSR1)
    manager.hear("ERRNO=1")
    assert "WATCHDOG=1" not in manager.hear("ERRNO=2")
    assert first_line(process) == b"ready\n"
    process.terminate()
    manager.ended()


def test_a_bundle_that_it_cannot_be_told_by_is_named_and_nothing_is_left(
    manager: Manager, make_python: Callable[..., Path]
) -> None:
    bundle = make_python("")
    config = bundle / "config.json"
    document = json.loads(config.read_text())
    document["process"]["env"] = "PATH=/bin"
    config.write_text(json.dumps(document))
    manager.start(bundle, PROXIED)
    said = f"forkshim: {manager.id}: {config}: process.env: not a list: 'PATH=/bin'\n"
    assert manager.ended() == (6, "", said)
    assert os.listdir(manager.root) == []


LINGER = """
import struct
def send_lingering():
    listener = socket.create_server(("127.0.0.1", 0))
    sender = socket.create_connection(listener.getsockname())
    peer, _address = listener.accept()
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 600))
    sender.setblocking(False)
    try:
        while True:
            sender.send(bytes(65536))
    except BlockingIOError:
        pass
    keeper = os.fork()  # keeps the peer, which reads nothing
    if keeper == 0:
        os.dup2(peer.fileno(), 10)
        os.closerange(3, 10)
        os.closerange(11, 100)
        time.sleep(1000)
    if os.fork() == 0:
        for _each in range(3):
            say("STATUS=hung", sender.fileno())
    os._exit(0)  # all of them: a process's end is no close(2), it does not sleep
"""


def test_a_descriptor_whose_close_sleeps_delays_neither_a_stop_nor_a_sign_of_life(
    manager: Manager, make_python: Callable[..., Path]
) -> None:
    """An attack: a TCP socket with unsent data and SO_LINGER, beside each message."""
    script = (
        LINGER
        + """
say("READY=1")
if os.fork() == 0:
    send_lingering()
os.wait()
say("ERRNO=9")
wait()
"""
    )
    process = manager.start(make_python(script), PROXIED, WATCHDOG_USEC="100000")
    manager.hear("READY=1")
    manager.hear("ERRNO=9")
    assert first_line(process) == b"ready\n"
    manager.hear("WATCHDOG=1")
    process.terminate()
    assert manager.ended()[0] == 0


def test_it_goes_on_through_a_reload(manager: Manager, make_python: Callable[..., Path]) -> None:
    script = """
say("READY=1")
wait()
say("ERRNO=1")
wait()
say("STATUS=after")
wait()
"""
    process = manager.start(make_python(script), PROXIED)
    manager.hear("READY=1")
    for count in range(2):
        assert first_line(process) == b"ready\n"
        process.send_signal(signal.SIGHUP)
        manager.hear("RELOADING=1")
        manager.hear("READY=1")
        waiting.wait_true(lambda: _notify_workers(process.pid) == 1)
        process.send_signal(signal.SIGUSR1)
        heard = manager.hear("ERRNO=1" if count == 0 else "STATUS=")
        assert "READY=1" not in heard
    assert first_line(process) == b"ready\n"
    process.terminate()
    assert manager.ended()[0] == 0


def _notify_workers(pid: int) -> int:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        children = file.read().split()
    count = 0
    for child in children:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ends just now
            title = Path(f"/proc/{child}/cmdline").read_bytes().rstrip(b"\0")
            count += title.endswith(b"[notify]")
    return count


def test_what_it_has_said_is_known_to_an_adopter(
    manager: Manager, make_python: Callable[..., Path]
) -> None:
    """It is silent afterwards: the words themselves are published, before systemd has them."""
    script = "say('STATUS=open\\nREADY=1'); signal.sigwait({signal.SIGTERM})"
    manager.start(make_python(script), PROXIED)
    manager.hear("READY=1")
    adopter = manager.replace()
    words = manager.hear("READY=1")
    assert "open" in statuses(words)[-1]
    adopter.terminate()
    assert manager.ended()[0] == 0
