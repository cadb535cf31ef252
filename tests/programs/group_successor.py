"""A successor that says what its fd holder has passed, and serves until it is killed.

Words: the path of the file for the names, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from supervisor.frontends.containerd.handover import group_holder
from supervisor.frontends.containerd.handover.holder_link import HolderLink
from supervisor.linux.fds import Fd

passed = group_holder.arrive()
link = HolderLink(sys.orig_argv, passed.channel, Fd(-1)).below(passed.holder_pid)
link.tell_serves()
told = {"pid": os.getpid(), "names": {name: len(kept) for name, kept in passed.kept.items()}}
temporary = f"{sys.argv[1]}.new"
with open(temporary, "w") as file:
    json.dump(told, file)
os.rename(temporary, sys.argv[1])
signal.pause()
