"""The crew: killed workers are replaced, errors are mended, and nothing is lost meanwhile."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
from typing import TYPE_CHECKING

import pytest

from supervisor.children import restart_policy
from supervisor.children.restart_policy import ErrorAction
from supervisor.io.worker_process import WorkerState
from supervisor.linux import fds, spawn
from tests.harness import waiting
from tests.harness.forked import has_no_children
from workers.copy import output, stdin
from workers.process import report

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.stream_site import Site
    from workers.copy.route import Route
    from workers.process.context import WorkerContext

pytestmark = pytest.mark.process


def test_each_stream_is_copied_and_is_over_at_its_end(site: Site) -> None:
    ends = [site.output("stdout"), site.output("stderr")]
    site.start()
    for number, (writer, _reader, _stream) in enumerate(ends):
        os.write(writer, b"%d" % number)
        site.disown(writer)
    site.run_until(lambda: all(stream.is_closed for _w, _r, stream in ends))
    site.run_until(lambda: not site.stream_set.has_workers)
    for number, (_writer, reader, stream) in enumerate(ends):
        assert os.read(reader, 99) == b"%d" % number
        assert site.stream_set.copied_bytes(stream) == 1
        assert not waiting.has_hung_up(reader)  # the client's side stays open to the end
        assert not stream.has_pending()
    assert site.overs == 2
    assert site.rig.messages() == []


def test_a_crashed_worker_is_replaced_on_the_same_descriptors(site: Site) -> None:
    writer, reader, stream = site.output()
    site.start()
    route = stream.route
    for number in range(3):
        os.write(writer, b"%d" % number)
        waiting.wait_readable(reader)
        assert os.read(reader, 99) == b"%d" % number
        waiting.wait_true(lambda number=number: site.stream_set.copied_bytes(stream) == number + 1)  # type: ignore[misc] # bound now
        site.kill_worker_of(stream)
        assert stream.route == route
    assert route.capacity_bytes == fcntl.fcntl(route.source_fd, fcntl.F_GETPIPE_SZ)
    assert site.slot(stream).history.deaths == 3
    assert site.stream_set.copied_bytes(stream) == 3
    assert [message for message in site.rig.messages("warn") if "replaced" in message] == [
        "stdout: worker killed by SIGKILL, replaced; deaths: 1",
        "stdout: worker killed by SIGKILL, replaced; deaths: 2",
    ]
    site.disown(writer)
    site.run_until(lambda: stream.is_closed)


def test_what_a_worker_was_killed_amidst_arrives_whole(site: Site) -> None:
    content = bytes(range(256)) * 4096
    writer, reader, stream = site.output()
    os.write(writer, content)
    site.disown(writer)
    site.start()
    got = b""
    while len(got) < len(content):
        waiting.wait_readable(reader)
        got += os.read(reader, 200_000)
        if not stream.is_closed:
            site.kill_worker_of(stream)
    assert got == content


def test_a_worker_that_dies_again_and_again_without_progress_is_given_pauses(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "work", lambda _context, _route: os._exit(3))
    monkeypatch.setattr(restart_policy, "_SHORTEST_PAUSE_S", 1e-6)
    _writer, _reader, stream = site.output()
    site.start()
    site.run_until(lambda: site.slot(stream).history.deaths == 20)
    assert site.slot(stream).history.deaths_without_progress == 20
    assert site.rig.messages("warn") == [
        *(
            f"stdout: worker exit status 3, replaced; deaths: {deaths}"
            for deaths in (1, 2, 4, 8, 16)
        ),
        "stdout: degraded: its workers die without progress: exit status 3; the supervisor forks "
        "another at least every 5 s; the container waits when its pipe is full",
    ]


def test_a_stream_whose_workers_do_not_live_says_so_until_one_does(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = output.work
    monkeypatch.setattr(output, "work", lambda _context, _route: os._exit(3))
    monkeypatch.setattr(restart_policy, "_SHORTEST_PAUSE_S", 1e-6)
    writer, reader, stream = site.output()
    site.start()
    site.run_until(lambda: site.stream_set.trouble(stream) != "")
    assert site.troubles > 0
    assert site.slot(stream).history.deaths == restart_policy.DEGRADED_AFTER
    assert (
        site.stream_set.trouble(stream)
        == "degraded: its workers die without progress: exit status 3"
    )
    monkeypatch.setattr(output, "work", work)
    os.write(writer, b"x")
    site.run_until(
        lambda: (
            site.slot(stream).history.deaths > restart_policy.DEGRADED_AFTER
            and site.slot(stream).pid > 0
        )
    )
    waiting.wait_readable(reader)
    waiting.wait_true(lambda: site.stream_set.copied_bytes(stream) == 1)
    assert site.stream_set.trouble(stream) == ""
    assert site.rig.messages("info") == [
        "stdout: recovered (was: degraded: its workers die without progress: exit status 3)"
    ]


def test_progress_makes_the_earlier_deaths_forgotten(site: Site) -> None:
    writer, reader, stream = site.output()
    site.start()
    for _each in range(2):
        site.kill_worker_of(stream)
    assert site.slot(stream).history.deaths_without_progress == 2
    os.write(writer, b"x")
    waiting.wait_readable(reader)
    waiting.wait_true(lambda: site.stream_set.copied_bytes(stream) == 1)
    site.kill_worker_of(stream)
    assert (
        site.slot(stream).history.deaths,
        site.slot(stream).history.deaths_without_progress,
    ) == (3, 0)


@pytest.mark.parametrize("record", [b"junk\n", b"{", b"x" * 5000, b"{}\n"])
def test_a_report_that_is_junk_counts_as_a_crash(
    site: Site, monkeypatch: pytest.MonkeyPatch, record: bytes
) -> None:
    work = output.work

    def junk(context: WorkerContext, _route: Route) -> None:
        monkeypatch.setattr(output, "work", work)
        rest = memoryview(record)
        while rest:
            rest = rest[os.write(context.report_wfd, rest) :]
        os._exit(0)

    monkeypatch.setattr(output, "work", junk)
    writer, reader, stream = site.output()
    site.start()
    monkeypatch.setattr(output, "work", work)
    os.write(writer, b"x")
    site.disown(writer)
    site.run_until(lambda: stream.is_closed)
    assert os.read(reader, 9) == b"x"
    assert site.slot(stream).history.deaths == 1
    assert any(message.startswith("stdout: worker: ") for message in site.rig.messages("warn"))


def test_a_sink_that_nobody_reads_hangs_up_on_the_container(site: Site) -> None:
    writer, reader, stream = site.output()
    site.start()
    site.disown(reader)
    os.write(writer, b"x")
    site.run_until(lambda: stream.is_closed)
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"y")
    assert site.rig.messages("warn") == [
        f"stdout the sink: Broken pipe (EPIPE) after 0 bytes; {ErrorAction.HANG_UP.value}"
    ]


def test_a_console_whose_sink_nobody_reads_is_read_on_and_thrown_away(site: Site) -> None:
    sink_rfd, sink = fds.pipe()
    slave, stream = site.console(sink)
    sink_rfd.close()
    site.start()
    os.write(slave, b"x")
    site.run_until(lambda: site.rig.log_path.stat().st_size > 0)
    for _each in range(100):
        os.write(slave, b"y" * 1000)  # more than a terminal would hold
    site.disown(slave)
    site.run_until(lambda: stream.is_closed)
    assert site.rig.messages("warn") == [
        f"console the sink: Broken pipe (EPIPE) after 0 bytes; {ErrorAction.DISCARD.value}"
    ]


def test_a_full_disk_is_tried_again_and_said_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restart_policy, "_SHORTEST_PAUSE_S", 1e-6)
    writer, _reader, stream = site.output(sink=fds.Fd(os.open("/dev/full", os.O_WRONLY)))
    site.start()
    for errors in range(1, 6):
        os.write(writer, b"x")
        site.run_until(lambda errors=errors: site.slot(stream).history.errors_in_a_row == errors)  # type: ignore[misc] # bound now
    assert not stream.is_closed
    assert site.rig.messages("warn") == [
        "stdout the sink: No space left on device (ENOSPC) after 0 bytes; "
        f"{ErrorAction.RETRY.value}"
    ]


def test_an_error_after_progress_is_said_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart_policy, "_SHORTEST_PAUSE_S", 1e-6)

    def moves_a_little(context: WorkerContext, _route: Route) -> None:
        context.add_copied(1)
        context.send(report.Report(context.stream, 1, errno.ENOSPC, "sink"))

    monkeypatch.setattr(output, "work", moves_a_little)
    _writer, _reader, stream = site.output()
    stream.sink_name = ""
    site.start()
    site.run_until(lambda: len(site.rig.messages("warn")) == 2)
    assert [message.partition(";")[0] for message in site.rig.messages("warn")] == [
        "stdout: No space left on device (ENOSPC) after 1 bytes",
        "stdout: No space left on device (ENOSPC) after 2 bytes",
    ]


def test_a_container_that_closes_its_stdin_ends_it_without_a_word(site: Site) -> None:
    client, container, stream = site.stdin()
    site.start()
    os.write(client, b"x")
    waiting.wait_readable(container)
    site.disown(container)
    site.run_until(lambda: stream.is_closed)
    assert site.rig.messages() == []
    assert site.stream_set.outputs == []


def test_stdin_is_closed_at_its_end_and_the_container_sees_it(site: Site) -> None:
    client, container, stream = site.stdin()
    site.start()
    os.write(client, b"x")
    site.disown(client)
    site.run_until(lambda: stream.is_closed)
    assert waiting.read_to_end(container) == b"x"


def test_a_stdin_that_fails_is_said_and_closed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(context: WorkerContext, _route: Route, _raw: stdin.RawTerminal | None) -> None:
        context.send(report.Report("stdin", 0, errno.EISDIR, "source"))

    monkeypatch.setattr(stdin, "work", fails)
    _client, container, stream = site.stdin()
    site.start()
    site.run_until(lambda: stream.is_closed)
    assert waiting.read_to_end(container) == b""
    assert site.rig.messages("warn") == [
        f"stdin: Is a directory (EISDIR) after 0 bytes; {ErrorAction.HANG_UP.value}"
    ]


def test_a_fork_that_fails_is_tried_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_worker = spawn.fork_worker
    failures: list[int] = []

    def fails_twice(work: Callable[[], None]) -> int:
        if len(failures) < 2:
            failures.append(errno.EAGAIN)
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork_worker(work)

    monkeypatch.setattr(spawn, "fork_worker", fails_twice)
    monkeypatch.setattr(restart_policy, "FORK_AGAIN_S", 1e-6)
    writer, reader, stream = site.output()
    site.start()
    os.write(writer, b"x")
    site.disown(writer)
    site.run_until(lambda: stream.is_closed)
    assert os.read(reader, 9) == b"x"
    message = "stdout: fork: Resource temporarily unavailable; trying again in 1e-06 s"
    assert site.rig.messages("warn") == [f"{message}; failures: {n}" for n in (1, 2)]


def _refused(_work: Callable[[], None]) -> int:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def test_a_stream_that_ends_while_a_fork_is_refused_is_over(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, _reader, stream = site.output()
    site.start()
    with monkeypatch.context() as patch:
        patch.setattr(spawn, "fork_worker", _refused)
        site.stream_set.attach("stdout", "attach.nobody")  # whatever replaces a worker
        site.slot(stream).replace()
    assert site.slot(stream).history.failed_forks
    site.disown(writer)
    site.run_until(lambda: stream.is_closed)
    is_later: list[bool] = []
    site.rig.loop.timer(lambda: is_later.append(True)).start(2 * restart_policy.FORK_AGAIN_S)
    site.run_until(lambda: bool(is_later))
    assert (site.slot(stream).pid, site.slot(stream).history.deaths) == (0, 0)
    assert not site.stream_set.has_workers


def test_a_stream_that_was_given_up_is_not_given_another_worker(site: Site) -> None:
    _writer, _reader, stream = site.output()
    site.start()
    site.stream_set.give_up(stream)
    site.run_until(lambda: not site.stream_set.has_workers)
    assert stream.is_closed
    assert site.overs == 1
    assert has_no_children()


@pytest.mark.parametrize("how", ["give up", "stop"])
def test_a_worker_that_is_reaped_and_whose_pipe_is_unread_is_not_signalled_any_more(
    site: Site, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    _writer, _reader, stream = site.output()
    site.start()
    pid = site.slot(stream).pid
    os.kill(pid, signal.SIGKILL)
    waiting.wait_process(pid)
    site.rig.reaper.reap()  # the loop has not served its pipe yet: the pid may be anybody's now
    signalled: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", lambda pid, _signum: signalled.append(pid))
        if how == "give up":
            site.stream_set.give_up(stream)
        else:
            site.stream_set.stop()
    assert signalled == []
    site.run_until(lambda: not site.stream_set.has_workers)


def test_a_stream_that_is_given_up_in_a_pause_is_not_given_another_worker(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_SHORTEST_PAUSE_S", "LONGEST_PAUSE_S"):
        monkeypatch.setattr(restart_policy, name, 3600.0)  # no worker comes while we look
    site.policy(3600.0)
    writer, _reader, stream = site.output(sink=fds.Fd(os.open("/dev/full", os.O_WRONLY)))
    site.start()
    os.write(writer, b"x")
    site.run_until(lambda: site.slot(stream).history.errors_in_a_row == 1)
    held = site.slot(stream).pid
    site.stream_set.give_up(stream)
    site.run_until(lambda: stream.is_closed)
    assert not waiting.is_alive(held)
    assert not site.rig.loop.timers


def _endless_pauses(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_SHORTEST_PAUSE_S", "LONGEST_PAUSE_S", "LONGEST_PAUSE_IN_DRAIN_S"):
        monkeypatch.setattr(restart_policy, name, 3600.0)
    site.policy(3600.0)


def test_in_a_pause_there_is_a_worker_which_a_hurry_has_try_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one, nobody could go on if the supervisor were killed just then."""
    _endless_pauses(site, monkeypatch)
    writer, _reader, stream = site.output(sink=fds.Fd(os.open("/dev/full", os.O_WRONLY)))
    site.start()
    os.write(writer, b"x")
    site.run_until(lambda: site.slot(stream).history.errors_in_a_row == 1)
    waiting.wait_title(site.slot(stream).pid, "forkshim: site [stdout]")
    assert not site.slot(stream).could_move(), "it is not taken for a stuck one"
    assert site.stream_set.trouble(stream) == "No space left on device"
    held = site.slot(stream).pid
    site.stream_set.end_pauses()
    site.run_until(lambda: site.slot(stream).history.errors_in_a_row == 2)
    waiting.wait_process(held)
    assert site.slot(stream).pid
    assert site.slot(stream).history.deaths == 0


