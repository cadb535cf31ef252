"""The Debian package: built, looked into, installed, upgraded under a running container, purged.

Built and looked into on the machine's own release, the rest on each.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from supervisor.frontends.conmon.options import version_text
from tests.beds.nspawn import Bed
from tests.harness import bundles, waiting
from tests.systemd import debs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.systemd, pytest.mark.slow]

LIBRARY = "/usr/lib/forkshim"
SHIM = "containerd-shim-forkshim-v2"
UNIT = "forkshim@demo.service"
BUNDLE = "/var/lib/forkshim/demo"
NEWER = "99.0rc1"
COUNTS = """
trap 'echo bye; exit 0' TERM
echo hello
n=0
while sleep 0.05; do n=$((n + 1)); echo "line $n"; done
"""


@pytest.fixture(scope="module")
def checkout() -> Iterator[Path]:
    with debs.clean_checkout() as path:
        yield path


@pytest.fixture(scope="module")
def package(checkout: Path) -> Path:
    """What an ordinary user's `make deb` builds in a clean checkout."""
    return debs.make_deb(checkout)


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The next version."""
    copy = debs.copy_checkout(tmp_path_factory.mktemp("newer"), NEWER)
    return debs.build(copy, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def files(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's files, unpacked."""
    return debs.unpack(package, tmp_path_factory.mktemp("files") / "deb")


@pytest.fixture(scope="module")
def deb(suite: str) -> Path:
    """The package for the bed's release."""
    return debs.package(suite)


@pytest.fixture(scope="module")
def newer_deb(suite: str) -> Path:
    """The next version for the bed's release."""
    return debs.package(suite, NEWER)


@pytest.fixture
def bed(suite: str, deb: Path, newer_deb: Path, rootfs: Path) -> Iterator[Bed]:
    """A booted systemd that has never seen forkshim."""
    with Bed(suite=suite, bind_ro=[deb, newer_deb, rootfs]) as booted:
        yield booted


class Demo:
    """`forkshim@demo` in a bed. It counts, and says `bye` when it is stopped."""

    def __init__(self, bed: Bed, rootfs: Path) -> None:
        self.bed = bed
        document = bundles.config(rootfs, bundles.shell(COUNTS))
        bed.write(f"{BUNDLE}/config.json", json.dumps(document))

    def systemctl(self, *words: str) -> None:
        self.bed.ctl("systemctl", *words, check=True)

    def start(self) -> None:
        self.systemctl("start", UNIT)
        self.bed.wait_until_active(UNIT)

    def pid(self) -> int:
        return int(self.bed.show(UNIT, "MainPID")["MainPID"])

    def lines(self) -> list[str]:
        """Return what the container has written to the journal since the bed booted."""
        entries = self.bed.journal(UNIT)
        return [entry["MESSAGE"] for entry in entries if entry["_TRANSPORT"] == "stdout"]

    def await_more(self) -> None:
        """Wait until it has counted on."""
        before = len(self.lines())
        _until(lambda: len(self.lines()) > before)

    def maps(self) -> list[str]:
        """Return the lines of the supervisor's memory map that are files of the package."""
        text = self.bed.read(f"/proc/{self.pid()}/maps")
        return [line for line in text.splitlines() if LIBRARY in line]


@pytest.fixture
def demo(bed: Bed, rootfs: Path) -> Demo:
    return Demo(bed, rootfs)


def _until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + waiting.LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def _dpkg(bed: Bed, *words: str | Path) -> str:
    done = bed.run("dpkg", *map(str, words), check=True)
    return done.stdout + done.stderr


def _listing(bed: Bed, *folders: str) -> set[str]:
    """Return type, mode, owner and path of all files; without dpkg's backups and live folders."""
    live = (word for name in ("log", "cache", "tmp") for word in ("-path", f"/var/{name}", "-o"))
    done = bed.ctl(
        *("find", *folders, "(", *live, "-name", "*-old", ")", "-prune", "-o"),
        *("-printf", r"%y %m %u %g %p %l\n"),
        timeout_s=300,
    )
    return set(done.stdout.splitlines())


def _worker(bed: Bed, pid: int) -> str:
    """Return the pid of the worker for stdout of this supervisor, or nothing while it has none."""
    return bed.ctl("pgrep", "--parent", str(pid), "--full", r"\[stdout\]").stdout.strip()


# -- the build


