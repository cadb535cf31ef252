"""Command lines of an OCI runtime (runc, crun), and the errors it prints. Pure.

The arguments have the order of containerd 0.2's shim: --log first, the engine's global options
before the verb. Source: runc(8) and its subcommands' pages, runtime.md.
"""

from __future__ import annotations

import os

from supervisor.linux import paths
from workers.common.records import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from supervisor.oci.process_json import CheckpointRecord


LOG_NAME = "log.json"
_MOST_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class CheckpointPlan:
    """Where a checkpoint is written, and with which of the runtime's flags.

    Attributes:
        image_path: Absolute path of the images.
        work_path: Absolute path of CRIU's log and statistics.
        leaves_running: The container goes on.
        tcp: With open TCP connections.
        unix_sockets: With external Unix sockets.
        shell: As a shell job: with a terminal from outside.
        file_locks: With file locks.
        empty_ns: Namespaces whose content is left out.
        cgroups_mode: `soft`, `full` or `strict`; "" for the runtime's default.
    """

    image_path: str
    work_path: str
    leaves_running: bool = False
    tcp: bool = False
    unix_sockets: bool = False
    shell: bool = False
    file_locks: bool = False
    empty_ns: tuple[str, ...] = ()
    cgroups_mode: str = ""


@dataclass(frozen=True, slots=True)
class RuntimeCommand:
    """Builds the argv of each operation on one container.

    Attributes:
        name: argv[0], as the engine names the runtime.
        args: Global options that the engine wants (`runtimeArgs`).
        state_dir: Absolute path; the runtime writes its log and the pid file there.
        bundle: Absolute path of the bundle.
        container_id: Checked by the front end.
        config: The file that `create` reads instead of the bundle's config.json; "" for none.
    """

    name: str
    args: tuple[str, ...]
    state_dir: str
    bundle: str
    container_id: str
    config: str = ""

    @property
    def config_path(self) -> str:
        """The config.json that `create` reads."""
        return self.config or os.path.join(self.bundle, "config.json")

    @property
    def directory(self) -> str:
        """Working directory of the runtime and its hooks: the bundle while it exists, else `/`."""
        return self.bundle if os.path.isdir(self.bundle) else "/"

    @property
    def log_path(self) -> str:
        """The runtime's own log, JSON lines of `level`, `msg` and `time`."""
        return os.path.join(self.state_dir, LOG_NAME)

    @property
    def pid_path(self) -> str:
        """The file for the container's pid, in decimal without a newline."""
        return os.path.join(self.state_dir, "pid")

    def create(
        self,
        *,
        console_socket: str | None,
        no_pivot: bool,
        preserved_fds: int = 0,
        no_new_keyring: bool = False,
    ) -> list[str]:
        """runc-create(8): the runtime exits once the container exists and waits for `start`.

        Args:
            console_socket: Path of the console socket; None without a terminal.
            no_pivot: Pass --no-pivot.
            preserved_fds: How many descriptors from 3 on the process inherits.
            no_new_keyring: Pass --no-new-keyring.
        """
        return [
            *self._logged("create", "--bundle", self.bundle),
            *_console(console_socket),
            *_flag("--no-pivot", no_pivot),
            *_flag("--no-new-keyring", no_new_keyring),
            *(("--preserve-fds", str(preserved_fds)) if preserved_fds else ()),
            *("--pid-file", self.pid_path, self.container_id),
        ]

    def exec(self, *, console_socket: str | None) -> list[str]:
        """runc-exec(8), detached; the process is the state directory's process.json."""
        process_path = os.path.join(self.state_dir, "process.json")
        return [
            *self._logged("exec", "-d", "--process", process_path),
            *_console(console_socket),
            *("--pid-file", self.pid_path, self.container_id),
        ]

    def restore(
        self,
        checkpoint_dir: str,
        options: CheckpointRecord,
        *,
        unique: str,
        console_socket: str | None,
        no_pivot: bool,
    ) -> list[str]:
        """runc-restore(8), detached; takes the bundle from its working directory.

        Args:
            checkpoint_dir: Absolute path of the images.
            options: How the checkpoint was taken.
            unique: Part of the work directory's name, different for each restore.
            console_socket: As for `create`; the 2016 shim cannot restore a console.
            no_pivot: Pass --no-pivot.
        """
        work_path = os.path.join(checkpoint_dir, "criu.work", f"restore-{unique}")
        return [
            *self._logged("restore", "-d", "--image-path", checkpoint_dir),
            *("--work-path", work_path),
            *_flag("--shell-job", options.shell),
            *_flag("--tcp-established", options.tcp),
            *_flag("--ext-unix-sk", options.unix_sockets),
            *_flag("--no-pivot", no_pivot),
            *(word for ns in options.empty_ns for word in ("--empty-ns", ns)),
            *_console(console_socket),
            *("--pid-file", self.pid_path, self.container_id),
        ]

    def checkpoint(self, plan: CheckpointPlan) -> list[str]:
        """runc-checkpoint(8)."""
        return [
            *self._plain("checkpoint", "--image-path", plan.image_path),
            *("--work-path", plan.work_path),
            *_flag("--leave-running", plan.leaves_running),
            *_flag("--tcp-established", plan.tcp),
            *_flag("--ext-unix-sk", plan.unix_sockets),
            *_flag("--shell-job", plan.shell),
            *_flag("--file-locks", plan.file_locks),
            *(word for ns in plan.empty_ns for word in ("--empty-ns", ns)),
            *(("--manage-cgroups-mode", plan.cgroups_mode) if plan.cgroups_mode else ()),
            self.container_id,
        ]

    def start(self) -> list[str]:
        """runc-start(8)."""
        return self._logged("start", self.container_id)

    def state(self) -> list[str]:
        """runc-state(8); prints the state of runtime.md as JSON."""
        return self._plain("state", self.container_id)

    def kill(self, signum: int) -> list[str]:
        """runc-kill(8): one signal to the container's init."""
        return self._plain("kill", self.container_id, str(signum))

    def kill_all(self) -> list[str]:
        """Kill every process of the container, also those that outlive init in a shared pid ns."""
        return self._plain("kill", "--all", self.container_id, "SIGKILL")

    def signal_all(self, signum: int) -> list[str]:
        """As `kill_all`, with another signal."""
        return self._plain("kill", "--all", self.container_id, str(signum))

    def update(self) -> list[str]:
        """runc-update(8); reads the resources as JSON from its stdin."""
        return self._plain("update", "--resources", "-", self.container_id)

    def pause(self) -> list[str]:
        """runc-pause(8): freeze every process of the container."""
        return self._plain("pause", self.container_id)

    def resume(self) -> list[str]:
        """runc-resume(8): thaw every process of the container."""
        return self._plain("resume", self.container_id)

    def delete(self, *, force: bool = False) -> list[str]:
        """runc-delete(8); `force` kills a running container."""
        return self._plain("delete", *_flag("--force", force), self.container_id)

    def _logged(self, *words: str) -> list[str]:
        return [self.name, "--log", self.log_path, "--log-format", "json", *self.args, *words]

    def _plain(self, *words: str) -> list[str]:
        return [self.name, *self.args, *words]


