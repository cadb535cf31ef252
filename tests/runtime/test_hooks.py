"""What hooks see: the user's bundle, however forkshim has to change its config.json. Real runc."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import bundles, fd_stores, runtime_calls, waiting
from tests.harness.engine import FORKSHIM

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.runc

KINDS = ("createRuntime", "poststart", "poststop")
_HOOK = """\
#!/bin/sh
state=$(cat)
bundle=${{state#*'"bundle":"'}}
bundle=${{bundle%%'"'*}}
echo "$1 $bundle $(pwd) $(cat extra.conf) $(cat "$bundle/extra.conf")" >> {out}
"""


class Case:
    """A bundle with a relative rootfs, a file of its own and hooks that note what they see."""

    def __init__(self, directory: Path, rootfs: Path, script: str, **options: Any) -> None:
        self.root = directory / "root"
        self.id = bundles.fresh_id("hooks")
        self.out = directory / "seen"
        hook = directory / "hook"
        hook.write_text(_HOOK.format(out=self.out))
        hook.chmod(0o755)
        document = bundles.config("rootfs", bundles.shell(script), **options)
        document["hooks"] = {kind: [{"path": str(hook), "args": ["hook", kind]}] for kind in KINDS}
        self.bundle = bundles.make_bundle(directory / "bundle", document)
        (self.bundle / "extra.conf").write_text("extra\n")
        (self.bundle / "rootfs").mkdir()
        subprocess.run(["cp", "-a", f"{rootfs}/.", self.bundle / "rootfs"], check=True)
        self.config = (self.bundle / "config.json").read_bytes()
        self.process: subprocess.Popen[bytes] | None = None

    def argv(self, *options: str) -> list[str | Path]:
        return [FORKSHIM, "run", "--root", self.root, "--bundle", self.bundle, *options, self.id]

    def start(self, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        self.process = subprocess.Popen(
            self.argv(*options),
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        return self.process

    def seen(self) -> list[str]:
        return self.out.read_text().splitlines() if self.out.exists() else []

    def wanted(self, *kinds: str) -> list[str]:
        return [f"{kind} {self.bundle} {self.bundle} extra extra" for kind in kinds]

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
            runtime_calls.delete(self.id)


@pytest.fixture
def case(tmp_path: Path, rootfs: Path) -> Iterator[Case]:
    made = Case(tmp_path, rootfs, "tty; echo ${NOTIFY_SOCKET:-none}; exit 7")
    yield made
    made.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), b"not a tty\nnone\n"),
        (("-t",), b"/dev/pts/0\r\nnone\r\n"),
        (("--sdnotify=container",), b"not a tty\n/dev/notify/notify.sock\n"),
        (("-t", "--sdnotify=container"), b"/dev/pts/0\r\n/dev/notify/notify.sock\r\n"),
    ],
)
def test_hooks_see_the_users_bundle_as_its_name_and_as_their_directory(
    case: Case, tmp_path: Path, options: tuple[str, ...], said: bytes
) -> None:
    address = str(tmp_path / "manager")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        environment = {"NOTIFY_SOCKET": address} if "--sdnotify=container" in options else {}
        process = case.start(*options, **environment)
        out, _err = process.communicate(timeout=waiting.LIMIT_S)
    assert (process.returncode, out) == (7, said)
    assert case.seen() == case.wanted(*KINDS)
    assert (case.bundle / "config.json").read_bytes() == case.config
    with open("/proc/self/mountinfo") as file:
        assert str(tmp_path) not in file.read()


def test_the_runtime_says_the_users_bundle_and_an_adopter_deletes_there(
    tmp_path: Path, rootfs: Path
) -> None:
    case = Case(tmp_path, rootfs, "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done")
    process = case.start("-t", "--log", f"file:{tmp_path}/log")
    init = case.root / case.id / "init"
    try:
        fd_stores.wait_published(init)
        waiting.wait_true(lambda: (tmp_path / "log").read_bytes() == b"ready\r\n")
        state = json.loads(runtime_calls.call("state", case.id))
        assert state["bundle"] == str(case.bundle)
        process.kill()
        process.communicate()
        adopter = subprocess.Popen([FORKSHIM, "adopt", "--root", case.root, case.id])
        waiting.wait_true(
            lambda: (init.parent / "supervisor.pid").read_text() == f"{adopter.pid}\n"
        )
        waiting.wait_true(lambda: waiting.catches(adopter.pid, signal.SIGTERM))
        adopter.terminate()
        assert adopter.wait(waiting.LIMIT_S) in (7, 69)
    finally:
        runtime_calls.delete(case.id)
    assert case.seen() == case.wanted(*KINDS)


_SHARED = """
mount -t tmpfs volume {directory}/volume  # runc makes the mount that carries the rootfs private
"$@" </dev/null || exit
grep -c {directory}/hooked /proc/self/mountinfo
grep -c {directory}/volume/inner /proc/self/mountinfo
grep -c {directory}/bundle/config.json /proc/self/mountinfo
exit 0
"""


@pytest.mark.parametrize("options", [(), ("-t",)])
def test_mounts_reach_the_machine_from_hooks_and_from_the_container_all_the_same(
    tmp_path: Path, rootfs: Path, options: tuple[str, ...]
) -> None:
    for name in ("hooked", "volume"):
        (tmp_path / name).mkdir()
    volume = bundles.bind(tmp_path / "volume", "/tmp", "rbind", "rshared")
    case = Case(tmp_path, rootfs, "mkdir /tmp/inner; mount -t tmpfs inner /tmp/inner",
                mounts=[volume], linux={"rootfsPropagation": "shared"})  # fmt: skip
    document = json.loads(case.config)
    for each in document["process"]["capabilities"].values():
        each.append("CAP_SYS_ADMIN")
    hook = {"path": "/bin/mount", "args": ["mount", "-t", "tmpfs", "x", f"{tmp_path}/hooked"]}
    document["hooks"] = {"createRuntime": [hook]}
    bundles.make_bundle(case.bundle, document)
    script = _SHARED.format(directory=tmp_path)
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "shared", "sh", "-c", script, "sh",
         *case.argv(*options)],
        capture_output=True, text=True, timeout=waiting.LIMIT_S,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (0, ["1", "1", "0"]), done.stderr


def test_who_may_not_mount_gives_hooks_a_bundle_of_links(rootfs: Path) -> None:
    """A user without CAP_SYS_ADMIN: the name is another, what is in it the same."""
    user = 54321
    mapping = [{"containerID": 0, "hostID": user, "size": 1}]
    kinds = ("mount", "ipc", "uts", "pid", "user")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        linux = {
            "namespaces": [{"type": kind} for kind in kinds],
            "uidMappings": mapping,
            "gidMappings": mapping,
        }
        case = Case(directory, rootfs, "tty; exit 7", linux=linux)
        document = json.loads(case.config)
        for mount in document["mounts"]:
            mount["options"] = [word for word in mount.get("options", ()) if "mode" not in word]
        bundles.make_bundle(case.bundle, document)
        subprocess.run(["chown", "-R", f"{user}:{user}", directory], check=True)
        (directory / "run").mkdir(mode=0o755)
        os.chown(directory / "run", user, user)
        done = subprocess.run(
            [*("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"),
             *case.argv("-t", f"--runtime-arg=--root={directory}/run")],
            env={**os.environ, "XDG_RUNTIME_DIR": f"{name}/run", "HOME": name, "TMPDIR": name},
            cwd="/", stdin=subprocess.DEVNULL, capture_output=True, timeout=waiting.LIMIT_S,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (7, b"/dev/pts/0\r\n"), done
        bundle = case.root / case.id / "init" / "bundle"
        assert case.seen() == [f"{kind} {bundle} {bundle} extra extra" for kind in KINDS]
