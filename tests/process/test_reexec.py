"""Becoming another program, and what is left of a try that fails: everything, signals too."""

from __future__ import annotations

import os
import resource
import signal
import socket  # noqa: F401 -- as a supervisor has it before it hands over
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.handover import reexec, reload
from supervisor.handover.reload import Reload
from supervisor.linux import fds
from supervisor.linux.errors import ShimError
from supervisor.linux.exit_status import Exited
from supervisor.linux.signals import SignalRouter
from supervisor.oci.invoke import RuntimeInvoker
from supervisor.state.fd_store import FdWriter
from tests.harness import waiting
from tests.harness.forked import forked

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.rig import Rig

pytestmark = pytest.mark.process


def no_descriptor_more() -> None:
    """Let this process open nothing more."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))


def open_fds() -> dict[str, str]:
    """Return what is open, and what would survive an exec."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = f"{os.readlink(f'/proc/self/fd/{name}')} {os.get_inheritable(int(name))}"
        except FileNotFoundError:  # that of the listing
            continue
    return found


def test_become_is_an_exec_with_the_deposit_and_the_lock() -> None:
    rfd, wfd = fds.pipe()
    script = 'echo "$FORKSHIM_HANDOVER"; '
    script += "for fd in ${FORKSHIM_HANDOVER#* }; do readlink /proc/$$/fd/$fd; done; exit 3"
    lock = fds.Fd(os.open("/", os.O_RDONLY | os.O_CLOEXEC))

    def work() -> None:
        os.dup2(wfd.fileno(), 1)
        reexec.reexec(["/bin/sh", "-c", script], os.environ, {}, FdWriter(), lock.fileno())

    with forked(work) as child:
        assert child.wait() == Exited(3)
    wfd.close()
    variable, *targets = waiting.read_to_end(rfd.fileno()).decode().splitlines()
    assert variable.startswith("become ")
    assert [target.partition(":")[0] for target in targets] == ["socket", "socket", "/"]
    rfd.close()
    lock.close()


def _without_descriptors() -> ShimError:
    no_descriptor_more()
    return reexec.reexec(["/bin/true"], os.environ, {}, FdWriter(), 0)


def _without_a_program() -> ShimError:
    return reexec.reexec(["/no/such/program"], os.environ, {}, FdWriter(), 0)


def _with_too_much() -> ShimError:
    fd_writer = FdWriter()
    for _ in range(253):
        fd_writer.add(0)
    return reexec.reexec(["/bin/true"], os.environ, {}, fd_writer, 0)


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        (_without_descriptors, "handover: too many open files"),
        (_without_a_program, "exec /no/such/program: no such file or directory"),
        (_with_too_much, "handover: 254 descriptors"),
    ],
)
def test_become_that_fails_leaves_everything_as_it_was(
    attempt: Callable[[], ShimError], said: str
) -> None:
    def work() -> None:
        os.set_inheritable(0, False)
        before = open_fds()
        assert str(attempt()) == said
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        assert open_fds() == before

    with forked(work) as child:
        assert child.wait() == Exited(0)


class Source:
    """A container that runs, with nothing to hand over. The supervisor can open no more."""

    container_id = "web"
    command = ("/bin/true",)
    environment = os.environ
    lock_fd = -1
    is_starting = False
    is_running = True

    def __init__(self, rig: Rig) -> None:
        self.is_over = False
        self.invoker = RuntimeInvoker(
            rig.loop,
            rig.reaper,
            name="runc",
            cwd="/",
            null_fd=rig.null.fileno(),
            environment=os.environ,
        )

    @property
    def is_settled(self) -> bool:
        return True

    def document_for_reload(self, fd_writer: FdWriter) -> dict[str, Any]:
        fd_writer.add(0)
        return {"container": {}}

    def reloading(self) -> None:
        """There is no service manager."""

    def reload_is_over(self) -> None:
        self.is_over = True


class PoorSource(Source):
    """It needs a descriptor for its document."""

    def document_for_reload(self, fd_writer: FdWriter) -> dict[str, Any]:
        os.close(os.dup(0))
        return super().document_for_reload(fd_writer)