def test_the_same_commit_gives_the_same_bytes_to_everybody(package: Path, tmp_path: Path) -> None:
    """Another user, umask, directory, Python for the tools, language, time zone; and later."""
    copy = debs.copy_checkout(tmp_path / "elsewhere")
    again = debs.build(copy, tmp_path, {"LC_ALL": "C.UTF-8", "TZ": "Pacific/Auckland"})
    assert again.name == package.name
    assert again.read_bytes() == package.read_bytes()


def test_its_build_leaves_nothing_but_the_package(package: Path, checkout: Path) -> None:
    assert list((checkout / "dist").iterdir()) == [package]
    assert list((checkout / "build").iterdir()) == []


def test_every_date_is_that_of_the_commit_and_every_file_is_roots(package: Path) -> None:
    listing = debs.listing(package)
    dates = {" ".join(line[3:5]) for line in listing}
    assert dates == {time.strftime("%Y-%m-%d %H:%M", time.gmtime(debs.COMMITTED_AT))}
    assert {line[1] for line in listing} == {"root/root"}
    modes = {line[0] for line in listing if line[5] != "./var/lib/forkshim/"}
    assert modes == {"drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x", "lrwxrwxrwx"}


def test_nobody_but_root_reaches_the_bundles(package: Path) -> None:
    modes = {line[5]: line[0] for line in debs.listing(package)}
    assert modes["./var/lib/forkshim/"] == "drwx------"


def test_its_control_file_names_what_it_was_built_for(package: Path) -> None:
    version = subprocess.run(
        [debs.DEBIAN_PYTHON, "-c", "import sys; print(sys.version_info[1])"],
        check=True,
        capture_output=True,
    )
    minor = int(version.stdout)
    arch = subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True)
    python = rf"python3 \(>= 3\.{minor}\), python3 \(<< 3\.{minor + 1}\)"
    depends = rf"libc6 \(>= 2\.\d+\), {python}, runc \| crun"
    assert re.fullmatch(depends, debs.field(package, "Depends"))
    assert debs.field(package, "Architecture") == arch.stdout.decode().strip()
    assert debs.field(package, "Version") == debs.current_version()


def test_a_release_candidate_is_older_than_its_release(newer: Path) -> None:
    version = debs.field(newer, "Version")
    assert version == "99.0~rc1"
    assert subprocess.run(["dpkg", "--compare-versions", version, "lt", "99.0"]).returncode == 0


def test_it_holds_the_locked_versions_and_nothing_else_of_others(files: Path) -> None:
    lock = (debs.ROOT / "tests/setup/requirements.lock").read_text()
    locked = dict(re.findall(r"^([a-z-]+)==([^ ]+)", lock, re.MULTILINE))
    names = ("lockfile", "orjson", "python-daemon", "setproctitle")
    wanted = {f"{name.replace('-', '_')}-{locked[name]}.dist-info" for name in names}
    wanted |= {f"forkshim-{debs.current_version()}.dist-info", "supervisor", "workers"}
    wanted |= {"daemon", "lockfile", "orjson", "setproctitle"}
    assert {path.name for path in (files / LIBRARY.lstrip("/")).iterdir()} == wanted


def test_every_module_is_compiled_for_the_python_that_will_run_it(files: Path) -> None:
    """With hashes that are not checked: no time stamp, no look at the source."""
    code = "import importlib.util; print(importlib.util.MAGIC_NUMBER.hex())"
    magic = subprocess.run([debs.DEBIAN_PYTHON, "-c", code], check=True, capture_output=True)
    wanted = bytes.fromhex(magic.stdout.decode()) + (1).to_bytes(4, "little")
    modules = list((files / LIBRARY.lstrip("/")).rglob("*.py"))
    assert len(modules) > 40
    for module in modules:
        (compiled,) = module.parent.glob(f"__pycache__/{module.stem}.cpython-*.pyc")
        assert compiled.read_bytes()[:8] == wanted, compiled


def test_it_does_not_know_where_it_was_built(files: Path, checkout: Path) -> None:
    places = [str(checkout).encode(), b"build/deb."]
    for path in files.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [place for place in places if place in data], path


