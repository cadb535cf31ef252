"""The other way in: going on with the process of an earlier supervisor, after a reload or adoption.

What that one had is a deposit's contents, see `Supervisor.pack`.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from supervisor.container.handover import Inherited
from supervisor.container.supervisor import Supervisor
from supervisor.handover import reexec
from supervisor.linux import fds, syscalls
from supervisor.linux.signals import SignalRouter
from supervisor.oci import process_json
from supervisor.state.fd_store import FdStoreError
from supervisor.state.log import Log
from workers.common.records import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from supervisor.container.handover import Leftovers
    from supervisor.container.request import Outcome, StartRequest
    from supervisor.state.directory import StateDirectory
    from supervisor.state.fd_store import FdReader


def go_on(
    order: StartRequest,
    log: Log,
    state_dir: StateDirectory,
    contents: FdReader,
    orphans: Leftovers | None = None,
) -> Outcome:
    """Go on with the process of an earlier supervisor, until it is gone; as `shim.supervise`.

    Args:
        order: From `order_of`.
        log: As for `shim.supervise`.
        state_dir: Borrowed.
        contents: What that supervisor had; owned from now on.
        orphans: What else is left, if that supervisor is dead; owned from now on. None: it was
            this very process, and its children are ours.

    Raises:
        ShimError: What it had cannot be used.
    """
    with ExitStack() as stack:
        return _take_up(order, log, state_dir, Inherited(contents, orphans), stack).run_restored()


def dry_run(order: StartRequest, state_dir: StateDirectory, contents: FdReader) -> None:
    """Do what `go_on` does before it begins to serve, then supervise something small.

    Raises:
        ShimError: What there is cannot be used, or what is installed does not work.
    """
    with ExitStack() as stack:
        log = Log(fds.Fd(os.dup(2)))
        stack.callback(log.close)
        _take_up(order, log, state_dir, Inherited(contents), stack)
        reexec.try_a_worker(log, f"forkshim: {order.container_id}")


def _take_up(
    order: StartRequest, log: Log, state_dir: StateDirectory, past: Inherited, stack: ExitStack
) -> Supervisor:
    contents = past.contents
    stack.callback(contents.close)
    router = SignalRouter(
        has_job_control=order.has_job_control, has_watchdog=order.notifier.watchdog_s > 0
    )
    stack.callback(router.close)
    syscalls.set_child_subreaper(True)
    document = contents.document
    try:
        packed = document["supervisor"]
        exit_fifo = contents.take(packed["exit"])
        stack.callback(exit_fifo.close)
        control_fifo = contents.take(packed["control"])
        record = process_json.ProcessConfig(
            **{**packed["record"], "runtime_args": tuple(packed["record"]["runtime_args"])}
        )
        if packed["notify_proxy"] is not None:
            from supervisor.systemd.notify_proxy import NotifyProxy  # for those who have one

            notify_proxy = NotifyProxy.restore(packed["notify_proxy"], contents)
            stack.callback(notify_proxy.close)
            order = replace(order, notify_proxy=notify_proxy)
        return Supervisor(order, log, state_dir, router, exit_fifo, control_fifo, record, past)
    except (KeyError, TypeError, ValueError) as error:
        raise FdStoreError(f"handover: {type(error).__name__}: {error}") from error
