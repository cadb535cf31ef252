"""Becomes the program of its arguments, as a caller who has everything set in an odd way."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

_PR_SET_TIMERSLACK = 29
_RT_SIGACTION = {"x86_64": 13, "aarch64": 134}
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_BEST_EFFORT_6 = 2 << 13 | 6
_ADDR_NO_RANDOMIZE = 0x0040000

libc = ctypes.CDLL(None, use_errno=True)
# Routers that lived in the test's own process have ignored some signals. By the system call, since
# the C library keeps 32 and 33 to itself.
for signum in set(range(1, 65)) - {signal.SIGKILL, signal.SIGSTOP}:
    number = _RT_SIGACTION[os.uname().machine]
    assert libc.syscall(number, signum, ctypes.create_string_buffer(32), None, 8) == 0
for signum in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD,
               signal.SIGTSTP, signal.SIGRTMIN + 3):  # fmt: skip
    signal.signal(signum, signal.SIG_IGN)
signal.pthread_sigmask(
    signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2, signal.SIGCHLD, signal.SIGRTMIN + 4}
)
resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
resource.setrlimit(resource.RLIMIT_CORE, (0, 4096))
resource.setrlimit(resource.RLIMIT_STACK, (4 << 20, 64 << 20))
os.umask(0o077)
os.nice(5)
with open("/proc/self/oom_score_adj", "w") as file:
    file.write("321")
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
os.dup2(os.open("/etc/hostname", os.O_RDONLY), 57, inheritable=True)
assert libc.personality(_ADDR_NO_RANDOMIZE) >= 0
assert libc.prctl(_PR_SET_TIMERSLACK, 123456, 0, 0, 0) == 0
assert libc.syscall(_IOPRIO_SET[os.uname().machine], 1, 0, _BEST_EFFORT_6) == 0
os.chdir("/usr")
os.environ["PECULIAR"] = "yes"
os.execvp(sys.argv[1], sys.argv[1:])
