"""Each option of conmon is here, and a test proves its effect or its refusal."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

from supervisor.frontends.conmon.option_table import HIDDEN, TABLE

TESTS = Path(__file__).parents[1]

WORDS = "unit/test_conmon_words.py: test_the_runtime_is_called_as_conmon_calls_it"
WHOLE = "runtime/test_conmon.py: test_a_container_ends_with_its_files_and_its_status"
CRIO = "runtime/test_conmon_crio.py: test_a_container_from_its_creation_to_its_removal"
EXEC = "runtime/test_conmon.py: test_clients_attach_before_the_process_is_executed"
FIELDS = "runtime/test_conmon_logs.py: test_the_journals_records_have_the_engines_fields"
FLAGS = "runtime/test_conmon_options.py: test_flags_for_the_runtime_reach_it"
LIMIT = "runtime/test_conmon_logs.py: test_a_limit_of_all_that_is_logged_is_met_and_told"
ROTATED = "runtime/test_conmon.py: test_a_log_is_rotated_when_the_engine_says_so"
SECCOMP = "unit/test_conmon_options.py: test_seccomp_notifications_are_refused"

# Source: conmon 2.2.1, and the two options that 2.1.6 had more.
PROOFS = {
    "api-version": "runtime/test_conmon.py: test_an_exec_tells_its_pid_and_then_its_status",
    "bundle": WHOLE,
    "cid": WHOLE,
    "conmon-pidfile": WHOLE,
    "container-pidfile": WHOLE,
    "cuuid": CRIO,
    "exec": EXEC,
    "exec-attach": EXEC,
    "exec-process-spec": EXEC,
    "exit-command": "runtime/test_conmon.py: "
    "test_the_exit_command_has_the_engines_environment_and_directory",
    "exit-command-arg": "runtime/test_conmon.py: "
    "test_the_exit_command_has_the_engines_environment_and_directory",
    "exit-delay": "runtime/test_conmon_options.py: test_the_exit_command_comes_after_its_delay",
    "exit-dir": WHOLE,
    "full-attach": EXEC,
    "leave-stdin-open": CRIO,
    "log-allowlist-dir": "unit/test_conmon_settings.py: "
    "test_a_log_is_rotated_in_the_allowed_directories_alone",
    "log-global-size-max": LIMIT,
    "log-label": FIELDS,
    "log-level": "process/test_syslog.py: test_levels_that_were_not_asked_for_are_not_sent",
    "log-max-files": ROTATED,
    "log-path": "runtime/test_conmon_logs.py: test_a_file_and_the_journal_get_the_same",
    "log-rotate": ROTATED,
    "log-size-max": "runtime/test_conmon.py: test_a_limit_keeps_the_log_small",
    "log-tag": FIELDS,
    "name": FIELDS,
    "no-container-partial-message": FIELDS,
    "no-new-keyring": FLAGS,
    "no-pivot": FLAGS,
    "no-sync-log": "unit/test_conmon_settings.py: test_a_log_driver_is_a_sink",
    "persist-dir": WHOLE,
    "pidfile": "unit/test_conmon_options.py: test_a_command_line_is_read_by_the_rules_of_glib",
    "replace-listen-pid": "runtime/test_conmon_options.py: "
    "test_the_runtime_gets_the_pid_that_listens",
    "restore": "runtime/test_conmon_options.py: test_a_checkpoint_is_restored",
    "restore-arg": "unit/test_conmon_options.py: test_a_command_line_is_read_by_the_rules_of_glib",
    "runtime": FLAGS,
    "runtime-arg": FLAGS,
    "runtime-opt": FLAGS,
    "sdnotify-socket": "runtime/test_conmon_notify.py: "
    "test_the_containers_words_are_passed_on_and_none_of_the_supervisors",
    "seccomp-notify-plugins": SECCOMP,
    "seccomp-notify-socket": SECCOMP,
    "socket-dir-path": CRIO,
    "stdin": EXEC,
    "sync": "runtime/test_conmon.py: test_a_legacy_exec_stays_a_child_and_tells_its_status_alone",
    "syslog": "systemd/test_podman.py: test_what_the_monitor_warns_of_is_in_the_system_log",
    "systemd-cgroup": WORDS,
    "terminal": "runtime/test_conmon.py: test_resizes_reach_the_terminal_also_early_ones",
    "timeout": "runtime/test_conmon.py: test_a_time_limit_is_the_status_below_zero",
    "version": "unit/test_conmon_options.py: test_the_version_is_what_engines_parse",
}


def test_the_table_has_every_option_and_no_other() -> None:
    assert sorted(PROOFS) == sorted(option.name for option in (*TABLE, *HIDDEN))


@functools.cache
def _tests_of(path: str) -> dict[str, str]:
    text = (TESTS / path).read_text()
    return {each.name: text for each in ast.parse(text).body if isinstance(each, ast.FunctionDef)}


@pytest.mark.parametrize("option", PROOFS)
def test_an_option_has_a_test(option: str) -> None:
    path, name = PROOFS[option].split(": ")
    assert name in _tests_of(path)