def _flag(word: str, given: bool) -> tuple[str, ...]:
    return (word,) if given else ()


def _console(socket_path: str | None) -> tuple[str, ...]:
    return () if socket_path is None else ("--console-socket", socket_path)


def absolute(name: str) -> str:
    """Return an absolute path for a relative path; a name without a slash stays a name.

    The calls of a runtime have different working directories.
    """
    return paths.absolute(name) if "/" in name else name


def find_program(name: str, search_path: str) -> str | None:
    """Return the path to execute for `name`; None if no directory of `search_path` has it.

    `search_path` has the format of PATH. A name with a slash is a path already, and execve(2)
    reports its errors.
    """
    if "/" in name:
        return name
    for directory in search_path.split(":"):
        path = os.path.join(directory, name)
        # No relative directory: the working directory may be an untrusted bundle.
        if os.path.isabs(path) and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def errors(log: bytes) -> str:
    """Return the messages of level `error` or worse in a runtime's log, in order, each once.

    They are joined with "; ". runc logs failures of its cleanup first, so the reason may come last.
    logrus puts a detail in the field `error`. Lines that are not JSON objects are skipped: the
    runtime may have been killed during a write.
    """
    found: dict[str, None] = {}
    for line in log.split(b"\n"):
        entry = _json_object(line)
        message, detail = entry.get("msg"), entry.get("error")
        if entry.get("level") in ("error", "fatal", "panic") and isinstance(message, str):
            found[f"{message}: {detail}" if isinstance(detail, str) else message] = None
    return _bounded([message for message in found if message])


