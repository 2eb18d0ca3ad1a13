# SPDX-License-Identifier: Apache-2.0
"""Which tests show which fact of `doc/contract.md`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.runs

TESTS = Path(__file__).resolve().parents[1]
MANUAL = TESTS.parent / "doc/contract.md"

MOM, HOOKS, ENGINE = "contract/test_facts_mom.py::", "contract/test_facts_hooks.py::", "contract/test_engine.py::"
OLD, SISTERS, LIFE = "contract/test_mom.py::", "contract/test_sisters.py::", "contract/test_lifecycle.py::"
RERUN, VSUB, QSUB, TORQUE = (
    "contract/test_rerun.py::", "contract/test_vsub.py::", "unit/test_qsub.py::", "unit/test_torque.py::"
)
ARGUMENT = f"{MOM}test_every_argument_is_where_torque_puts_it"
ROW = f"{MOM}test_every_hook_runs_as_its_row_says"

FACTS: dict[str, tuple[str, ...]] = {
    "0.1": (
        f"{OLD}test_a_prologue_killed_by_a_signal_counts_as_success",
        f"{HOOKS}test_a_job_whose_prologue_torque_takes_for_a_success_runs_nothing",
    ),
    "0.2": (
        f"{OLD}test_no_hook_and_a_dangling_link_are_successes",
        f"{HOOKS}test_a_job_whose_prologue_torque_takes_for_a_success_runs_nothing",
    ),
    "0.3": (
        f"{OLD}test_no_sister_gets_an_epilogue_when_the_prologue_fails",
        f"{SISTERS}test_when_the_mother_superior_gives_up_her_sisters_do_so_too",
        f"{SISTERS}test_a_guard_tears_down_what_mom_forgets_without_an_epilogue",
        f"{SISTERS}test_a_second_start_is_not_fooled_by_what_the_first_published",
    ),
    "0.4": (
        f"{MOM}TestFailures::"
        "test_after_a_sisters_failure_her_node_gets_no_epilogue_and_the_mother_superior_runs_hers",
        f"{OLD}test_a_sister_that_fails_starts_the_job_anew_and_nobody_waits_for_the_others",
    ),
    "0.5": (
        f"{MOM}TestDeletion::test_precancel_comes_first_and_the_users_prologue_starts_all_the_same",
        f"{MOM}TestDeletion::test_sisters_run_their_epilogues_meanwhile",
        f"{MOM}TestDeletion::test_a_job_deleted_while_its_sister_begins_it_never_gets_to_its_prologue",
        f"{MOM}TestDeletion::test_a_prologue_that_ends_before_the_kill_starts_the_job",
        f"{OLD}test_a_deleted_jobs_epilogue_runs_beside_its_prologue",
        f"{LIFE}test_a_job_that_is_deleted_meanwhile_gets_no_marker_of_any_kind",
        f"{RERUN}test_an_epilogue_beside_a_running_prologue_ends_it_and_nothing_is_born_late",
    ),
    "0.6": (f"{MOM}TestOrder::test_all_of_the_start_shares_one_budget_and_what_still_runs_is_not_stopped",),
    "0.7": (
        f"{OLD}test_any_other_status_starts_the_job_anew_at_once",
        f"{RERUN}test_failed_starts_are_farther_apart_each_time_and_end_with_the_reason",
        f"{LIFE}test_a_node_fault_is_raised_until_it_happened_too_often",
    ),
    "0.8": (f"{MOM}TestFailures::test_the_output_of_a_prologue_that_fails_stays_in_the_spool",),
    "0.9": (
        f"{SISTERS}test_a_users_fault_on_a_sister_does_not_fail_her_hook",
        f"{SISTERS}test_a_sister_that_is_busy_does_not_fail_her_hook",
    ),
    "0.10": (ROW, f"{HOOKS}test_a_sisters_epilogue_puts_its_closed_descriptors_and_blocked_signals_in_order"),
    "0.11": (f"{MOM}TestOrder::test_two_jobs_hooks_on_one_sister_take_turns_because_they_block_her_mom",),
    "0.12": (f"{MOM}TestSurvivors::test_what_a_prologue_leaves_running_is_never_killed",),
    "0.13": (
        f"{MOM}test_only_the_mother_superior_has_a_node_file_and_nobody_a_job_id_a_home_or_the_users_variables",
        f"{OLD}test_a_prologue_sees_exactly_what_torque_gives_it",
    ),
    "0.14": (f"{OLD}test_names_of_nodes_make_pbs_num_nodes_zero",),
    "1.1": (f"{MOM}TestOrder::test_all_hooks_run_in_torques_order_each_where_it_belongs",),
    "1.2": (f"{OLD}test_all_sisters_begin_at_once_and_end_at_once",),
    "1.3": (f"{ENGINE}test_what_the_engine_does_not_do_is_refused_by_name",),
    **{f"2.{place}": (f"{ARGUMENT}[2.{place}]",) for place in range(12)},
    "2.12": (f"{MOM}test_the_jobs_own_record_is_not_there_during_its_prologue_and_on_a_sister_no_script",),
    "2.13": (f"{MOM}test_a_prologue_may_rewrite_the_jobs_script",),
    "2.14": (f"{OLD}test_an_entry_that_does_not_fit_is_dropped_without_a_word",),
    "2.15": (
        f"{OLD}test_verdicts_run_and_abort", f"{OLD}test_walltime_is_said_and_ends_the_job",
        f"{RERUN}test_a_job_that_is_over_takes_its_directory_along",
        f"{RERUN}test_a_job_that_may_start_again_keeps_it",
    ),
    "2.16": (
        f"{HOOKS}test_a_prologue_reads_its_job_from_as_many_arguments_as_there_are",
        f"{HOOKS}test_an_epilogue_tears_down_with_as_many_arguments_as_there_are",
    ),
    "3.1": (f"{ROW}[presetup]",),
    "3.2": (f"{ROW}[prologue]", f"{OLD}test_a_prologue_sees_exactly_what_torque_gives_it"),
    "3.3": (f"{ROW}[prologue.user]",),
    "3.4": (f"{ROW}[prologue.job]",),
    "3.5": (f"{ROW}[prologue.parallel]",),
    "3.6": (f"{ROW}[prologue.user.parallel]",),
    "3.7": (f"{ROW}[epilogue]", f"{OLD}test_an_epilogue_has_eleven_arguments_and_another_umask"),
    "3.8": (f"{ROW}[epilogue.user]", f"{ROW}[epilogue.job]"),
    "3.9": (f"{ROW}[epilogue.parallel]", f"{ROW}[epilogue.user.parallel]"),
    "3.10": (f"{ROW}[epilogue.precancel]", f"{HOOKS}test_precancel_notes_as_the_user_that_the_job_is_to_end"),
    "4.1": (
        f"{MOM}TestFiles::test_the_owner_reads_and_executes_and_nobody_else_writes",
        f"{MOM}TestFiles::test_the_owner_is_root_and_the_group_does_not_matter",
        f"{MOM}TestFiles::test_a_directory_is_no_hook",
        f"{OLD}test_a_file_that_mom_would_not_run_is_a_failure",
    ),
    "4.2": (
        f"{MOM}TestFiles::test_the_users_kind_must_be_readable_for_him",
        f"{MOM}TestFiles::test_the_users_own_script_must_be_his",
    ),
    "4.3": (
        f"{MOM}TestFiles::test_of_a_link_only_the_target_counts",
        f"{MOM}TestFiles::test_directories_above_are_not_looked_at",
    ),
    "4.4": (
        f"{MOM}TestFiles::test_its_size_does_not_matter", f"{MOM}TestFiles::test_what_cannot_be_executed_is_a_failure",
        f"{MOM}TestFiles::test_env_finds_the_systems_python",
    ),
    "4.5": (f"{MOM}TestFiles::test_with_reduced_checks_any_executable_file_is_run",),
    "4.6": (f"{MOM}TestFailures::test_a_hook_that_cannot_be_looked_at_has_the_error_as_its_status",),
    "5.1": (f"{OLD}test_verdicts_run_and_abort",),
    "5.2": (
        f"{OLD}test_verdicts_run_and_abort", f"{OLD}test_an_aborted_job_delivers_no_output",
        f"{MOM}TestFailures::test_verdicts_are_the_same_for_the_users_kind",
        f"{MOM}TestFailures::test_the_users_own_prologue_has_the_same_verdicts",
    ),
    "5.3": (
        f"{OLD}test_any_other_status_starts_the_job_anew_at_once",
        f"{OLD}test_a_file_that_mom_would_not_run_is_a_failure",
        f"{OLD}test_the_alarm_kills_the_whole_session_and_starts_anew",
        f"{ENGINE}test_a_failing_prologue_ends_an_interactive_job",
    ),
    "5.4": (f"{OLD}test_a_prologue_killed_by_a_signal_counts_as_success",),
    "5.5": (f"{MOM}TestFailures::test_any_status_of_a_sisters_prologue_but_zero_starts_the_job_anew",),
    "5.6": (
        f"{MOM}TestFailures::test_the_status_of_what_runs_at_the_end_changes_nothing",
        f"{MOM}TestFailures::test_a_sisters_epilogue_that_fails_changes_nothing",
    ),
    "6.1": (
        f"{MOM}TestFailures::test_a_hook_is_killed_ten_seconds_before_the_alarm_when_that_is_longer",
        f"{MOM}TestFailures::test_an_epilogue_has_the_alarm_of_a_prologue", f"{TORQUE}test_the_time_is_moms_own",
    ),
    "6.2": (
        f"{OLD}test_the_alarm_kills_the_whole_session_and_starts_anew",
        f"{MOM}TestSurvivors::test_a_process_in_a_session_of_its_own_survives_the_alarm",
    ),
    "7.1": (
        f"{ENGINE}test_the_prologue_has_the_users_terminal_and_the_epilogue_has_none",
        f"{ENGINE}test_keys_typed_while_the_prologue_runs_reach_the_shell",
        f"{ENGINE}test_a_failing_prologue_ends_an_interactive_job",
    ),
    "7.2": (
        f"{ENGINE}test_an_elements_hooks_see_a_job_of_its_own",
        f"{ENGINE}test_elements_that_wait_for_one_another_run_at_once",
        f"{RERUN}test_elements_of_an_array_overlap_on_one_node",
    ),
    "7.3": (
        f"{MOM}TestDeletion::test_a_running_job_gets_precancel_then_term_and_ends_with_271",
        f"{RERUN}test_a_job_that_was_deleted_takes_it_along_because_precancel_said_so",
    ),
    "7.4": (f"{OLD}test_walltime_is_said_and_ends_the_job",),
    "7.5": (
        f"{MOM}TestDeletion::test_qrerun_is_the_epilogue_with_271_and_the_whole_start_again_without_precancel",
        f"{ENGINE}test_a_job_that_is_rerun_starts_all_over_and_ends",
        f"{ENGINE}test_qrerun_is_for_managers_and_for_jobs_that_run",
        f"{RERUN}test_a_job_that_is_rerun_finds_its_directory_again_and_runs_in_new_guests",
        f"{HOOKS}test_a_job_whose_directory_is_gone_says_what_to_do",
    ),
    "7.6": (
        f"{OLD}test_what_is_left_of_the_jobs_session_is_killed",
        f"{MOM}TestSurvivors::test_a_process_in_a_session_of_its_own_survives_its_job",
    ),
    "7.7": (
        f"{RERUN}test_an_epilogue_that_comes_twice_or_before_any_prologue_is_no_trouble",
        f"{RERUN}test_an_epilogue_beside_a_running_prologue_ends_it_and_nothing_is_born_late",
        f"{LIFE}test_jobs_that_mom_forgot_are_swept_and_those_she_knows_are_not",
    ),
    "8.1": (
        f"{OLD}test_the_job_is_a_login_shell_that_reads_a_path",
        f"{MOM}test_a_script_in_python_runs_through_its_own_interpreter_without_input",
    ),
    "8.2": (f"{OLD}test_the_job_is_a_login_shell_that_reads_a_path",),
    "8.3": (f"{TORQUE}test_what_is_no_job_id_is_refused", f"{ENGINE}test_an_elements_hooks_see_a_job_of_its_own"),
    "8.4": (
        f"{OLD}test_outputs_are_the_users_and_private", f"{OLD}test_outputs_that_cannot_be_delivered_are_kept",
    ),
    "8.5": (
        f"{OLD}test_a_shell_killed_by_a_signal_is_256_more",
        f"{OLD}test_a_script_killed_by_a_signal_is_seen_through_its_shell",
    ),
    "8.6": (f"{OLD}test_mom_knows_a_job_by_its_files_while_it_lives",),
    "9.1": (
        f"{QSUB}TestHeader::test_directives_count_until_the_first_line_that_would_run",
        f"{QSUB}TestHeader::test_a_colon_is_tolerated_in_the_first_column_only",
        f"{QSUB}TestHeader::test_a_backslash_at_the_end_of_a_line_joins_it_to_the_next",
        f"{QSUB}TestHeader::test_another_prefix_replaces_the_usual_one",
    ),
    "9.2": (f"{VSUB}TestPrecedence::test_from_the_site_to_the_command_line",),
    "9.3": (
        f"{ENGINE}test_refusals_have_torques_exit_status", f"{ENGINE}test_a_script_that_is_no_text_is_refused",
    ),
    "9.4": (
        f"{ENGINE}test_refusals_have_torques_exit_status", f"{ENGINE}test_vms_options_mean_nothing_to_a_plain_qsub",
    ),
    "9.5": (f"{ENGINE}test_outputs_go_where_they_are_sent",),
    "10.1": (f"{MOM}test_the_return_of_presetup_means_nothing", f"{ROW}[presetup]"),
    "10.2": (f"{MOM}TestOrder::test_all_hooks_run_in_torques_order_each_where_it_belongs",),
    "11.1": (
        f"{HOOKS}test_a_hook_of_a_job_without_guests_is_silent_with_any_number_of_arguments",
        f"{HOOKS}test_a_hostile_argument_is_one_line_and_no_failure_that_mom_acts_on",
        f"{HOOKS}test_a_jobs_name_may_be_anything", f"{HOOKS}test_a_hook_that_is_told_nothing_of_its_job_says_so",
    ),
    "11.2": (
        f"{HOOKS}test_a_prologue_without_a_proper_node_file_says_so_and_starts_nothing",
        f"{HOOKS}test_a_prologue_without_a_node_file_variable_starts_nothing",
        f"{HOOKS}test_an_epilogue_needs_no_node_file",
    ),
}


@pytest.fixture(scope="module")
def collected() -> set[str]:
    """What pytest finds in the files that are named, with parameters and without."""
    files = sorted({str(TESTS / test.partition("::")[0]) for tests in FACTS.values() for test in tests})
    listing = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files],
        cwd=TESTS.parent, capture_output=True, text=True, check=True,
        # Whoever runs us may want more said than that.
        env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},
    ).stdout
    whole = {line.removeprefix("tests/") for line in listing.splitlines() if "::" in line}
    return whole | {test.partition("[")[0] for test in whole}


def test_every_fact_has_tests_and_every_entry_is_a_fact() -> None:
    numbers = re.findall(r"\*\*([0-9]+\.[0-9]+)\*\*|\(([0-9]+\.0)\)\.", MANUAL.read_text())
    facts = [bold or plain for bold, plain in numbers]
    assert len(facts) == len(set(facts)) and set(facts) == set(FACTS)


@pytest.mark.parametrize("fact", FACTS)
def test_every_test_that_is_named_is_there(fact: str, collected: set[str]) -> None:
    assert FACTS[fact]
    assert set(FACTS[fact]) <= collected
