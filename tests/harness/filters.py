"""Filters of seccomp(2), for `preexec_fn`: a system call that the kernel refuses."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_PIDFD_GET_INFO = 0xC040FF0B
_SYS_PIDFD_GETFD = 438


def deny_pidfd_info() -> None:
    """Let ioctl(2) with PIDFD_GET_INFO fail with ENOTTY, as before Linux 6.15."""
    is_arm = os.uname().machine == "aarch64"
    _enter(
        [
            (_LOAD, 0, 0, 0),  # the system call's number
            (_EQUAL, 0, 3, 29 if is_arm else 16),
            (_LOAD, 0, 0, 24),  # its second argument
            (_EQUAL, 0, 1, _PIDFD_GET_INFO),
            (_RETURN, 0, 0, _ERRNO | errno.ENOTTY),
            (_RETURN, 0, 0, _ALLOW),
        ]
    )


def deny_pidfd_getfd() -> None:
    """Let pidfd_getfd(2) fail with EPERM."""
    _enter(
        [
            (_LOAD, 0, 0, 0),
            (_EQUAL, 0, 1, _SYS_PIDFD_GETFD),
            (_RETURN, 0, 0, _ERRNO | errno.EPERM),
            (_RETURN, 0, 0, _ALLOW),
        ]
    )


def _enter(program: list[tuple[int, int, int, int]]) -> None:
    code = b"".join(struct.pack("HBBI", *each) for each in program)
    kept = ctypes.create_string_buffer(code)

    class Filter(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    libc = ctypes.CDLL(None, use_errno=True)
    fprog = Filter(len(program), ctypes.addressof(kept))
    assert libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(fprog), 0, 0) == 0