def joined_lines(stderr: bytes) -> str:
    """Return the lines of a runtime's stderr, joined with "; ", in order, each once."""
    lines = (line.strip() for line in stderr.decode(errors="replace").split("\n"))
    return _bounded([line for line in dict.fromkeys(lines) if line])


def _bounded(messages: list[str]) -> str:
    """Join messages. If they are too long, keep the last, which contain the reason."""
    while len(messages) > 1 and sum(map(len, messages)) > _MOST_CHARACTERS:
        del messages[0]
    return "; ".join(messages)[-_MOST_CHARACTERS:]


@dataclass(frozen=True, slots=True)
class RuntimeState:
    """The output of `state`, see runtime.md.

    Attributes:
        status: "created", "running", "stopped", or a word of the runtime ("paused").
        pid: The init's pid; 0 if it is missing.
        bundle: Path of the bundle; "" if it is missing.
        created: RFC 3339 with nanoseconds, UTC; "" if it is missing.
    """

    status: str
    pid: int
    bundle: str
    created: str


def parse_state(output: bytes) -> RuntimeState | None:
    """Parse the output of `state`; None if it is not the JSON of a state."""
    fields = _json_object(output)
    if not isinstance(fields.get("status"), str):
        return None
    pid, bundle, created = fields.get("pid"), fields.get("bundle"), fields.get("created")
    return RuntimeState(
        status=fields["status"],
        pid=pid if isinstance(pid, int) else 0,
        bundle=bundle if isinstance(bundle, str) else "",
        created=created if isinstance(created, str) else "",
    )


def is_ours(
    state: RuntimeState, *, before_create: str, now: str, is_child: bool, bundle: str
) -> bool:
    """Return whether the failed `create` of this supervisor created the container of this id.

    `create` may have failed because the id existed already. Then a delete would remove the
    container of another supervisor.

    Args:
        state: The present state of the id.
        before_create: The time before `create`, RFC 3339 in UTC with nanoseconds.
        now: The present time. A later time of creation means that the clock was set back.
        is_child: The state's pid is a child of this process, so this supervisor created it.
        bundle: The bundle of this supervisor.
    """
    if is_child:
        return True
    is_new = _sortable(before_create) <= _sortable(state.created) <= _sortable(now)
    return is_same_bundle(state.bundle, bundle) and is_new


def is_same_bundle(one: str, other: str) -> bool:
    """Return whether two paths name the same bundle. runc resolves symbolic links."""
    return bool(one) and os.path.realpath(one) == os.path.realpath(other)


def _sortable(time: str) -> str:
    """Make RFC 3339 UTC times comparable as text: Go omits trailing zeros of the fraction."""
    seconds, _dot, fraction = time.removesuffix("Z").partition(".")
    return f"{seconds}.{fraction:0<9}"


def _json_object(text: bytes | Sequence[int]) -> dict[str, Any]:
    import orjson  # not before the runtime is executed, see linux/plain_json

    try:
        value = orjson.loads(bytes(text))
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
