"""Socket units for a container, beside the FD store of its supervisor, in a booted systemd."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness import waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.systemd.conftest import Services

pytestmark = pytest.mark.booted

ADOPT = "/usr/share/doc/forkshim/examples/forkshim@.service.d/adopt.conf"
ANSWERS = """
trap 'exit 0' TERM
echo $LISTEN_FDS $LISTEN_PID $LISTEN_FDNAMES
while :; do read line <&3 && echo got $line; done
"""
SOCKETS = """\
[Socket]
ListenFIFO=/run/{name}.fifo
Service=forkshim@{name}.service
FileDescriptorName=orders
RemoveOnStop=yes
"""


@pytest.fixture
def activated(services: Services) -> Iterator[tuple[str, str]]:
    """Return a unit with a socket unit that is started, and the fifo's name. It runs on demand."""
    settings = services.bed.read(ADOPT).split("[Service]\n")[1]
    unit = services.add("activated", ANSWERS, f"{settings}RestartSec=100ms")
    name = unit.removeprefix("forkshim@").removesuffix(".service")
    socket = f"{name}.socket"
    services.bed.write(f"/etc/systemd/system/{socket}", SOCKETS.format(name=name))
    services.bed.write(
        f"/etc/systemd/system/{unit}.d/socket.conf", f"[Service]\nSockets={socket}\n"
    )
    services.bed.ctl("systemctl", "daemon-reload", check=True)
    services.bed.ctl("systemctl", "start", socket, check=True)
    yield unit, f"/run/{name}.fifo"
    services.bed.ctl("systemctl", "stop", socket)
    services.bed.ctl("rm", "-f", f"/etc/systemd/system/{socket}")


def say(services: Services, fifo: str, word: str) -> None:
    services.bed.ctl("sh", "-c", f"echo {word} > {fifo}", check=True)


def test_a_container_answers_on_its_units_socket_and_so_it_does_after_an_adoption(
    services: Services, activated: tuple[str, str]
) -> None:
    unit, fifo = activated
    say(services, fifo, "one")  # starts it
    waiting.wait_true(lambda: "got one" in services.lines(unit))
    assert services.lines(unit)[:2] == ["1 1 orders", "got one"]
    show = services.bed.show(unit, "MainPID")
    services.bed.ctl("kill", "-KILL", show["MainPID"], check=True)
    waiting.wait_true(lambda: services.bed.show(unit, "NRestarts", "ActiveState") ==
                      {"NRestarts": "1", "ActiveState": "active"})  # fmt: skip
    say(services, fifo, "two")
    waiting.wait_true(lambda: "got two" in services.lines(unit))
    services.bed.ctl("systemctl", "stop", unit, check=True)
    say_again = ["1 1 orders", "got one", "got two"]
    assert [line for line in services.lines(unit) if "forkshim:" not in line] == say_again