def test_workers_that_die_at_work_are_followed_by_one_that_rests(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    _endless_pauses(site, monkeypatch)

    def works_badly(context: WorkerContext, route: Route) -> None:
        context.enter(route.fds)
        os._exit(3)

    monkeypatch.setattr(output, "work", works_badly)
    _writer, _reader, stream = site.output()
    site.start()
    site.run_until(lambda: site.slot(stream).history.deaths == 9)
    waiting.wait_title(site.slot(stream).pid, "forkshim: site [stdout]")
    # One that does not even live at rest is not replaced by another one of the kind.
    os.kill(site.slot(stream).pid, signal.SIGKILL)
    site.run_until(lambda: site.slot(stream).history.deaths == 10)
    assert site.slot(stream).pid == 0
    assert list(site.rig.loop.timers) == [site.slot(stream)._retry]
    assert site.slot(stream).state is WorkerState.RETRY_SCHEDULED


def test_without_a_free_descriptor_a_killed_worker_is_replaced_later(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restart_policy, "FORK_AGAIN_S", 0.01)
    writer, reader, stream = site.output()
    site.start()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    killed = site.slot(stream).pid
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        os.kill(killed, signal.SIGKILL)
        site.run_until(lambda: site.slot(stream).history.failed_forks >= 3)
        assert site.slot(stream).pid == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    os.write(writer, b"some")
    site.run_until(lambda: site.slot(stream).pid != 0)
    waiting.wait_readable(reader)
    assert os.read(reader, 9) == b"some"
    said = [text for text in site.rig.messages("warn") if "fork" in text]
    assert said[0] == "stdout: fork: Too many open files; trying again in 0.01 s; failures: 1"
    assert len(said) <= 3, "1, 2, 4, ...: no log is filled with it"
