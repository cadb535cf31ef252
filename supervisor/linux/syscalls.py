"""System calls that Python lacks: one thin function each, which raises `OSError` with the errno.

Only this module uses ctypes. `CDLL(None)` is the C library that this process has loaded already.
`ctypes.util.find_library` would execute ldconfig to find it.
"""

import ctypes
import os
from errno import EINVAL, ENODEV

PR_SET_PDEATHSIG = 1
PR_GET_PDEATHSIG = 2
PR_SET_CHILD_SUBREAPER = 36
PR_GET_CHILD_SUBREAPER = 37
_PR_SCHED_CORE, _PR_SCHED_CORE_CREATE, _PIDTYPE_TGID = 62, 1, 1

_libc = ctypes.CDLL(None, use_errno=True)
# int prctl(int option, unsigned long arg2, arg3, arg4, arg5): always pass all five.
_libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
_libc.prctl.restype = ctypes.c_int
_libc.syscall.restype = ctypes.c_long

_libc.tee.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
_libc.tee.restype = ctypes.c_ssize_t

C_LIBRARY_SIGNALS = (32, 33)
"""glibc uses them for its threads and refuses to change them, see `set_ignored`."""

_SYS_RT_SIGACTION = {
    "x86_64": 13,
    **dict.fromkeys(("aarch64", "riscv64", "loongarch64"), 134),
    "ppc64le": 173,
    "s390x": 174,
}

_machine = os.uname().machine
_RT_SIGACTION = (
    ctypes.c_long(_SYS_RT_SIGACTION[_machine]) if _machine in _SYS_RT_SIGACTION else None
)
_KernelSigaction = ctypes.c_ulong * 8

_IOPRIO_WHO_PROCESS = 1
# The numbers are the same on every architecture. glibc has functions for them since 2.36.
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_SYS_OPENAT2, _SYS_PIDFD_GETFD = 437, 438
_RESOLVE_IN_ROOT = 0x10
_CLOEXEC = 1  # FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC
_FSCONFIG_CMD_CREATE = 6
_F_EMPTY_PATH, _T_EMPTY_PATH, _SET_GROUP = 0x4, 0x40, 0x100  # MOVE_MOUNT_*
_IN_REMOVALS = 0x40 | 0x200 | 0x400 | 0x800
"""IN_MOVED_FROM, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF."""

_CLONE_NEWNS = 0x20000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC = 1, 1 << 5, 1 << 12, 1 << 14
MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 17, 1 << 18, 1 << 19, 1 << 20
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8


def _prctl(option: int, arg2: int) -> None:
    if _libc.prctl(option, arg2, 0, 0, 0) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), f"prctl({option}, {arg2})")


def _last_error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)


def _prctl_get(option: int) -> int:
    value = ctypes.c_int(-1)
    _prctl(option, ctypes.addressof(value))
    return value.value


