"""The system's clock jumps, while a container runs and while it is being stopped.

In a VM, which has a clock of its own. Nothing that waits may look at it: not the grace period, not
the signs of life for systemd's watchdog, not the watch over workers that do not move.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from tests.harness import bundles, waiting
from tests.harness.rewriting import cri_records
from tests.systemd import guest
from tests.systemd.guest import shell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.beds.vm import VM

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]

LIMIT_S = 240.0
DAY_S = 86400
GRACE_S = 600
UNIT = """
[Service]
Type=notify
KillMode=mixed
Delegate=yes
WatchdogSec=20
ExecStart={forkshim} run --log cri,max-size=64k,keep=1000:{directory}/log \\
    --stop-timeout {grace_s} --exit-dir {exits} --bundle {bundle} {name}
"""
LINE = "%s %d " + "." * 800
COUNTS = f"""
n=0; asked=
say() {{ n=$((n+1)); printf '{LINE}\\n' out $n; printf '{LINE}\\n' err $n >&2; sleep 0.01; }}
trap asked=yes TERM
until [ $asked ]; do say; done
echo asked > /tmp/c/asked
until [ -e /tmp/c/enough ]; do say; done
echo bye
exit 37
"""
DEAF = "trap 'echo asked > /tmp/c/asked' TERM; while :; do sleep 0.1; done"
RFC3339 = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z"


class Unit:
    """A container as a service of the guest; its log is in `directory`, which it has as /tmp/c."""

    def __init__(self, vm: VM, name: str, script: str, *, grace_s: int) -> None:
        self.vm = vm
        self.name = name
        self.directory = f"/run/c/{name}"
        self.kills = 0
        shell(vm, f"mkdir -p {self.directory}")
        mount = bundles.bind(self.directory, "/tmp/c")
        unit = UNIT.format(
            forkshim=guest.FORKSHIM,
            directory=self.directory,
            grace_s=grace_s,
            exits=guest.EXITS,
            bundle=guest.make_bundle(vm, name, script, mounts=[mount]),
            name=name,
        )
        vm.write(f"/run/systemd/system/{name}.service", unit)
        shell(vm, f"systemctl daemon-reload; systemctl start {name}")

    def show(self, name: str) -> str:
        return shell(self.vm, f"systemctl show -P {name} {self.name}")

    def ask_to_stop(self) -> None:
        """Ask, and return when the container has been asked."""
        shell(self.vm, f"systemctl stop --no-block {self.name}")
        self._wait_true(lambda: self._has("asked"))

    def wait_stopped(self) -> None:
        """Join the stop that is under way."""
        done = self.vm.raw("systemctl", "stop", self.name, timeout_s=LIMIT_S)
        assert done.returncode == 0, done

    def wait_respawned(self) -> None:
        """Kill the worker of stdout, and wait for the one after it: the loop has gone round."""
        before = self._worker()
        assert before, self.show("SubState")
        shell(self.vm, f"kill -9 {before}")
        self.kills += 1
        self._wait_true(lambda: self._worker() not in ("", before))

    def wait_for_a_sign_of_life(self) -> None:
        """Wait until systemd has heard of it again."""
        heard = self.show("WatchdogTimestampMonotonic")
        self._wait_true(lambda: self.show("WatchdogTimestampMonotonic") != heard)

    def wait_for_more(self) -> None:
        """Wait until so much more has been said that the log was rotated."""
        count = self._rotations()
        self._wait_true(lambda: self._rotations() > count)

    def log(self) -> bytes:
        """Return what all files of the log hold, the oldest first."""
        old = f"ls -d {self.directory}/log.* | sort -t . -k 2 -n -r"
        return shell(self.vm, f"cat $({old}) {self.directory}/log").encode() + b"\n"

    def _wait_true(self, is_there: Callable[[], bool]) -> None:
        """Wait for it, but not beyond the end of the service."""

        def look() -> bool:
            is_found = is_there()
            state = self.show("SubState")  # only now: what was found may be its end's doing
            assert state in ("running", "stop-sigterm"), (state, self.show("Result"))
            return is_found

        waiting.wait_true(look, LIMIT_S)

    def _has(self, name: str) -> bool:
        return self.vm.raw("test", "-e", f"{self.directory}/{name}").returncode == 0

    def _worker(self) -> str:
        return shell(self.vm, f"pgrep -xf 'forkshim: {self.name} .stdout.' || true")

    def _rotations(self) -> int:
        numbers = shell(self.vm, f"ls {self.directory} | sed -n 's/^log[.]//p'").split()
        return max(map(int, numbers), default=0)


def jump(vm: VM, seconds: int) -> None:
    """Set CLOCK_REALTIME of the guest."""
    shell(vm, f"date --set @$(($(date +%s) + {seconds}))")


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VM]:
    with guest.booted(tmp_path_factory.mktemp("job") / "job") as vm:
        yield vm


def test_a_container_does_not_notice_that_the_clock_jumps(vm: VM) -> None:
    unit = Unit(vm, "counts", COUNTS, grace_s=GRACE_S)

    def jump_about() -> None:
        for days in (1, -2, 1):
            jump(vm, days * DAY_S)
            unit.wait_respawned()
            unit.wait_for_more()
            if days == -2:  # a timer that was set in between would be two days late
                unit.wait_for_a_sign_of_life()

    unit.wait_for_more()
    jump_about()
    unit.ask_to_stop()
    jump_about()
    shell(vm, f"touch {unit.directory}/enough")
    unit.wait_stopped()
    assert (unit.show("Result"), unit.show("ExecMainStatus")) == ("exit-code", "37")
    said: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    stamps = []
    for stamp, stream, tag, text in cri_records(unit.log()):
        assert tag == "F"
        said[stream].append(text)
        stamps.append(datetime.fromisoformat(stamp.decode()))
    assert said["stdout"].pop() == b"bye"
    numbers = range(1, len(said["stdout"]) + 1)
    assert said["stdout"] == [(LINE % ("out", number)).encode() for number in numbers]
    assert said["stderr"] == [(LINE % ("err", number)).encode() for number in numbers]
    assert max(stamps) - min(stamps) > timedelta(days=1), "the clock has not jumped"
    record = guest.exit_record(vm, "counts")
    assert (record["exitCode"], record["signal"], record["stopRequested"]) == (37, None, True)
    assert record["streams"]["stdout"]["respawned"] == unit.kills
    assert record["streams"]["stderr"]["respawned"] == 0
    for name in ("began", "ended"):
        assert re.fullmatch(RFC3339, record[name])
        assert datetime.fromisoformat(record[name]).tzinfo == UTC


def test_a_grace_period_ends_although_the_clock_was_set_back(vm: VM) -> None:
    unit = Unit(vm, "deaf", DEAF, grace_s=3)
    unit.ask_to_stop()
    jump(vm, -2 * DAY_S)
    unit.wait_stopped()
    jump(vm, 2 * DAY_S)
    assert unit.show("Result") == "success"
    record = guest.exit_record(vm, "deaf")
    assert (record["signal"], record["stopRequested"]) == ("SIGKILL", True)


def test_another_engines_container_is_not_taken_for_ours_by_its_date(vm: VM) -> None:
    """It has our ID and our bundle, and seems to be younger than what we have tried to make."""
    bundle = guest.make_bundle(vm, "twin", "true")
    shell(vm, f"runc create --bundle {bundle} twin < /dev/null > /dev/null 2>&1")
    jump(vm, -2 * DAY_S)
    run = (guest.FORKSHIM, "run", "--bundle", bundle, "twin")
    done = vm.raw(*run)
    jump(vm, 2 * DAY_S)
    assert done.returncode == 1
    assert "exist" in done.stderr
    assert json.loads(shell(vm, "runc state twin"))["status"] == "created"