class ReloadHost:
    """A host with one container."""

    def __init__(self, rig: Rig, source: Source) -> None:
        self.loop, self.log, self.source = rig.loop, rig.log, source

    def reload_sources(self) -> list[Source]:
        return [self.source]

    def front_end_document(self, _fd_writer: FdWriter) -> None:
        """The front end needs nothing."""

    def is_front_end_settled(self) -> bool:
        """It has nothing halfway."""
        return True


@pytest.mark.parametrize("kind", [Source, PoorSource])
def test_after_a_hand_over_that_fails_every_signal_is_heard(rig: Rig, kind: type[Source]) -> None:
    def work() -> None:
        source = kind(rig)
        asked = Reload(ReloadHost(rig, source))
        router = SignalRouter(has_job_control=False)
        no_descriptor_more()
        asked._hand_over()
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
        assert source.is_over
        heard: list[int] = []
        wanted = [signal.SIGTERM, signal.SIGCHLD]
        for signum in wanted:
            signal.raise_signal(signum)
        router.dispatch(heard.append)
        assert heard == wanted

    with forked(work) as child:
        assert child.wait() == Exited(0)
    (message,) = (each for each in rig.messages() if "not reloaded" in each)
    assert message.endswith("too many open files")


class RestlessSource(Source):
    """Something of it is always halfway."""

    looks = 0

    @property
    def is_settled(self) -> bool:
        self.looks += 1
        return False


def test_a_reload_does_not_wait_for_ever_for_a_moment(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "_PATIENCE_S", 0.3)
    source = RestlessSource(rig)
    asked = Reload(ReloadHost(rig, source))
    asked.ask()
    rig.run_until(lambda: source.is_over)
    assert 5 <= source.looks <= 12
    (message,) = rig.messages("warn")
    assert message.endswith("goes on: its workers do not come to rest")


class RestlessHost(ReloadHost):
    """Its front end is halfway for the first looks."""

    looks = 0

    def __init__(self, rig: Rig, source: Source, *, settles_after: int) -> None:
        super().__init__(rig, source)
        self._settles_after = settles_after

    def is_front_end_settled(self) -> bool:
        self.looks += 1
        return self.looks > self._settles_after


def test_a_reload_waits_for_the_front_end_before_its_dry_run_and_before_the_exec(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = RestlessHost(rig, Source(rig), settles_after=4)
    tried: list[int] = []

    def dry_run(*given: Any) -> None:
        tried.append(host.looks)
        given[-1]("")

    def become(*_given: Any) -> ShimError:
        tried.append(host.looks)
        return ShimError("enough")

    monkeypatch.setattr(reexec, "dry_run", dry_run)
    monkeypatch.setattr(reexec, "reexec", become)
    Reload(host).ask()
    rig.run_until(lambda: host.source.is_over)
    assert tried == [5, 6]


def test_a_front_end_that_does_not_settle_keeps_the_old_version(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "_PATIENCE_S", 0.3)
    host = RestlessHost(rig, Source(rig), settles_after=1 << 30)
    Reload(host).ask()
    rig.run_until(lambda: host.source.is_over)
    (message,) = rig.messages("warn")
    assert message.endswith("goes on: a client's request or an event is under way")


def test_a_reload_of_several_says_which_container_is_on_its_way_out(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "_PATIENCE_S", 0.3)
    sources = [Source(rig), Source(rig)]
    sources[1].container_id, sources[1].is_running = "db", False
    host = ReloadHost(rig, sources[0])
    monkeypatch.setattr(host, "reload_sources", lambda: sources)
    Reload(host).ask()
    rig.run_until(lambda: sources[0].is_over)
    (message,) = rig.messages("warn")
    assert message.endswith("goes on: db does not run, and has not ended")


def test_a_reload_of_several_waits_for_a_container_that_is_being_started(rig: Rig) -> None:
    sources = [Source(rig), Source(rig)]
    sources[1].is_starting, sources[1].is_running = True, False
    host = ReloadHost(rig, sources[0])
    host.reload_sources = lambda: sources  # type: ignore[method-assign]
    asked = Reload(host)
    asked.ask()
    asked.look()
    assert rig.messages() == []
    sources.pop()  # it has failed to start
    asked.look()
    rig.run_until(lambda: sources[0].is_over)
    (message,) = rig.messages("warn")
    assert "goes on: exit status 0" in message  # /bin/true is no supervisor