def set_pdeathsig(signum: int) -> None:
    """Have the kernel send `signum` when the thread that forked this process ends; 0 for none.

    fork(2) and execve(2) of a set-user-ID file clear it; other execve(2) calls keep it. The parent
    may have died already: compare getppid(2) afterwards.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    _prctl(PR_SET_PDEATHSIG, signum)


def pdeathsig() -> int | None:
    """Return the signal of `set_pdeathsig`; None without one."""
    signum = _prctl_get(PR_GET_PDEATHSIG)
    return signum or None


def set_child_subreaper(enabled: bool) -> None:
    """Make this process the new parent of descendants whose parent exits; False undoes that.

    Children do not inherit it. Source: prctl(2), PR_SET_CHILD_SUBREAPER, Linux 3.4.
    """
    _prctl(PR_SET_CHILD_SUBREAPER, int(enabled))


def is_child_subreaper() -> bool:
    """Return whether this process is a subreaper. Source: prctl(2), PR_GET_CHILD_SUBREAPER."""
    return bool(_prctl_get(PR_GET_CHILD_SUBREAPER))


def share_core() -> None:
    """Let only this process and its later children share a processor core with each other.

    Does nothing on a kernel without core scheduling.

    Source: prctl(2), PR_SCHED_CORE, PR_SCHED_CORE_CREATE for a process; Linux 5.14.
    """
    if _libc.prctl(_PR_SCHED_CORE, _PR_SCHED_CORE_CREATE, 0, _PIDTYPE_TGID, 0) != 0:
        error = _last_error("prctl(PR_SCHED_CORE)")
        if error.errno not in (EINVAL, ENODEV):
            raise error


def set_ignored(signum: int, *, is_ignored: bool) -> None:
    """Ignore a signal that the C library reserves, or reset it to its default.

    Does nothing on an architecture whose system call number is not in the table.

    Source: rt_sigaction(2); the handler is the first word of the kernel's structure.
    """
    if _RT_SIGACTION is None:
        return
    action = _KernelSigaction(int(is_ignored))  # SIG_DFL is 0, SIG_IGN is 1
    result = _libc.syscall(_RT_SIGACTION, ctypes.c_int(signum), action, None, ctypes.c_size_t(8))
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), f"rt_sigaction({signum})")


def pidfd_getfd(pidfd: int, target_fd: int) -> int:
    """Return a duplicate, close-on-exec, of a descriptor of another process; the caller owns it.

    Raises:
        OSError: EBADF: the process has no such descriptor; ESRCH: it was reaped; EPERM: this
            process may not trace it.

    Source: pidfd_getfd(2), Linux 5.6.
    """
    fd = _libc.syscall(
        ctypes.c_long(_SYS_PIDFD_GETFD),
        ctypes.c_int(pidfd),
        ctypes.c_int(target_fd),
        ctypes.c_uint(0),
    )
    if fd < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), f"pidfd_getfd({target_fd})")
    return int(fd)


def ioprio_get(number: int, pid: int) -> int:
    """Return the I/O priority of a process, 0 if it was never set. `pid` 0 is this process.

    `number` is the number of the system call on this architecture. Source: ioprio_get(2).
    """
    priority = _libc.syscall(
        ctypes.c_long(number), ctypes.c_int(_IOPRIO_WHO_PROCESS), ctypes.c_int(pid)
    )
    if priority < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), f"ioprio_get({pid})")
    return int(priority)


def tee(source_fd: int, sink_fd: int, count: int) -> int:
    """Copy up to `count` bytes from one pipe to another without consuming them; never blocks.

    Returns the number of bytes copied.

    Raises:
        OSError: EAGAIN: the source is empty or the sink is full; EPIPE: the sink has no reader.

    Source: tee(2), SPLICE_F_NONBLOCK.
    """
    copied = _libc.tee(source_fd, sink_fd, count, os.SPLICE_F_NONBLOCK)
    if copied < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), f"tee({source_fd}, {sink_fd})")
    return int(copied)


def watch_removals(path: str) -> int:
    """Return a descriptor that is readable once a file of the directory, or it, was removed.

    A rename counts as a removal. The caller owns the descriptor.

    Raises:
        OSError: ENOENT; EMFILE or ENOSPC: the user's limits of inotify.

    Source: inotify(7).
    """
    fd = int(_libc.inotify_init1(os.O_CLOEXEC))
    if fd < 0:
        raise _last_error("inotify_init1")
    if _libc.inotify_add_watch(fd, os.fsencode(path), _IN_REMOVALS) < 0:
        error = _last_error("inotify_add_watch")
        os.close(fd)
        raise error
    return fd


def mount_detached(kind: str) -> int:
    """Make a detached mount of a new file system. Closing its last descriptor unmounts it.

    Returns:
        A descriptor of its root, close-on-exec, which the caller owns.

    Raises:
        OSError: EPERM: no CAP_SYS_ADMIN; ENODEV: unknown kind.

    Source: fsopen(2), fsconfig(2), fsmount(2), Linux 5.2.
    """
    context = _syscall(_SYS_FSOPEN, ctypes.c_char_p(kind.encode()), ctypes.c_uint(_CLOEXEC))
    try:
        create = ctypes.c_uint(_FSCONFIG_CMD_CREATE)
        _syscall(_SYS_FSCONFIG, ctypes.c_int(context), create, None, None, ctypes.c_int(0))
        return _syscall(
            _SYS_FSMOUNT, ctypes.c_int(context), ctypes.c_uint(_CLOEXEC), ctypes.c_uint(0)
        )
    finally:
        os.close(context)


def unshare_mounts() -> None:
    """Give this process a copy of its mount namespace. Shared mounts stay shared.

    Raises:
        OSError: EPERM: no CAP_SYS_ADMIN.

    Source: unshare(2), CLONE_NEWNS; mount_namespaces(7).
    """
    if _libc.unshare(_CLONE_NEWNS) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), "unshare(CLONE_NEWNS)")


def mount(source: str, target: str, flags: int, kind: str = "", data: str = "") -> None:
    """Mount a file system, bind a directory or file, or change how a mount propagates.

    Args:
        source: A device, a path to bind, or any word if the file system has no source.
        target: The mount point.
        flags: `MS_*`.
        kind: The file system's type; unused for a bind mount.
        data: The file system's options, separated by commas; less than a page of memory.

    Raises:
        OSError: With `target`.

    Source: mount(2).
    """
    failed = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        os.fsencode(kind) if kind else None,
        ctypes.c_ulong(flags),
        os.fsencode(data) if data else None,
    )
    if failed:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), target)


def unmount(target: str, flags: int) -> None:
    """Remove the topmost mount at `target`. `flags`: `MNT_DETACH` and `UMOUNT_NOFOLLOW`.

    Raises:
        OSError: With `target`. EINVAL: not a mount point; EBUSY: in use.

    Source: umount2(2).
    """
    if _libc.umount2(os.fsencode(target), ctypes.c_int(flags)):
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), target)


def open_in_root(root_fd: int, path: str) -> int:
    """Return an O_PATH descriptor of `path`, resolved with `root_fd` as the root directory.

    The caller owns the descriptor, which is close-on-exec.

    Raises:
        OSError: With `path`.

    Source: openat2(2), RESOLVE_IN_ROOT, Linux 5.6.
    """
    how = (ctypes.c_uint64 * 3)(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
    fd = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(root_fd),
        ctypes.c_char_p(os.fsencode(path)),
        how,
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if fd < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), path)
    return int(fd)


def join_peer_group(mount_fd: int, of_fd: int) -> None:
    """Put a private mount into the peer group of another mount with the same root.

    Both arguments are descriptors of the roots of the mounts. Source: move_mount(2),
    MOVE_MOUNT_SET_GROUP, Linux 5.15.
    """
    flags = _F_EMPTY_PATH | _T_EMPTY_PATH | _SET_GROUP
    _syscall(
        _SYS_MOVE_MOUNT,
        ctypes.c_int(of_fd),
        ctypes.c_char_p(b""),
        ctypes.c_int(mount_fd),
        ctypes.c_char_p(b""),
        ctypes.c_uint(flags),
    )


def _syscall(number: int, *arguments: object) -> int:
    result = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), f"syscall({number})")
    return int(result)