def test_its_checksums_are_those_of_its_files(files: Path) -> None:
    done = subprocess.run(
        ["md5sum", "--check", "--quiet", "DEBIAN/md5sums"], cwd=files, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
    summed = (files / "DEBIAN/md5sums").read_text().splitlines()
    own = [path for path in files.rglob("*") if path.parent.name != "DEBIAN"]
    found = [path for path in own if path.is_file() and not path.is_symlink()]
    assert len(summed) == len(found)


def test_every_file_of_the_systemd_folder_has_its_place(files: Path) -> None:
    units = {path.name for path in (debs.ROOT / "systemd").glob("*.service")}
    assert units <= {path.name for path in (files / "lib/systemd/system").iterdir()}
    examples = files / "usr/share/doc/forkshim/examples"
    drop_ins = {path.name for path in (debs.ROOT / "systemd/drop-ins").iterdir()}
    assert {path.name for path in (examples / "forkshim@.service.d").iterdir()} == drop_ins
    assert {"adopt.conf", "newer-systemd.conf"} <= drop_ins
    of_containerd = {path.name for path in (debs.ROOT / "systemd/containerd-drop-ins").iterdir()}
    assert {path.name for path in (examples / "containerd.service.d").iterdir()} == of_containerd


def test_a_delete_that_the_shim_has_answered_needs_no_python(files: Path, tmp_path: Path) -> None:
    """Nothing below /usr/libexec/forkshim is installed here: a look for it fails."""
    bundle = tmp_path / "web"
    bundle.mkdir()
    reply = b"\x08\x2a\x10\x89\x01\n"
    (bundle / "delete.reply").write_bytes(reply)

    def run(container_id: str, *words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [files / "usr/bin" / SHIM, "-namespace", "n", "-id", container_id, *words],
            cwd=bundle,
            capture_output=True,
            stdin=subprocess.DEVNULL,
        )

    done = run("web", "-bundle", str(bundle), "-debug", "delete")
    assert (done.returncode, done.stdout, done.stderr) == (0, reply, b"")
    assert run("other", "-bundle", str(bundle), "delete").stdout == b""
    assert run("web", "start").stdout == b""
    (bundle / "delete.reply").write_bytes(b"")
    done = run("web", "-bundle", str(bundle), "delete")
    assert (done.returncode, done.stdout) == (127, b"")
    assert b"/usr/libexec/forkshim/" in done.stderr


def test_the_name_that_old_dockerds_know_is_the_shims(files: Path) -> None:
    shadow = files / "usr/libexec/forkshim/shadow/containerd-shim-runc-v2"
    assert shadow.resolve() == (files / "usr/bin" / SHIM).resolve()
    drop_in = debs.ROOT / "systemd/containerd-drop-ins/docker-20.10.conf"
    assert "PATH=/usr/libexec/forkshim/shadow:" in drop_in.read_text()


def test_its_settings_are_an_example_that_an_upgrade_leaves_alone(files: Path) -> None:
    """A file of the administrator's: dpkg asks before it writes over it. All of it is comments."""
    assert (files / "DEBIAN/conffiles").read_text() == "/etc/forkshim/example.conf\n"
    text = (files / "etc/forkshim/example.conf").read_text()
    assert all(line.startswith("#") for line in text.splitlines())
    assert "\n#FORKSHIM_OPTIONS=--" in text


def test_a_file_that_the_build_does_not_know_is_an_error(tmp_path: Path) -> None:
    copy = debs.copy_checkout(tmp_path / "copy")
    (copy / "systemd/forkshim.what").touch()
    done = debs.run_build(copy, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("make deb: systemd/forkshim.what: ")


def test_the_launcher_of_conmon_says_what_the_monitor_says(files: Path) -> None:
    """Without Python, which takes 20 times as long: Podman asks in each of its commands."""
    folder = files / "usr/libexec/forkshim"
    launcher, monitor = ((folder / name).read_text() for name in ("conmon", "conmon-monitor"))
    assert launcher.endswith('exec /usr/libexec/forkshim/conmon-monitor "$@"\n')
    assert "supervisor.frontends.conmon.main" in monitor
    said = subprocess.run([folder / "conmon", "--version"], capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (0, version_text())


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("cli/main.py", "bin/forkshim"),
        ("frontends/statedir.py", "bin/forkshim-shim"),
        ("frontends/conmon/main.py", "libexec/forkshim/conmon-monitor"),
        ("frontends/containerd/main.py", f"libexec/forkshim/{SHIM}"),
    ],
)
def test_a_command_that_does_not_start_makes_no_package(
    tmp_path: Path, module: str, command: str
) -> None:
    copy = debs.copy_checkout(tmp_path / "copy")
    (copy / "supervisor" / module).rename(copy / "supervisor" / "moved.py")
    done = debs.run_build(copy, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"make deb: usr/{command} does not work: status 1 ")
    assert "ModuleNotFoundError" in done.stderr


def test_a_wheel_that_cannot_be_had_is_named_in_one_line(tmp_path: Path) -> None:
    copy = debs.copy_checkout(tmp_path / "copy")
    no_network = {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_FIND_LINKS": "",
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_NO_CACHE_DIR": "1",
    }
    done = debs.run_build(copy, tmp_path, no_network)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"make deb: no wheels for the package: .*==.*\n", done.stderr)


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path) -> None:
    copy = debs.copy_checkout(tmp_path / "copy")
    lock = copy / "tests/setup/requirements.lock"
    head, name, tail = lock.read_text().partition("\nlockfile==")
    lock.write_text(head + name + re.sub(r"sha256:....", "sha256:0000", tail, count=2))
    done = debs.run_build(copy, tmp_path)
    assert done.returncode == 1
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert "lockfile==" in done.stderr


