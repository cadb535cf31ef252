"""Command lines of the runtime, whole; and the reading of what it says."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from supervisor.oci import command_line
from supervisor.oci.command_line import RuntimeCommand, RuntimeState
from supervisor.oci.process_json import CheckpointRecord

if TYPE_CHECKING:
    from pathlib import Path

ARGS = ("--systemd-cgroup", "--root", "/r")
LOGGED = ["runc", "--log", "/state/log.json", "--log-format", "json", *ARGS]
PLAIN = ["runc", *ARGS]
END = ["--pid-file", "/state/pid", "web"]


@pytest.fixture
def caller() -> RuntimeCommand:
    return RuntimeCommand("runc", ARGS, "/state", "/bundle", "web")


def test_without_options_of_the_engine_none_are_passed() -> None:
    caller = RuntimeCommand("/opt/crun", (), "/state", "/bundle", "web")
    assert caller.state() == ["/opt/crun", "state", "web"]
    assert caller.start() == [
        "/opt/crun", "--log", "/state/log.json", "--log-format", "json", "start", "web",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("console_socket", "no_pivot", "options"),
    [
        (None, False, []),
        (None, True, ["--no-pivot"]),
        ("/tmp/s", False, ["--console-socket", "/tmp/s"]),
        ("/tmp/s", True, ["--console-socket", "/tmp/s", "--no-pivot"]),
    ],
)
def test_create(
    caller: RuntimeCommand, console_socket: str | None, no_pivot: bool, options: list[str]
) -> None:
    argv = caller.create(console_socket=console_socket, no_pivot=no_pivot)
    assert argv == [*LOGGED, "create", "--bundle", "/bundle", *options, *END]


@pytest.mark.parametrize(
    ("console_socket", "options"), [(None, []), ("/tmp/s", ["--console-socket", "/tmp/s"])]
)
def test_exec(caller: RuntimeCommand, console_socket: str | None, options: list[str]) -> None:
    argv = caller.exec(console_socket=console_socket)
    assert argv == [*LOGGED, "exec", "-d", "--process", "/state/process.json", *options, *END]


@pytest.mark.parametrize(
    ("shell", "tcp", "unix_sockets", "no_pivot", "empty_ns", "console_socket"),
    list(
        itertools.product(
            (False, True),
            (False, True),
            (False, True),
            (False, True),
            ((), ("network",), ("network", "ipc")),
            (None, "/tmp/s"),
        )
    ),
)
def test_restore_passes_each_option_of_the_checkpoint_in_its_place(
    caller: RuntimeCommand,
    shell: bool,
    tcp: bool,
    unix_sockets: bool,
    no_pivot: bool,
    empty_ns: tuple[str, ...],
    console_socket: str | None,
) -> None:
    options: list[str] = []
    if shell:
        options += ["--shell-job"]
    if tcp:
        options += ["--tcp-established"]
    if unix_sockets:
        options += ["--ext-unix-sk"]
    if no_pivot:
        options += ["--no-pivot"]
    for ns in empty_ns:
        options += ["--empty-ns", ns]
    if console_socket:
        options += ["--console-socket", console_socket]
    argv = caller.restore(
        "/cp",
        CheckpointRecord(tcp=tcp, unix_sockets=unix_sockets, shell=shell, empty_ns=empty_ns),
        unique="7",
        console_socket=console_socket,
        no_pivot=no_pivot,
    )
    assert argv == [
        *LOGGED,
        *("restore", "-d", "--image-path", "/cp", "--work-path", "/cp/criu.work/restore-7"),
        *options,
        *END,
    ]


def test_the_other_verbs(caller: RuntimeCommand) -> None:
    assert caller.start() == [*LOGGED, "start", "web"]
    assert caller.state() == [*PLAIN, "state", "web"]
    assert caller.kill(37) == [*PLAIN, "kill", "web", "37"]
    assert caller.kill_all() == [*PLAIN, "kill", "--all", "web", "SIGKILL"]
    assert caller.delete() == [*PLAIN, "delete", "web"]
    assert caller.delete(force=True) == [*PLAIN, "delete", "--force", "web"]


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (b"", ""),
        (b"not json\n", ""),
        (b"[]\n3\nnull\n", ""),
        (b'{"level": "info", "msg": "fine"}\n', ""),
        (b'{"level": "warning", "msg": "hm"}\n', ""),
        (b'{"level": "error", "msg": "bad"}\n', "bad"),
        (b'{"level": "fatal", "msg": "worse"}', "worse"),
        (b'{"level": "panic", "msg": "worst"}\n', "worst"),
        (b'{"level": "error", "msg": 7}\n{"level": "error", "msg": "two"}\n', "two"),
        (b'{"level": "error"}\n', ""),
        (b'{"level": ["error"], "msg": "x"}\n', ""),
        (b'{"level":"info","msg":"a"}\r\n\n{"level":"error","msg":"1"}\n{"level":"error"', "1"),
        (b'{"level": "error", "msg": "\xff"}\n{"level": "error", "msg": "b"}\n', "b"),
        (b'{"level": "error", "msg": ""}\n', ""),
        (b'{"level": "error", "msg": "a", "error": "why"}\n', "a: why"),
        (b'{"level": "error", "msg": "a", "error": 7}\n', "a"),
        (b'{"level":"error","msg":"a"}\n' * 3 + b'{"level":"error","msg":"b"}\n', "a; b"),
        (b"".join(b'{"level":"error","msg":"%04d"}\n' % n for n in range(2000)),
         "; ".join(f"{n:04d}" for n in range(976, 2000))[-4096:]),
        (b'{"level":"error","msg":"%s"}' % (b"x" * 5000), "x" * 4096),
    ],
)  # fmt: skip
def test_all_errors_of_a_log_are_found_between_anything_in_order_and_once(
    log: bytes, message: str
) -> None:
    assert command_line.errors(log) == message


@pytest.mark.parametrize(
    ("stderr", "line"),
    [(b"", ""), (b"a\n", "a"), (b" a \n\nb\na\n", "a; b"), (b"\xff\x0b\n", "\ufffd")],
)
def test_what_a_runtime_writes_to_stderr_is_one_line(stderr: bytes, line: str) -> None:
    assert command_line.joined_lines(stderr) == line


@pytest.mark.parametrize(
    ("output", "state"),
    [
        (b"", None),
        (b"no such container", None),
        (b"[]", None),
        (b"{}", None),
        (b'{"status": 1}', None),
        (b'{"status": "stopped"}', RuntimeState("stopped", 0, "", "")),
        (
            b'{"status": "running", "pid": 7, "bundle": "/b", "created": "2020"}\n',
            RuntimeState("running", 7, "/b", "2020"),
        ),
        (
            b'{"status": "running", "pid": "7", "bundle": 1, "created": null}',
            RuntimeState("running", 0, "", ""),
        ),
    ],
)
def test_a_state_is_read_or_is_none(output: bytes, state: RuntimeState | None) -> None:
    assert command_line.parse_state(output) == state


BEFORE = "2016-11-09T12:00:00.500000000Z"
NOW = "2016-11-09T12:00:02.250000000Z"


@pytest.mark.parametrize(
    ("created", "bundle", "is_child", "is_ours"),
    [
        ("2016-11-09T12:00:00.500000001Z", "/bundle", False, True),
        ("2016-11-09T12:00:00.500000000Z", "/bundle", False, True),
        ("2016-11-09T12:00:00.5Z", "/bundle", False, True),  # Go leaves trailing zeros out
        ("2016-11-09T12:00:00.51Z", "/bundle", False, True),
        ("2016-11-09T12:00:01Z", "/bundle", False, True),
        ("2016-11-09T12:00:02.25Z", "/bundle", False, True),
        ("2016-11-09T12:00:02.250000001Z", "/bundle", False, False),
        ("2017-01-01T00:00:00Z", "/bundle", False, False),  # of before the clock was set back
        ("2016-11-09T12:00:00.499999999Z", "/bundle", False, False),
        ("2016-11-09T12:00:00Z", "/bundle", False, False),
        ("2016-11-09T11:59:59.999999999Z", "/bundle", False, False),
        ("", "/bundle", False, False),
        ("2016-11-09T12:00:01Z", "/other", False, False),
        ("2016-11-09T12:00:01Z", "", False, False),
        ("2015-01-01T00:00:00Z", "/other", True, True),
        ("", "", True, True),
    ],
)
def test_a_container_is_ours_if_its_init_is_our_child_or_it_is_newer_with_our_bundle(
    created: str, bundle: str, is_child: bool, is_ours: bool
) -> None:
    state = RuntimeState("created", 7, bundle, created)
    found = command_line.is_ours(
        state, before_create=BEFORE, now=NOW, is_child=is_child, bundle="/bundle"
    )
    assert found is is_ours


def test_a_program_is_found_in_the_first_directory_that_can_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "runc").mkdir()
    (tmp_path / "b" / "runc").touch(mode=0o644)
    (tmp_path / "c" / "runc").touch(mode=0o755)
    search_path = f"/does/not/exist:{tmp_path}/a:{tmp_path}/b:{tmp_path}/c:{tmp_path}/a"
    assert command_line.find_program("runc", search_path) == f"{tmp_path}/c/runc"
    assert command_line.find_program("crun", search_path) is None
    monkeypatch.chdir(tmp_path / "c")
    assert command_line.find_program("runc", "") is None  # here may be anybody's bundle


def test_a_name_with_a_slash_is_a_path_already() -> None:
    assert command_line.find_program("./no/such", "/bin") == "./no/such"
