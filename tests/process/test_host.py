"""One supervisor process with three containers: a stand-in for the runtime, real processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness import pod

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process

# Its container is a program of the bundle; its exec runs the program `exec` of the bundle.
_RUNTIME = """\
#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in
    --log | --log-format) shift ;;
    --pid-file) pid_file=$2; shift ;;
    --bundle) bundle=$2; shift ;;
    --process) shift ;;
    -d | --all) ;;
    create | exec | start | state | kill | delete) verb=$1 ;;
    *) id=${id:-$1}; last=$1 ;;
    esac
    shift
done
cd DIRECTORY
case $verb in
create)
    /bin/sh "$bundle/program" & echo $! > "$id.pid"; cp "$id.pid" "$pid_file.new"
    printf %s "$(cat "$id.pid")" > "$pid_file.new"; mv "$pid_file.new" "$pid_file" ;;
exec)  # dash reaps a child that ends before it does
    (while [ -e /proc/$$/exe ]; do :; done; exec /bin/sh exec) & printf %s $! > "$pid_file" ;;
kill)
    kill -s "${last#SIG}" "$(cat "$id.pid")" ;;
state)
    echo '{"status": "stopped"}' ;;
delete)
    rm "$id.pid" ;;
esac
"""


_CONFIG = '{"ociVersion": "1.0.2", "linux": {"namespaces": [{"type": "pid"}]}}'


def test_three_containers_in_one_process_have_their_own_timers_and_ends(tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    runtime.write_text(_RUNTIME.replace("DIRECTORY", str(tmp_path)))
    runtime.chmod(0o755)
    (tmp_path / "exec").write_text(pod.SECOND)
    bundles = {}
    for name, program in (("a", pod.DEAF), ("b", pod.OBEYS), ("c", pod.STAYS)):
        bundles[name] = tmp_path / f"bundle-{name}"
        bundles[name].mkdir()
        (bundles[name] / "program").write_text(program)
        (bundles[name] / "config.json").write_text(_CONFIG)
    pod.run(tmp_path, str(runtime), bundles, {"args": ["exec"], "cwd": "/"})