# -- the installed package


@pytest.mark.booted
@pytest.mark.timeout(600)  # it lists all of /usr twice
def test_from_installation_to_purge_it_works_and_leaves_nothing(
    bed: Bed, deb: Path, rootfs: Path
) -> None:
    everywhere = ("/usr/", "/etc/", "/var/", "/lib/", "/run/forkshim")
    before = _listing(bed, *everywhere)
    _dpkg(bed, "--install", deb)
    python = [f"/usr/lib/{path.name}" for path in bed.path("/usr/lib").glob("python3*")]
    programs = _listing(bed, LIBRARY, *python)
    demo = Demo(bed, rootfs)
    demo.start()
    demo.await_more()
    demo.systemctl("enable", UNIT)
    bed.run("systemctl", "kill", "--signal=TERM", "--kill-whom=main", UNIT, check=True)
    assert bed.wait_until_inactive(UNIT) == "inactive"
    said = demo.lines()
    assert said[:2] == ["hello", "line 1"]
    assert said[-1] == "bye"
    demo.systemctl("restart", UNIT)
    demo.await_more()
    demo.systemctl("stop", UNIT)
    assert _listing(bed, LIBRARY, *python) == programs
    bed.path(f"{BUNDLE}/config.json").unlink()
    bed.path(BUNDLE).rmdir()

    assert "not empty" not in _dpkg(bed, "--remove", "forkshim")
    assert bed.ctl("systemctl", "list-unit-files", "forkshim@.service").returncode != 0
    _dpkg(bed, "--purge", "forkshim")
    assert _listing(bed, *everywhere) == before
    assert (
        bed.ctl("systemctl", "list-units", "--all", "--plain", "--no-legend", "forkshim*").stdout
        == ""
    )
    assert "forkshim" not in bed.read("/var/lib/dpkg/status")


@pytest.mark.booted
def test_an_upgrade_leaves_the_container_alone_and_a_restart_runs_the_new_version(
    bed: Bed, deb: Path, newer_deb: Path, demo: Demo
) -> None:
    _dpkg(bed, "--install", deb)
    demo.start()
    demo.await_more()
    pid = demo.pid()
    assert not [line for line in demo.maps() if "(deleted)" in line]

    _dpkg(bed, "--install", newer_deb)
    assert bed.run("/usr/bin/forkshim", "--version").stdout == f"forkshim {NEWER}\n"
    assert demo.pid() == pid
    assert demo.maps()
    assert all("(deleted)" in line for line in demo.maps())  # it is still the old one
    demo.await_more()

    demo.systemctl("restart", UNIT)
    assert demo.pid() != pid
    assert demo.maps()
    assert not [line for line in demo.maps() if "(deleted)" in line]
    demo.await_more()
    demo.systemctl("stop", UNIT)
    said = demo.lines()
    end = said.index("bye")
    assert said[:end] == ["hello", *(f"line {n}" for n in range(1, end))]  # not a line lost
    assert said[end + 1] == "hello"
    assert bed.show(UNIT, "Result", "NRestarts") == {"Result": "success", "NRestarts": "0"}


@pytest.mark.booted
def test_a_reload_after_an_upgrade_runs_the_new_version_with_the_same_container(
    bed: Bed, deb: Path, newer_deb: Path, demo: Demo
) -> None:
    _dpkg(bed, "--install", deb)
    demo.start()
    demo.await_more()
    pid, payload = demo.pid(), bed.read("/run/forkshim/demo/init/pid")
    _dpkg(bed, "--install", newer_deb)
    demo.systemctl("reload", UNIT)
    _until(lambda: [line for line in demo.maps() if "(deleted)" not in line] == demo.maps() != [])
    demo.await_more()
    assert (demo.pid(), bed.read("/run/forkshim/demo/init/pid")) == (pid, payload)
    demo.systemctl("stop", UNIT)
    said = [line for line in demo.lines() if not line.startswith("forkshim: ")]
    assert said == ["hello", *(f"line {n}" for n in range(1, len(said) - 1)), "bye"]
    assert bed.show(UNIT, "Result", "NRestarts") == {"Result": "success", "NRestarts": "0"}


