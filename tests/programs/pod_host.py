"""A front end with N containers in one supervisor: it starts, reloads or adopts them.

    pod_host.py DIRECTORY start RUNTIME ID=BUNDLE...
    pod_host.py DIRECTORY adopt ID...

The state directory of a container is DIRECTORY/ID/init. When the last container has started, a
second process is exec'd in it; DIRECTORY/second.published tells that an adopter would find it. Each
outcome is a line of DIRECTORY/ends. With POD_AWAITS_START in the environment the last container is
created, and started only after a reload; the fifo of that name is its stdin.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from supervisor.container import restore
from supervisor.container.api import ContainerApi
from supervisor.container.container import Container
from supervisor.container.host import Host
from supervisor.container.lifecycle import Notice, State
from supervisor.container.request import ContainerSpec, Origin, StartRequest, StopPolicy
from supervisor.handover import discover, reexec
from supervisor.handover.manager import Leftovers
from supervisor.handover.own_command import own_command
from supervisor.linux import fds
from supervisor.oci.process_json import ProcessConfig
from supervisor.state.directory import StateDirectory
from supervisor.state.log import Log

if TYPE_CHECKING:
    from supervisor.container.request import Outcome
    from supervisor.container.restore import Place
    from supervisor.state.fd_store import FdWriter

GRACE_S = 0.5
DIRECTORY = Path(sys.argv[1])


def follow(container: Container) -> None:
    """Write down how the container ends."""
    name = "second" if container.launch.config.is_exec else container.request.spec.container_id

    def on_outcome(outcome: Outcome) -> None:
        with (DIRECTORY / "ends").open("a") as file:
            file.write(f"{name} {outcome.termination}\n")

    ContainerApi(container).wait(on_outcome)


def exec_second(container: Container, notice: Notice, _detail: str) -> None:
    """Execute the process of DIRECTORY/process.json in the container that has just started."""
    if notice is Notice.STARTED:
        process = json.loads((DIRECTORY / "process.json").read_text())
        sink = f"file:{DIRECTORY / 'second.log'}"
        config = ProcessConfig(stdout=sink, stderr=sink)
        second = ContainerApi(container).exec("second", process, config)
        follow(second)
        ContainerApi(second).subscribe(partial(publish_both, container, second))


def publish_both(container: Container, second: Container, notice: Notice, _detail: str) -> None:
    """Make the running exec adoptable, and say so."""
    if notice is Notice.STARTED:
        second.running.handover.publish()
        container.running.handover.publish()
        (DIRECTORY / "second.published").touch()


def start(command: tuple[str, ...], stack: ExitStack) -> None:
    """Start each container, and serve them to their ends."""
    runtime, *pairs = sys.argv[3:]
    host = None
    for pair in pairs:
        container_id, _, bundle = pair.partition("=")
        path = DIRECTORY / container_id / "init"
        path.mkdir(parents=True)
        state_dir = StateDirectory.open(str(path))
        stack.callback(state_dir.close)
        log = state_dir.open_log()
        stack.callback(log.close)
        if host is None:
            host = Host(log, dict(os.environ))
            stack.callback(host.close)
            host.front_end_document = front_end_document
        stdin = os.environ.get("POD_AWAITS_START", "") if pair == pairs[-1] else ""
        request = StartRequest(
            ContainerSpec(
                container_id,
                bundle,
                runtime,
                starts_container=True,
                is_start_awaited=bool(stdin),
            ),
            StopPolicy(timeout_s=GRACE_S),
            Origin(
                str(path.parent),
                command=command,
                is_adoptable=True,
                environment=dict(os.environ),
            ),
        )
        sink = f"file:{DIRECTORY / container_id}.log"
        config = ProcessConfig(stdin=stdin, stdout=sink, stderr=sink)
        container = Container(host, request, log, state_dir, config)
        follow(container)
        if pair == pairs[-1]:
            ContainerApi(container).subscribe(partial(exec_second, container))
        container.begin()
    assert host is not None
    host.run()


def front_end_document(_fd_writer: FdWriter) -> object:
    """Return what this front end wants to know after a reload."""
    return {"version": 1}


def go_on(places: list[Place], stack: ExitStack, *, is_rehearsal: bool) -> None:
    """Serve the containers of an earlier supervisor to their ends."""
    host = Host(places[0].log, dict(os.environ))
    stack.callback(host.close)
    host.front_end_document = front_end_document
    containers = restore.restore_containers(host, places, stack)
    if is_rehearsal:
        reexec.try_a_worker(places[0].log, "forkshim: pod")
        reexec.end_rehearsal()
    for container in containers:
        follow(container)
    restore.begin(host, containers, places)
    for container in containers:
        if container.state is State.STARTING:
            api = ContainerApi(container)
            api.subscribe(partial(exec_second, container))
            api.start()
    host.run()


def reload(arrival: reexec.Arrival, command: tuple[str, ...], stack: ExitStack) -> None:
    """Continue after a reload, or rehearse that."""
    assert arrival.contents.document["front_end"] == {"version": 1}
    stack.callback(arrival.contents.close)
    environment = dict(os.environ)
    if arrival.is_rehearsal:
        places = [
            restore.place_of(
                each, environment, stack, lambda _dir: Log(fds.Fd(os.dup(2))), command=command
            )
            for each in arrival.containers
        ]
    else:
        places = [
            restore.place_of(each, environment, stack, command=command)
            for each in arrival.containers
        ]
    go_on(places, stack, is_rehearsal=arrival.is_rehearsal)


def adopt(command: tuple[str, ...], stack: ExitStack) -> None:
    """Adopt the containers of a killed supervisor, and the processes that were exec'd in them."""
    environment, places = dict(os.environ), []
    for container_id in sys.argv[3:]:
        path = str(DIRECTORY / container_id / "init")
        store = discover.find(path)
        left = Leftovers(store, discover.workers(path), discover.fd_holders(path))
        contents = discover.look(store, path)
        places.append(
            restore.place_of(contents, environment, stack, command=command, leftovers=left)
        )
        places.extend(restore.adopted_execs(contents, environment, stack))
    go_on(places, stack, is_rehearsal=False)


def main() -> None:
    """Run what the arguments, or an earlier program of this process, ask for."""
    command = own_command()
    arrival = reexec.arrive()
    with ExitStack() as stack:
        if arrival is not None:
            reload(arrival, command, stack)
        elif sys.argv[2] == "start":
            start(command, stack)
        else:
            adopt(command, stack)


if __name__ == "__main__":
    main()
