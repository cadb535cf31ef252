"""A container that has its own sd_notify, and is the attacker, in a booted systemd.

systemd splits a datagram at carriage returns as well as at line feeds. A word of ours that lets one
through has the manager hear lines of the container's: the pid of another service as the unit's main
one, and `systemctl stop` of the container then kills that service.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.conftest import Services

pytestmark = pytest.mark.booted

ADOPT = "/usr/share/doc/forkshim/examples/forkshim@.service.d/adopt.conf"
ATTACKS = """
import itertools, os, signal, socket, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
out.connect(os.environ["NOTIFY_SOCKET"])
victim = sys.argv[1]
out.send(b"STATUS=waits")
signal.sigwait({signal.SIGUSR1})
wanted = (
    f"MAINPID={victim}",
    "NOTIFYACCESS=all",
    "FDSTOREREMOVE=1{end}FDNAME=forkshim-front",
    "FDPOLL=0{end}FDSTORE=1{end}FDNAME=forged",
)
words = (
    "", "ERRNO=0", "STATUS=x", "BUSERROR=a.b", "WATCHDOG=1", "READY=1",
    "EXTEND_TIMEOUT_USEC=1", "RELOADING=1\\nMONOTONIC_USEC=1",
)
for end, word, line in itertools.product(("\\r", "\\n", "\\r\\n", "\\n\\r"), words, wanted):
    line = line.format(end=end)
    for text in (f"{word}{end}{line}", f"{word}{end}{line}{end}", f"{line}{end}{word}"):
        socket.send_fds(out, [text.encode()], [0])
        time.sleep(0.002)
time.sleep(2)  # the messages come faster than 10 a second: the rest is told meanwhile
out.send(b"READY=1\\nSTATUS=all was said")
signal.sigwait({signal.SIGTERM})
"""
VICTIM = """\
[Service]
ExecStart=/bin/sleep infinity
"""
FACTS = ("MainPID", "NotifyAccess", "NFileDescriptorStore")


@pytest.fixture
def victim(services: Services) -> Iterator[str]:
    """Return the pid of another service's main process."""
    services.bed.write("/etc/systemd/system/victim.service", VICTIM)
    services.bed.ctl("systemctl", "daemon-reload", check=True)
    services.bed.ctl("systemctl", "start", "victim.service", check=True)
    yield services.bed.show("victim.service", "MainPID")["MainPID"]
    services.bed.ctl("systemctl", "stop", "victim.service")
    services.bed.ctl("rm", "/etc/systemd/system/victim.service", check=True)


def test_no_word_of_a_container_makes_another_service_its_own(
    services: Services, victim: str
) -> None:
    rootfs, mounts = bundles.make_host_rootfs(services.directory / f"rootfs-{victim}")
    document = bundles.config(rootfs, ["/usr/bin/python3", "-c", ATTACKS, victim], mounts=mounts)
    document["root"]["path"] = f"/var/lib/forkshim/{rootfs.name}"
    settings = services.bed.read(ADOPT).split("[Service]\n")[1]
    unit = services.add_bundle(
        "attacks", document, f"{settings}Environment=FORKSHIM_OPTIONS=--sdnotify=container"
    )
    name = unit.removeprefix("forkshim@").removesuffix(".service")
    services.bed.ctl("systemctl", "start", "--no-block", unit, check=True)
    _wait_for_status(services, unit, "waits")
    before = {
        "MainPID": services.bed.read(f"/run/forkshim/{name}/supervisor.pid").strip(),
        "NotifyAccess": "main",
        "NFileDescriptorStore": "2",  # both ends of the deposit
    }
    waiting.wait_true(lambda: services.bed.show(unit, *FACTS) == before)
    pid = services.bed.read(f"/run/forkshim/{name}/init/pid").strip()
    services.bed.ctl("kill", "-USR1", pid, check=True)
    _wait_for_status(services, unit, "all was said")
    assert services.bed.show(unit, *FACTS) == before
    services.bed.ctl("systemctl", "stop", unit, check=True)
    assert services.bed.wait_until_inactive(unit) == "inactive"
    assert services.bed.show("victim.service", "MainPID", "ActiveState") == {
        "MainPID": victim,
        "ActiveState": "active",
    }


def _wait_for_status(services: Services, unit: str, status: str) -> None:
    def is_told() -> bool:
        return f": {status}, stdout " in services.bed.show(unit, "StatusText")["StatusText"]

    waiting.wait_true(is_told)
