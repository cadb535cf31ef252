"""Makes the VM's root file system out of the packages installed on this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.beds.apt import BedError, output_of

if TYPE_CHECKING:
    from collections.abc import Iterable

GUEST = Path(__file__).parent / "guest"

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "login", "passwd"),
    *("bash", "coreutils", "findutils", "grep", "sed", "hostname", "util-linux", "mount"),
    *("procps", "iproute2", "iptables", "kmod", "uidmap"),
    *("python3", "busybox-static", "runc", "crun"),
)

_LEFT_OUT = re.compile(
    r"/(proc|sys|dev|run|tmp|boot|etc/(apt|ssh|ssl|cron\.\w+|init\.d|rc.\.d))/"
    r"|/usr/(include|lib/(gcc|modules)"
    r"|share/(doc|man|locale|info|lintian|bug|i18n|perl5|zoneinfo))/"
)
# What the packages' scripts write on installation, and no package's file list names.
_WRITTEN_LATER = ("etc/nsswitch.conf", "etc/pam.d/common-*", "etc/shells")
_FOLDERS = {
    **dict.fromkeys(("proc", "sys", "dev", "run", "home", "job", "var/log"), 0o755),
    **dict.fromkeys(("tmp", "var/tmp"), 0o1777),
    "root": 0o700,
}
# Without udev a console getty waits 90 s for its device, and the boot with it.
_MASKED_UNITS = (
    *("serial-getty@ttyS0.service", "getty@tty1.service"),
    *("systemd-udevd.service", "systemd-udev-trigger.service"),
    *("systemd-timesyncd.service", "systemd-networkd.service"),
)
_NOBODY = 65534
_FIRST_PERSON = 1000


@dataclass(frozen=True)
class _Package:
    version: str
    essential: bool
    needs: list[list[str]]  # each entry: alternatives, one of which is enough


def _name(relation: str) -> str:
    """`libc6:any (>= 2.36)` -> `libc6`."""
    return relation.split("(")[0].strip().split(":")[0]


def _installed() -> tuple[dict[str, _Package], dict[str, str]]:
    """The installed packages by name, and a provider for every virtual name."""
    fields = ("db:Status-Abbrev", "Package", "Version", "Essential", "Pre-Depends", "Depends")
    line_format = "\t".join(f"${{{field}}}" for field in (*fields, "Provides")) + "\n"
    packages: dict[str, _Package] = {}
    providers: dict[str, str] = {}
    for line in output_of("dpkg-query", "-W", "-f", line_format).splitlines():
        status, name, version, essential, pre_depends, depends, provides = line.split("\t")
        if status.strip() != "ii":
            continue
        needs = [
            [_name(choice) for choice in relation.split("|")]
            for relation in (*pre_depends.split(","), *depends.split(","))
        ]
        packages[name] = _Package(version, essential == "yes", needs)
        for virtual in provides.split(","):
            providers.setdefault(_name(virtual), name)
    return packages, providers


def package_versions() -> dict[str, str]:
    """Every package the root file system consists of, with its version.

    Raises:
        BedError: one of PACKAGES is not installed on this machine.
    """
    packages, providers = _installed()
    if absent := [name for name in PACKAGES if name not in packages]:
        raise BedError(f"not installed on this machine: {' '.join(absent)}")
    chosen: dict[str, str] = {}
    todo = [*PACKAGES, *(name for name, package in packages.items() if package.essential)]
    while todo:
        wanted = todo.pop()
        name = wanted if wanted in packages else providers[wanted]
        if name in chosen:
            continue
        chosen[name] = packages[name].version
        for choices in packages[name].needs:
            # The first alternative that this machine has is the one it uses.
            todo += [choice for choice in choices if choice in packages or choice in providers][:1]
    return dict(sorted(chosen.items()))


def _package_files(packages: Iterable[str]) -> set[str]:
    """The packages' files that exist, as paths under /usr where /bin and its like are links."""
    lists = Path("/var/lib/dpkg/info")
    merged = re.compile(r"^/(bin|sbin|lib|lib64)(/|$)")
    found = set()
    for package in packages:
        for listing in (*lists.glob(f"{package}.list"), *lists.glob(f"{package}:*.list")):
            for line in listing.read_text().splitlines():
                path = merged.sub(r"/usr/\1\2", line)
                if path != "/." and not _LEFT_OUT.match(path) and _exists(path):
                    found.add(path)
    return found


def _exists(path: str) -> bool:
    return Path(path).exists() or Path(path).is_symlink()


def _alternatives(files: set[str]) -> set[str]:
    """The links update-alternatives made to one of the files, such as iptables; both steps."""
    found = set()
    for folder in (Path("/usr/bin"), Path("/usr/sbin")):
        for link in folder.iterdir():
            if not link.is_symlink():
                continue
            target = link.readlink()
            if target.parent == Path("/etc/alternatives") and str(link.resolve()) in files:
                found |= {str(link), str(target)}
    return found


def _copy(files: Iterable[str], root: Path) -> None:
    """Copy paths of this machine with owner, mode and links; folders before what is in them."""
    names = "".join(f".{path}\0" for path in sorted(files))
    flags = ["--null", "--make-directories", "--preserve-modification-time", "--quiet"]
    done = subprocess.run(
        ["cpio", "--pass-through", *flags, str(root)],
        cwd="/",
        input=names,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BedError(f"cpio: {done.stderr[-2000:]}")


def _accounts(root: Path) -> None:
    """Take over the system's accounts; nobody's password, and none of this machine's people."""
    for name in ("passwd", "group"):
        lines = [
            line
            for line in Path("/etc", name).read_text().splitlines()
            if (number := int(line.split(":")[2])) < _FIRST_PERSON or number == _NOBODY
        ]
        (root / "etc" / name).write_text("\n".join(lines) + "\n")
    users = [line.split(":")[0] for line in (root / "etc/passwd").read_text().splitlines()]
    shadow = root / "etc/shadow"
    shadow.write_text("".join(f"{user}:*:19000::::::\n" for user in users))
    shadow.chmod(0o600)
    # useradd grants ranges of ids only if these are there.
    (root / "etc/subuid").touch()
    (root / "etc/subgid").touch()


def _settings(root: Path) -> None:
    """Name the machine, mask units that cannot work in it and enable the agent."""
    # Empty, not absent: systemd then makes an id for each boot, without its first-boot presets.
    (root / "etc/machine-id").write_text("")
    (root / "etc/hostname").write_text("forkshim-bed\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost forkshim-bed\n::1 localhost\n")
    units = root / "etc/systemd/system"
    wants = units / "basic.target.wants"
    wants.mkdir(parents=True)
    for unit in _MASKED_UNITS:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    shutil.copyfile(GUEST / "agent.service", units / "bed-agent.service")
    (wants / "bed-agent.service").symlink_to("../bed-agent.service")
    library = root / "usr/local/lib"
    library.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(GUEST / "agent.py", library / "bed-agent.py")


def make(root: Path, packages: Iterable[str]) -> None:
    """Fill the folder `root` from the files of these packages."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    files = _package_files(packages)
    later = {str(path) for pattern in _WRITTEN_LATER for path in Path("/").glob(pattern)}
    _copy(files | _alternatives(files) | later, root)
    for folder, mode in _FOLDERS.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder).chmod(mode)
    _accounts(root)
    _settings(root)
    output_of("ldconfig", "-r", str(root))
