"""Somebody attacks: a worker that has been taken over, another user, a process in a namespace."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from setproctitle import setproctitle

from supervisor.handover import discover
from supervisor.linux.exit_status import Exited
from supervisor.state import fd_store
from tests.harness import bundles, filters, runtimes, waiting
from tests.harness.daemon import Daemon
from tests.harness.engine import FORKSHIM
from tests.harness.forked import forked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.runtime.conftest import MakeEngine

pytestmark = [pytest.mark.runc, pytest.mark.timeout(300)]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Return a function that starts one that can be adopted; its log goes to tmp_path/log."""
    with ExitStack() as stack:

        def start(bundle: Path, *options: str | Path) -> Daemon:
            options = options or ("--log", f"file:{tmp_path}/log")
            daemon = Daemon(tmp_path, bundle, *options)
            stack.callback(daemon.close)
            return daemon

        yield start


@pytest.mark.parametrize("sink", ["file", "file,policy=drop-new", "cri", "path,policy=drop-old"])
def test_memory_that_could_be_resized_is_not_adopted(
    tmp_path: Path, make_bundle: Callable[..., Path], start: Callable[..., Daemon], sink: str
) -> None:
    """A worker has put memory of its own there: its ftruncate(2) would be SIGBUS for us."""
    (tmp_path / "log").touch()
    daemon = start(make_bundle("echo ready; sleep 1000"), "--log", f"{sink}:{tmp_path}/log")
    daemon.kill()
    place = discover.find(str(daemon.state_dir))
    contents = discover.look(place, str(daemon.state_dir))
    fd_writer, owned = fd_store.FdWriter(), []
    for index in range(contents.document["fds"]):
        owned.append(contents.take(index))
        fd = owned[-1].fileno()
        if "memfd:forkshim" in os.readlink(f"/proc/self/fd/{fd}"):
            evil = os.memfd_create("forkshim:evil", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.truncate(evil, os.fstat(fd).st_size)
            os.dup2(evil, fd)
            os.close(evil)
        fd_writer.add(fd)
    place.put(contents.document, fd_writer)
    place.close()
    for each in owned:
        each.close()
    done = daemon.command("adopt")
    assert done.returncode == 1
    *_adopting, said = done.stderr.splitlines()
    assert said.startswith(f"forkshim: {daemon.id}: handover: ValueError: forkshim:counters: ")
    assert said.endswith(": memory is not sealed against a change of its size")
    assert waiting.is_alive(daemon.payload_pid)
    os.kill(daemon.payload_pid, signal.SIGKILL)


SOMEBODY = 1000
_CLONE_NEWUSER = 0x10000000
_PR_SET_DUMPABLE = 4
_libc = ctypes.CDLL(None, use_errno=True)


def be_somebody() -> None:
    os.setgroups([])
    os.setresgid(SOMEBODY, SOMEBODY, SOMEBODY)
    os.setresuid(SOMEBODY, SOMEBODY, SOMEBODY)


def be_somebody_in_secret() -> None:
    """/proc/PID is root's then."""
    be_somebody()
    assert _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0


def be_root_elsewhere() -> None:
    """Root of a user namespace, who is root outside as well: but may not act as that."""
    assert _libc.unshare(_CLONE_NEWUSER) == 0
    for name, content in (("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(content)


ATTACKERS = {
    "another user": (be_somebody, "its fd holder was killed, too"),
    "another user, not dumpable": (be_somebody_in_secret, "its fd holder was killed, too"),
    "root of a namespace": (be_root_elsewhere, "its fd holder was killed, too"),
    "root of a container": (
        lambda: None,
        "handover: wrong nonce: another process has published it",
    ),
}


@pytest.mark.parametrize("attacker", ATTACKERS)
def test_a_socket_with_the_right_number_is_not_believed(
    tmp_path: Path, make_bundle: Callable[..., Path], start: Callable[..., Daemon], attacker: str
) -> None:
    """The supervisor and its workers are dead; the number of their socket is another's by now.

    He is called as an fd holder is, and what he has laid down is right but for what he cannot know.
    """
    become, said = ATTACKERS[attacker]
    daemon = start(make_bundle("echo ready; sleep 1000"))
    daemon.kill()
    place = discover.find(str(daemon.state_dir))
    contents = discover.look(place, str(daemon.state_dir))
    contents.close()
    place.close()
    for pid in daemon.workers():
        os.kill(pid, signal.SIGKILL)
        waiting.wait_process(pid)
    evil = tmp_path / "evil"
    evil.write_text(f"#!/bin/sh\ntouch {tmp_path}/executed\n")
    evil.chmod(0o755)
    contents.document["request"]["runtime"] = str(evil)
    rfd, wfd = os.pipe()

    def attack() -> None:
        become()
        setproctitle(f"forkshim: {daemon.id} [fds]")
        mine = fd_store.FdStore()
        fd_writer = fd_store.FdWriter()
        for _ in range(contents.document["fds"]):
            fd_writer.add(rfd)
        mine.put(contents.document, fd_writer)
        inodes = [str(os.fstat(end).st_ino) for end in mine.fds]
        os.write(wfd, " ".join(inodes).encode())
        signal.pause()

    with forked(attack) as child:
        waiting.wait_readable(rfd)
        inodes = os.read(rfd, 100).decode()
        handover = daemon.state_dir / "handover"
        assert handover.stat().st_mode & 0o777 == 0o600, "its nonce is nobody else's to read"
        _one, _two, boot_id, nonce, counters = handover.read_text().split()
        assert len(bytes.fromhex(nonce)) == 16
        handover.write_text(f"{inodes} {boot_id} {nonce} {counters}")
        done = daemon.command("adopt", "--detach")
        assert done.returncode == 1
        assert done.stderr.startswith(f"forkshim: {daemon.id}: {said}")
        # Nor is he ended, as a worker of a dead container is.
        os.kill(daemon.payload_pid, signal.SIGKILL)
        waiting.wait_process(daemon.payload_pid)
        os.waitid(os.P_PID, daemon.payload_pid, os.WEXITED)
        bundle = make_bundle("exit 3")
        daemon.succeed_in("run", "--bundle", bundle, "--detach", "--log", "null")
        assert daemon.wait_end() == "3"
        if become is not ATTACKERS["root of a container"][0]:
            assert waiting.is_alive(child.pid)
    assert not (tmp_path / "executed").exists()
    os.close(rfd)
    os.close(wfd)


def test_who_may_not_have_a_workers_descriptors_is_told_why(
    make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    """pidfd_getfd(2) takes what ptrace(2) takes: here not even /proc/PID/fd may be read."""
    bundle = make_bundle("echo ready; sleep 1000")
    daemon = start(bundle)
    daemon.kill()

    def without_ptrace(*words: str | Path) -> subprocess.CompletedProcess[str]:
        drop = ("setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace")
        return subprocess.run(
            [*drop, FORKSHIM, *words, "--root", daemon.root, daemon.id],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=waiting.LIMIT_S,
        )

    done = without_ptrace("adopt", "--detach")
    assert done.returncode == 1
    assert "lives, but the kernel refuses its descriptors (permission denied): " in done.stderr
    assert "this process lacks CAP_SYS_PTRACE" in done.stderr
    assert done.stderr.count("\n") == 1
    for words, status in (
        (("run", "--bundle", bundle, "--detach", "--log", "null"), 75),
        (("run", "--adopt", "--bundle", bundle, "--detach", "--log", "null"), 75),
        (("attach",), 1),
    ):
        done = without_ptrace(*words)
        assert done.returncode == status
        assert "lacks CAP_SYS_PTRACE" in done.stderr, "no advice that cannot work"
        assert "adopts it" not in done.stderr
    daemon.adopt()


def test_a_filter_that_refuses_pidfd_getfd_is_told(
    make_bundle: Callable[..., Path], start: Callable[..., Daemon]
) -> None:
    """As in a container with seccomp(2) of its engine, which lets /proc be read."""
    daemon = start(make_bundle("echo ready; sleep 1000"))
    daemon.kill()
    done = subprocess.run(
        [FORKSHIM, "adopt", "--root", daemon.root, "--detach", daemon.id],
        capture_output=True,
        text=True,
        preexec_fn=filters.deny_pidfd_getfd,
        timeout=waiting.LIMIT_S,
    )
    assert done.returncode == 1
    assert (
        "lives, but the kernel refuses its descriptors (operation not permitted): " in done.stderr
    )
    assert "a seccomp filter is in force here" in done.stderr
    daemon.adopt()


def give_away(path: Path) -> None:
    os.chown(path, SOMEBODY, SOMEBODY, follow_symlinks=False)


@pytest.mark.parametrize("is_sticky", [False, True])
@pytest.mark.parametrize("verb", ["run", "run --adopt", "adopt", "attach"])
def test_what_another_user_has_prepared_is_not_believed(
    tmp_path: Path, make_bundle: Callable[..., Path], verb: str, *, is_sticky: bool
) -> None:
    """ROOT is a directory that others may write: he was there before us, as uid 1000."""
    bundle = make_bundle("exit 3")
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(0o1777 if is_sticky else 0o777)
    script = tmp_path / "evil"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/executed\n")
    script.chmod(0o755)
    tmp_path.chmod(0o711)
    for parent in tmp_path.parents:
        if parent.owner() == "root" and parent.name.startswith("pytest-"):
            parent.chmod(0o711)

    def attack() -> None:
        be_somebody()
        (root / "web" / "init").mkdir(parents=True)
        state = {"bundle": str(bundle), "runtime": str(script), "runtimeArgs": []}
        (root / "web" / "state.json").write_text(json.dumps(state))
        (root / "web" / "init" / "handover").write_text("1 2")
        os.mkfifo(root / "web" / "init" / "control")

    with forked(attack) as child:
        assert child.wait() == Exited(0)
    more = ("--bundle", str(bundle)) if verb.startswith("run") else ()
    done = subprocess.run(
        [FORKSHIM, *verb.split(), "--root", root, *more, "web"],
        capture_output=True,
        text=True,
        timeout=waiting.LIMIT_S,
    )
    assert done.returncode == 75
    assert done.stderr.count("\n") == 1
    assert "not trusted: " in done.stderr
    assert not (tmp_path / "executed").exists()
    assert {each.owner() for each in (root / "web").iterdir()} != {"root"}
    assert sorted(os.listdir(root / "web")) == ["init", "state.json"]


@pytest.mark.parametrize("name", ["", "web", "web/init"])
@pytest.mark.parametrize("how", ["owner", "mode", "group"])
def test_each_directory_of_a_home_has_to_be_ours_alone(
    tmp_path: Path, make_bundle: Callable[..., Path], name: str, how: str
) -> None:
    path = tmp_path / "root" / name
    (tmp_path / "root" / "web" / "init").mkdir(parents=True, mode=0o700)
    if how == "owner":
        give_away(path)
    elif how == "mode":
        path.chmod(0o777)
    else:
        os.chown(path, 0, SOMEBODY)
        path.chmod(0o770)
    done = subprocess.run(
        [FORKSHIM, "run", "--root", tmp_path / "root", "--bundle", make_bundle("exit 3"), "web"],
        capture_output=True,
        text=True,
        timeout=waiting.LIMIT_S,
    )
    assert done.returncode == 75
    assert done.stderr.startswith(f"forkshim: web: {path}".rstrip("/") + ": not trusted: ")
    assert done.stderr.count("\n") == 1
    os.chown(path, 0, 0)


@pytest.mark.parametrize("option", ["--exit-dir", "TMPDIR"])
def test_other_directories_in_which_names_are_believed_have_to_be_ours(
    tmp_path: Path, make_bundle: Callable[..., Path], option: str
) -> None:
    """In --exit-dir a record is read by others; in TMPDIR the runtime connects to a socket."""
    foreign = Path(tempfile.mkdtemp())  # short enough for a socket's name
    give_away(foreign)
    bundle = make_bundle("exit 3", terminal=option == "TMPDIR")
    more = (option, str(foreign / "below")) if option == "--exit-dir" else ()
    variables = {"TMPDIR": str(foreign)} if option == "TMPDIR" else {}
    done = subprocess.run(
        [FORKSHIM, "run", "--root", tmp_path / "root", "--bundle", bundle, *more, "web"],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        timeout=waiting.LIMIT_S,
    )
    assert done.returncode == 75
    assert f"{foreign}: not trusted: it belongs to user {SOMEBODY}" in done.stderr
    foreign.rmdir()
    assert not (tmp_path / "root" / "web").exists()


def test_a_shim_in_a_directory_that_others_may_write_does_not_begin(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    give_away(state_dir)
    done = subprocess.run(
        [FORKSHIM.with_name("forkshim-shim"), "web", make_bundle("exit 3"), "runc"],
        cwd=state_dir,
        capture_output=True,
        text=True,
        timeout=waiting.LIMIT_S,
    )
    assert done.returncode == 1
    assert done.stderr.endswith(f"{state_dir}: not trusted: it belongs to user {SOMEBODY}\n")
    assert os.listdir(state_dir) == []
    os.chown(state_dir, 0, 0)


LOGS = ["file", "file,max-size=64k", "cri", "file,policy=drop-old"]


@pytest.mark.parametrize("sink", LOGS)
@pytest.mark.parametrize("trick", ["a link above", "a directory of his", "a hard link"])
def test_a_reopen_is_not_led_astray(
    tmp_path: Path,
    rootfs: Path,
    start: Callable[..., Daemon],
    sink: str,
    trick: str,
) -> None:
    """The owner of a directory above the log puts something else in its place."""
    logs, secret = tmp_path / "above" / "logs", tmp_path / "secret"
    logs.mkdir(parents=True)
    secret.mkdir()
    (secret / "shadow").write_text("root\n")
    os.mkfifo(tmp_path / "go")
    mount = bundles.bind(tmp_path / "go", "/tmp/go")
    script = "while read word; do echo $word; done < /tmp/go; exit 5"
    go = os.open(tmp_path / "go", os.O_RDWR)
    document = bundles.config(rootfs, bundles.shell(script), mounts=[mount])
    bundle = bundles.make_bundle(tmp_path / "bundle", document)
    daemon = start(bundle, "--log", f"{sink}:{logs}/log")
    os.write(go, b"one\n")
    waiting.wait_true(lambda: b"one" in (logs / "log").read_bytes())
    os.chown(tmp_path / "above", SOMEBODY, SOMEBODY)
    old = tmp_path / "above" / "old"
    logs.rename(old)
    if trick == "a link above":
        logs.symlink_to(secret)
        give_away(logs)
    elif trick == "a directory of his":
        logs.mkdir()
        give_away(logs)
        (logs / "log").symlink_to(secret / "shadow")
    else:
        os.chown(tmp_path / "above", 0, 0)
        logs.mkdir()
        os.link(secret / "shadow", logs / "log")
    before = sorted(os.listdir(secret))
    control = os.open(daemon.state_dir / "control", os.O_RDWR)
    for _ in range(3):
        os.write(control, b"reopen\n")
        waiting.wait_true(lambda: not waiting.is_readable(control))
    waiting.wait_true(lambda: any("not trusted: " in said for said in daemon.log("warn")))
    os.write(go, b"two\n")
    waiting.wait_true(lambda: b"two" in (old / "log").read_bytes())
    assert sorted(os.listdir(secret)) == before
    assert (secret / "shadow").read_text() == "root\n"
    warnings = [said for said in daemon.log("warn") if "not trusted: " in said]
    assert len(warnings) == len(set(warnings)) <= 2, "each is said once"
    assert all(said.endswith("; the worker keeps the old file") for said in warnings)
    os.chown(tmp_path / "above", 0, 0)
    os.close(control)
    os.close(go)
    assert daemon.wait_end() == "5"


def _link(path: Path) -> None:
    path.symlink_to("/dev/null")


def _hard_link(path: Path) -> None:
    path.with_name("other").write_text("")
    os.link(path.with_name("other"), path)


@pytest.mark.parametrize(
    ("sink", "put"),
    [(LOGS[0], _link), (LOGS[1], os.mkfifo), (LOGS[2], Path.mkdir), (LOGS[3], _hard_link)],
)
def test_a_refused_reopen_is_told_and_tried_again(
    tmp_path: Path, rootfs: Path, start: Callable[..., Daemon],
    sink: str, put: Callable[[Path], None],
) -> None:  # fmt: skip
    log, go = tmp_path / "log", tmp_path / "go"
    os.mkfifo(go)
    go_fd = os.open(go, os.O_RDWR)
    script = "while read word; do echo $word; done < /tmp/go; exit 5"
    mount = bundles.bind(go, "/tmp/go")
    document = bundles.config(rootfs, bundles.shell(script), mounts=[mount])
    daemon = start(bundles.make_bundle(tmp_path / "b", document), "--log", f"{sink}:{log}")
    os.write(go_fd, b"one\n")
    waiting.wait_path(log, lambda path: b"one" in path.read_bytes())
    log.unlink()
    put(log)
    with open(daemon.state_dir / "control", "w") as control:
        control.write("reopen\n")
    waiting.wait_true(
        lambda: any("the old file was deleted" in each for each in daemon.log("warn"))
    )
    log.rmdir() if log.is_dir() else log.unlink()
    os.write(go_fd, b"two\n")
    waiting.wait_true(lambda: any("reopened (was: " in each for each in daemon.log("info")))
    os.write(go_fd, b"three\n")
    waiting.wait_path(log, lambda path: path.exists() and b"three" in path.read_bytes())
    os.close(go_fd)
    assert daemon.wait_end() == "5"


@pytest.mark.parametrize("sink", LOGS)
@pytest.mark.parametrize("trick", ["owner", "mode", "hard link"])
def test_a_log_where_others_could_put_something_is_refused(
    tmp_path: Path, make_bundle: Callable[..., Path], sink: str, trick: str
) -> None:
    logs = tmp_path / "above" / "logs"
    logs.mkdir(parents=True)
    if trick == "owner":
        give_away(tmp_path / "above")
    elif trick == "mode":
        (tmp_path / "above").chmod(0o777)
    else:
        (tmp_path / "precious").write_text("root\n")
        os.link(tmp_path / "precious", logs / "log")
    words = ("--root", tmp_path / "root", "--bundle", make_bundle("echo evil"))
    done = subprocess.run(
        [FORKSHIM, "run", *words, "--log", f"{sink}:{logs}/log", "web"],
        capture_output=True,
        text=True,
        timeout=waiting.LIMIT_S,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "not trusted: " in done.stderr
    if trick == "hard link":
        assert (tmp_path / "precious").read_text() == "root\n"
    else:
        assert os.listdir(logs) == []
    os.chown(tmp_path / "above", 0, 0)


EVIL = "\x1b]0;owned\x07\x1b[31m\n\x1b[2Kforkshim: other: all is well\r\u202e\x9b1m\u2028"


@pytest.mark.parametrize("verb", ["create", "start"])
@pytest.mark.parametrize("detach", [False, True])
def test_what_an_image_says_is_one_line_that_does_nothing(
    tmp_path: Path, rootfs: Path, verb: str, *, detach: bool
) -> None:
    """The runtime repeats args[0], which is whatever an image has for it."""
    document = bundles.config(rootfs, [f"/bin/{EVIL}"])
    runtime: str | Path = "runc"
    if verb == "start":
        document = bundles.config(rootfs, ["sleep", "1000"])
        said = json.dumps({"level": "error", "msg": EVIL}, ensure_ascii=False)
        (tmp_path / "said").write_text(said + "\n")
        log = 'while [ "$1" ]; do [ "$1" = --log ] && log=$2; shift; done'
        runtime = runtimes.script(
            tmp_path / "evil",
            f"if [ $verb = start ]; then {log}; cat {tmp_path}/said >> $log; exit 1; fi",
        )
    bundle = bundles.make_bundle(tmp_path / "bundle", document)
    words = ("--root", tmp_path / "root", "--bundle", bundle, "--runtime", runtime)
    more = ("--log", "null", "--detach") if detach else ()
    exits = tmp_path / "exits"
    container_id = bundles.fresh_id("text")
    done = subprocess.run(
        [FORKSHIM, "run", *words, *more, "--exit-dir", exits, container_id],
        capture_output=True,
        timeout=waiting.LIMIT_S,
    )
    assert done.returncode == 1
    text = done.stderr.decode()
    assert "all is well" in text
    assert text.endswith("\n")
    for line in text.removesuffix("\n").split("\n"):
        assert line.startswith(f"forkshim: {container_id}: ")
        assert line.isprintable(), line
    error = json.loads((exits / f"{container_id}.json").read_text())["error"]
    assert "all is well" in error
    assert error.isprintable()
    if not (verb == "start" and detach):  # which leaves `exitStatus`
        assert not (tmp_path / "root" / container_id).exists()


@pytest.mark.parametrize("depth", [200, 254, 255, 1023, 1025, 2000])
@pytest.mark.parametrize("place", ["linux", "process", "x"])
@pytest.mark.parametrize("option", ["", "-t"])
def test_nested_json_in_a_bundle_is_one_line_and_leaves_nothing(
    tmp_path: Path, rootfs: Path, depth: int, place: str, option: str
) -> None:
    text = json.dumps(bundles.config(rootfs, bundles.shell("exit 3")))
    nested = '{"a":' * depth + "1" + "}" * depth
    if place == "x":
        text = text[:-1] + f', "x": {nested}}}'
    else:
        text = text.replace(f'"{place}": {{', f'"{place}": {{"x": {nested}, ', 1)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "config.json").write_text(text)
    container_id = bundles.fresh_id("deep")
    words = ("--root", tmp_path / "root", "--bundle", tmp_path / "bundle")
    done = subprocess.run(
        [FORKSHIM, "run", *words, *option.split(), container_id],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=waiting.LIMIT_S,
    )
    if depth == 200:
        assert (done.returncode, done.stderr) == (3, "")
    else:
        assert done.returncode == 6
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith(f"forkshim: {container_id}: {tmp_path}/bundle/config.json: n")
    assert not (tmp_path / "root" / container_id).exists()


@pytest.mark.parametrize("depth", [200, 255, 1000, 1025, 2000])
def test_nested_json_anywhere_else_is_no_traceback(
    tmp_path: Path, make_bundle: Callable[..., Path], depth: int
) -> None:
    nested = '{"a":' * depth + "1" + "}" * depth
    (tmp_path / "nested").write_text(nested)
    # Of the runtime: its log and its state.
    log = 'while [ "$1" ]; do [ "$1" = --log ] && log=$2; shift; done'
    runtime = runtimes.script(
        tmp_path / "evil",
        f"case $verb in create) {log}; cat {tmp_path}/nested >> $log; exit 1;; "
        f"state) cat {tmp_path}/nested; exit 0;; esac",
    )
    container_id = bundles.fresh_id("deep")
    words = ("--root", tmp_path / "root", "--bundle", make_bundle("exit 3"))
    done = subprocess.run(
        [FORKSHIM, "run", *words, "--runtime", runtime, container_id],
        capture_output=True,
        text=True,
        timeout=waiting.LIMIT_S,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "root" / container_id).exists()
    # Of an earlier supervisor.
    home = tmp_path / "root" / container_id
    (home / "init").mkdir(parents=True, mode=0o700)
    home.chmod(0o700)
    for name in ("state.json", "init/handover", "init/process.json"):
        (home / name).write_text(nested)
    done = subprocess.run(
        [FORKSHIM, "run", *words, container_id],
        capture_output=True,
        text=True,
        timeout=waiting.LIMIT_S,
    )
    assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.parametrize("depth", [200, 255, 1000, 1025, 2000])
def test_nested_json_of_an_engine_is_one_record(make_engine: MakeEngine, depth: int) -> None:
    engine = make_engine("exit 3", containerdStdin="", containerdStdout="", containerdStderr="")
    path = engine.dir / "process.json"
    text = path.read_text().rstrip().removesuffix("}")
    path.write_text(text + ', "x": ' + '{"a":' * depth + "1" + "}" * depth + "}")
    if depth > 240:
        engine.launch()
        waiting.wait_process(engine.shim_pid)
        (said,) = engine.log("error")
        assert said.startswith("process.json: n")
    else:
        engine.run()
        assert engine.wait_end() == 3


@pytest.mark.parametrize("sink", ["path:{}", "{}", "path,policy=drop-old:{}"])
@pytest.mark.parametrize(
    "trick", ["a link", "a link above", "his directory", "his file", "a second name"]
)
def test_a_path_where_others_could_put_something_is_refused(
    tmp_path: Path, make_bundle: Callable[..., Path], sink: str, trick: str
) -> None:
    above = tmp_path / "above"
    (above / "logs").mkdir(parents=True)
    path, precious = above / "logs" / "out", tmp_path / "precious"
    precious.write_text("root\n")
    if trick == "a link":
        path.symlink_to(precious)
        give_away(path)
    elif trick == "a link above":
        (above / "logs").rmdir()
        (above / "logs").symlink_to(tmp_path)
        give_away(above / "logs")
        path = above / "logs" / "precious"
    elif trick == "his directory":
        path.write_text("")
        give_away(above)
    elif trick == "his file":
        (above / "logs").chmod(0o1777)
        path.write_text("")
        give_away(path)
    else:
        os.link(precious, path)
    words = ("--root", tmp_path / "root", "--bundle", make_bundle("echo evil"))
    done = subprocess.run(
        [FORKSHIM, "run", *words, "--log", sink.format(path), "web"],
        capture_output=True, text=True, timeout=waiting.LIMIT_S,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"forkshim: web: open {above}"), line
    assert "not trusted: " in line
    assert precious.read_text() == "root\n"


def test_what_is_named_by_links_of_ones_own_is_opened_and_a_file_grows_at_its_end(
    tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "out").write_text("before\n")
    (tmp_path / "above").symlink_to("real")
    (tmp_path / "real" / "link").symlink_to("../above/out")
    for sink, said in [(f"{tmp_path}/above/link", ""), ("/dev/stdout", "said\n")]:
        words = ("--root", tmp_path / "root", "--bundle", make_bundle("echo said"))
        done = subprocess.run(
            [FORKSHIM, "run", *words, "--log", sink, "web"],
            capture_output=True, text=True, timeout=waiting.LIMIT_S,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    assert (tmp_path / "real" / "out").read_text() == "before\nsaid\n"
