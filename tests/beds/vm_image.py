"""Makes what the VM boots from: Debian's cloud kernel, a small initramfs, a root file system."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.beds import cache, vm_rootfs
from tests.beds.apt import BedError, output_of

_KERNEL_PACKAGE = "linux-image-cloud-amd64"
# Debian's cloud kernel has ext4 and tmpfs built in; these it has not.
_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "virtio-rng", "overlay")
_ROOT_SIZE = "3G"  # sparse
JOB_SIZE = "512M"  # the same for all: a saved guest remembers how large its disk is
_SHAPING = ("vm_image.py", "vm_rootfs.py", "vm_qemu.py", "guest")
_MKE2FS = ("mke2fs", "-q", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-E", "root_owner=0:0")


def make_disk(disk: Path, content: Path, size: str) -> None:
    """Write an ext4 file system with a folder's content, without mounting anything."""
    output_of(*_MKE2FS, "-d", str(content), str(disk), size)


def _kernel_name() -> str | None:
    """The package that the kernel meta package stands for; None without package lists."""
    done = subprocess.run(
        ["apt-cache", "depends", _KERNEL_PACKAGE], capture_output=True, text=True, check=False
    )
    words = done.stdout.split()
    return next((word for word in words if word.startswith("linux-image-6")), None)


def _kernel() -> Path:
    """The unpacked kernel package; it is never installed. Once in the cache, it stays that one."""
    if cached := sorted(cache.directory().glob("kernel-*")):
        return cached[-1]
    name = _kernel_name()
    if name is None:
        output_of("apt-get", "-q", "update")
        name = _kernel_name()
    if name is None:
        raise BedError(f"apt knows no {_KERNEL_PACKAGE}")
    final = cache.directory() / name.replace("linux-image-", "kernel-")
    with cache.building(final) as made, tempfile.TemporaryDirectory(dir=made) as download:
        # As root: the sandbox user could not write into this folder.
        as_root = ("-o", "APT::Sandbox::User=root")
        output_of("apt-get", "-q", *as_root, "download", name, cwd=download)
        package = next(Path(download).glob("*.deb"))
        output_of("dpkg", "-x", str(package), str(made))
    return final


def _modules_folder(kernel: Path) -> Path:
    return next((kernel / "lib/modules").iterdir())


def _module_files(kernel: Path) -> list[Path]:
    """The files to load, each after those it depends on."""
    version = _modules_folder(kernel).name
    output_of("depmod", "-b", str(kernel), version)
    files: dict[Path, None] = {}
    for module in _MODULES:
        found = output_of("modprobe", "-d", str(kernel), "-S", version, "--show-depends", module)
        for line in found.splitlines():
            if line.startswith("insmod "):
                files[Path(line.removeprefix("insmod ").strip())] = None
    return list(files)


def _make_initramfs(kernel: Path, archive: Path) -> None:
    """Pack busybox, the modules and guest/init.sh; Debian's own tools for it need udev."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise BedError("busybox is not in PATH")
    with tempfile.TemporaryDirectory(dir=archive.parent) as name:
        tree = Path(name)
        for folder in ("bin", "modules", "proc", "sys", "dev", "disk", "ram", "root"):
            (tree / folder).mkdir()
        shutil.copy(busybox, tree / "bin/busybox")
        shutil.copy(vm_rootfs.GUEST / "init.sh", tree / "init")
        (tree / "init").chmod(0o755)
        modules = _module_files(kernel)
        for module in modules:
            shutil.copy(module, tree / "modules")
        (tree / "modules/order").write_text("".join(f"{module.name}\n" for module in modules))
        entries = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
        with archive.open("wb") as out:
            subprocess.run(
                ["cpio", "--create", "--format=newc", "--quiet"],
                cwd=tree,
                input=entries.encode(),
                stdout=out,
                check=True,
            )


def _key(packages: dict[str, str]) -> str:
    """Changes with whatever an image or a state saved from it depends on."""
    emulator = output_of("dpkg-query", "-W", "-f", "${Version}", "qemu-system-x86")
    digest = hashlib.sha256(json.dumps([packages, emulator]).encode())
    for name in _SHAPING:
        path = Path(__file__).with_name(name)
        for source in sorted(path.glob("*.*")) if path.is_dir() else (path,):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def ensure() -> Path:
    """The folder with vmlinuz, initramfs and root.img, made if need be.

    The caller holds the build lock. An image that is out of date goes, unless a VM runs from it.
    """
    packages = vm_rootfs.package_versions()
    final = cache.directory() / f"image-{_key(packages)}"
    if final.is_dir():
        return final
    kernel = _kernel()
    modules = _modules_folder(kernel)
    with cache.building(final) as made:
        with tempfile.TemporaryDirectory(dir=made) as name:
            root = Path(name)
            vm_rootfs.make(root, packages)
            copied = root / "usr/lib/modules" / modules.name
            shutil.copytree(modules, copied, symlinks=True)
            output_of("depmod", "-b", str(root), modules.name)
            root.chmod(0o755)
            make_disk(made / "root.img", root, _ROOT_SIZE)
        _make_initramfs(kernel, made / "initramfs")
        shutil.copy(kernel / f"boot/vmlinuz-{modules.name}", made / "vmlinuz")
    for old in cache.directory().glob("image-*"):
        if old != final:
            cache.discard(old)
    return final