@pytest.mark.booted
@pytest.mark.parametrize("detached", [False, True], ids=["unit", "detached"])
def test_a_running_supervisor_needs_none_of_its_files(
    bed: Bed, deb: Path, demo: Demo, *, detached: bool
) -> None:
    """What makes an upgrade safe: whatever it has to import it has imported."""
    _dpkg(bed, "--install", deb)
    log = "/root/demo.log"
    if detached:
        bed.ctl(
            *("forkshim", "run", "--detach", "--log", f"file:{log}", "--bundle", BUNDLE, "demo"),
            check=True,
        )
        pid = int(bed.read("/run/forkshim/demo/supervisor.pid"))
    else:
        demo.start()
        pid = demo.pid()
    bed.path(LIBRARY).rename(bed.path(f"{LIBRARY}.away"))

    _until(lambda: _worker(bed, pid) != "")  # it comes with the container's first byte
    worker = _worker(bed, pid)
    bed.ctl("kill", "-KILL", worker, check=True)
    _until(lambda: _worker(bed, pid) not in ("", worker))
    bed.ctl("kill", "-TERM", str(pid), check=True)
    _until(lambda: not bed.path(f"/proc/{pid}").exists())
    if detached:
        assert bed.read("/run/forkshim/demo/init/exitStatus") == "0"
        assert bed.read(log).splitlines()[-1] == "bye"
    else:
        assert bed.wait_until_inactive(UNIT) == "inactive"
        assert demo.lines()[-1] == "bye"


@pytest.mark.booted
def test_removal_stops_what_runs_and_keeps_what_the_administrator_has_made(
    bed: Bed, deb: Path, demo: Demo
) -> None:
    _dpkg(bed, "--install", deb)
    bed.write("/etc/forkshim/demo.conf", "FORKSHIM_OPTIONS=--stop-timeout 9\n")
    demo.systemctl("enable", UNIT)
    demo.start()
    demo.await_more()
    _dpkg(bed, "--remove", "forkshim")
    assert demo.lines()[-1] == "bye"
    assert bed.ctl("pgrep", "--full", "forkshim: demo").stdout == ""
    assert bed.ctl("systemctl", "is-failed", UNIT).returncode != 0
    assert "'/var/lib/forkshim' not empty" in _dpkg(bed, "--purge", "forkshim")
    assert json.loads(bed.read(f"{BUNDLE}/config.json"))
    assert bed.read("/etc/forkshim/demo.conf")
    assert bed.ctl("find", "/etc/systemd", "-name", UNIT).stdout == ""


@pytest.mark.booted
def test_it_starts_without_a_look_at_the_users_environment(bed: Bed, deb: Path) -> None:
    """A module that would end the start lies everywhere where Python may look for one."""
    _dpkg(bed, "--install", deb)
    trap = "raise SystemExit('trapped')\n"
    for name in ("supervisor", "orjson", "argparse", "sitecustomize", "usercustomize"):
        bed.write(f"/root/trap/{name}.py", trap)
    version = bed.ctl(debs.DEBIAN_PYTHON, "-c", "import site; print(site.getusersitepackages())")
    for folder in (
        f"/root/{version.stdout.strip().partition('/.local/')[2]}",
        "/usr/lib/python3/dist-packages",
    ):
        bed.write(f"{folder}/trap.pth", "import os; os._exit(99)\n")
    for command in ("forkshim", "forkshim-shim"):
        done = bed.ctl(
            *("env", "-C", "/root/trap", "HOME=/root", "PYTHONPATH=/root/trap", "PYTHONHOME=/root"),
            *("PYTHONSTARTUP=/root/trap/orjson.py", "PYTHONVERBOSE=1", "PYTHONINSPECT=1"),
            *(command, "--version"),
        )
        usage = command == "forkshim-shim"
        assert done.returncode == (1 if usage else 0), done.stderr
        assert done.stderr.startswith("usage: ") if usage else done.stdout.startswith("forkshim ")
