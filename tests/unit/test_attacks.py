# SPDX-License-Identifier: Apache-2.0
"""Which tests show what becomes of which attack of `doc/security.md`."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
MANUAL = TESTS.parent / "doc/security.md"

USER, LIFE, HOOKS = "contract/test_hostile_user.py::", "contract/test_privileged.py::", "contract/test_hooks.py::"
SERVERS = "contract/test_hostile_servers.py::"
GUEST, SSH, SHARES = "contract/test_hostile_guest.py::", "contract/test_transport.py::", "contract/test_shares.py::"
FACTS, FAULTS, SISTERS = "contract/test_facts_hooks.py::", "contract/test_faults.py::", "contract/test_sisters.py::"
IMAGES, FRAMES, FRAMES6 = (
    "contract/test_image_inspection.py::", "contract/test_netfilter.py::", "contract/test_netfilter6.py::",
)
VALUES, ACCOUNTS, DISCOVER = "unit/test_hostile_values.py::", "unit/test_accounts.py::", "unit/test_discover.py::"
REQUEST, RENDER, RUN = "unit/test_request.py::TestText::", "unit/test_render.py::", "unit/test_run.py::"
BOOTED = (
    "e2e/test_shares.py::test_a_job_finds_its_files_when_the_host_serves_them_and_root_in_its_guest_no_others"
)
OBSERVE, CATALOGUE = "unit/test_observe.py::", "contract/test_catalogue.py::"

ATTACKS: dict[str, tuple[str, ...]] = {
    "1.1": (
        f"{LIFE}test_root_opens_and_looks_at_nothing_below_the_home",
        f"{RENDER}test_a_sites_template_cannot_start_another_guest",
    ),
    "1.2": (
        f"{USER}test_a_trap_at_every_name_harms_nobody_and_holds_nobody_up",
        f"{USER}test_traps_catch_a_program_that_stays_root",
    ),
    "1.3": (
        f"{USER}test_a_directory_that_is_swapped_all_the_time_leads_nowhere",
        f"{USER}test_a_swapped_directory_catches_a_program_that_stays_root",
    ),
    "1.4": (
        "unit/test_privileged.py::test_root_changes_modes_and_owners_through_descriptors_only",
        "unit/test_privileged.py::test_what_goes_by_a_path_is_noticed",
    ),
    "1.5": (f"{LIFE}test_root_starts_no_program_but_these_and_changes_nothing_of_the_hosts",),
    "1.6": (
        f"{FACTS}test_a_hostile_argument_is_one_line_and_no_failure_that_mom_acts_on",
        "unit/test_torque.py::test_what_is_no_job_id_is_refused",
        "unit/test_slurm.py::test_what_is_no_job_id_is_refused",
    ),
    "1.7": (
        f"{LIFE}test_nothing_is_made_where_everybody_may_write",
        "contract/test_imagecache.py::test_root_looks_for_nothing_below_what_a_user_can_change",
        "contract/test_imagecache.py::test_what_is_not_yet_there_is_not_made_where_others_can_write",
    ),
    "1.8": (
        f"{HOOKS}test_a_program_that_others_can_change_starts_nothing",
        f"{HOOKS}test_a_poisoned_environment_does_not_reach_root",
    ),
    "1.9": (f"{USER}test_another_user_finds_nothing_to_read_or_to_change_in_a_live_job",),
    "1.10": (
        f"{USER}test_no_start_and_no_end_depends_on_what_a_user_has_prepared",
        f"{RUN}test_a_marker_that_is_neither_roots_nor_the_programs_is_not_believed",
        f"{RUN}test_a_link_to_a_marker_is_not_believed",
        f"{SISTERS}test_what_a_user_publishes_himself_is_no_guest",
    ),
    "1.11": (
        f"{RUN}test_a_marker_of_another_job_or_boot_is_not_believed",
        f"{SISTERS}test_a_second_start_is_not_fooled_by_what_the_first_published",
    ),
    "1.12": (
        f"{ACCOUNTS}test_nobody_else_is_taken_for_him",
        f"{ACCOUNTS}test_what_would_be_more_than_a_field_of_the_guests_passwd_is_refused",
    ),
    "1.13": (
        f"{USER}test_the_child_that_has_become_the_user_is_still_closed_to_him",
        f"{SHARES}test_only_qemu_may_connect_and_the_user_cannot_look_into_his_server",
    ),
    "1.14": (
        f"{USER}test_no_start_and_no_end_depends_on_what_a_user_has_prepared",
        "contract/test_files.py::test_a_side_that_hangs_is_given_up_and_not_asked_again",
        f"{FAULTS}test_a_home_that_hangs_delays_a_start_once_and_keeps_nobody",
    ),
    "1.15": (
        f"{SERVERS}test_a_side_that_its_user_has_stopped_holds_nobody_up",
        f"{SERVERS}test_a_process_that_its_user_traces_is_not_waited_for",
        f"{SERVERS}test_however_a_users_process_ends_it_is_not_the_nodes_fault",
        f"{SERVERS}test_who_stops_or_kills_the_server_of_his_share_gets_to_know_it",
    ),
    "1.16": (
        f"{SERVERS}test_processes_without_end_that_say_they_are_a_server_keep_no_job_here",
        f"{SERVERS}test_what_a_kill_does_not_end_is_left_to_its_user",
    ),
    "1.17": (
        f"{SERVERS}test_a_users_server_has_no_file_of_roots_open",
        f"{SERVERS}test_a_server_that_talks_without_end_is_read_for_a_while",
        f"{SHARES}test_what_is_there_by_an_old_log_is_not_read_whole",
    ),
    "2.1": (
        f"{HOOKS}test_the_sites_own_hooks_run_with_moms_own_arguments",
        "contract/test_shims.py::test_the_sites_own_hook_is_told_the_same_with_guests_and_without",
    ),
    "2.2": (
        f"{FACTS}test_a_jobs_name_may_be_anything", f"{RUN}test_the_order_counts_its_own_bytes_and_quotes_everything",
        "contract/test_vsub.py::TestKinds::test_arguments_are_qsubs_affair",
        "contract/test_vsub_slurm.py::test_a_value_that_looks_like_it_is_a_value",
        "unit/test_torque.py::test_what_is_no_user_name_is_refused",
    ),
    "2.3": (
        f"{HOOKS}test_a_poisoned_environment_does_not_reach_root",
        "contract/test_shims.py::test_whatever_is_in_moms_environment_ours_does_its_work",
        "contract/test_openpbs.py::TestTheHookFile::test_a_poisoned_environment_does_not_reach_the_command",
    ),
    "2.4": (
        f"{HOOKS}test_a_request_that_root_refuses_is_told_on_the_jobs_stderr",
        f"{REQUEST}test_arbitrary_content_is_refused_and_nothing_worse",
        "unit/test_fuzz.py::test_a_changed_request_is_refused_or_is_another_one_spelled_rightly",
        "unit/test_limits.py::test_what_the_site_has_switched_off_is_refused_and_else_is_not",
        "unit/test_limits.py::test_iocm_keeps_to_the_sites_cores",
    ),
    "2.5": (
        f"{REQUEST}test_a_text_above_the_limit_is_not_even_parsed",
        f"{REQUEST}test_a_field_outside_its_range_is_refused",
        "unit/test_limits.py::test_what_is_beyond_a_limit_is_refused_with_the_numbers",
    ),
    "2.6": (
        f"{VALUES}test_a_value_stays_a_value_or_is_refused", f"{VALUES}test_a_template_that_does_not_quote_is_caught",
        "unit/test_metadata.py::test_what_is_not_is_refused_with_its_line",
    ),
    "2.7": (
        "contract/test_vsub.py::test_the_script_is_kept_byte_for_byte_and_secrets_are_private",
        "unit/test_qsub.py::TestHeader::test_any_script_is_refused_or_what_is_left_says_the_same_without_vm",
    ),
    "2.8": (
        f"{FACTS}test_a_prologue_without_a_proper_node_file_says_so_and_starts_nothing",
        "unit/test_slurm.py::test_what_no_slurmd_says_is_refused",
    ),
    "2.9": (
        "unit/test_layers.py::test_no_shell_no_eval_no_pickle",
        "unit/test_orders.py::test_nothing_is_converted_into_what_was_expected",
    ),
    "2.10": (
        "unit/test_config.py::TestTrust::test_a_file_that_others_may_write_is_refused_for_root",
        f"{HOOKS}test_an_image_that_is_not_roots_alone_is_the_sites_fault",
        "contract/test_addresses.py::TestMappingScript::test_what_others_could_have_changed_is_not_run",
    ),
    "2.11": (
        "unit/test_audit.py::test_a_hostile_name_is_one_line_of_bounded_length_and_plain_ascii",
        f"{OBSERVE}test_log_entries_of_the_job_only_each_a_line_that_cannot_be_forged",
        f"{CATALOGUE}test_hostile_text_does_nothing_to_a_terminal",
        f"{OBSERVE}test_a_table_is_a_line_for_each_guest_whatever_was_written_down_of_it",
        "unit/test_published.py::test_what_is_no_guest_is_refused",
    ),
    "2.12": (
        f"{CATALOGUE}test_no_name_leads_out_of_the_catalogue",
        f"{OBSERVE}test_a_user_sees_the_jobs_of_his_own_directory_and_no_plan",
    ),
    "3.1": (
        f"{IMAGES}test_a_crafted_qcow2_is_refused_by_its_own_line",
        f"{IMAGES}test_what_qemu_would_take_for_another_format_is_not_raw",
    ),
    "3.2": (
        f"{IMAGES}TestThePlace::test_an_image_that_changes_after_it_was_looked_at_is_not_used",
        "contract/test_lifecycle.py::test_an_image_that_is_replaced_while_a_start_is_under_way_starts_no_guest",
    ),
    "3.3": (
        f"{IMAGES}TestThePlace::test_a_place_that_others_can_change_is_refused",
        "unit/test_images.py::test_what_is_no_name_is_refused",
        "contract/test_imagecache.py::test_a_wrong_digest_names_both_and_leaves_nothing",
    ),
    "3.4": (f"{IMAGES}test_the_child_has_no_rights_no_environment_and_limits",),
    "4.1": (
        "contract/test_lifecycle.py::test_an_image_that_was_not_verified_is_refused_where_the_site_asks_for_it",
        f"{SHARES}test_a_server_is_the_user_with_all_his_groups_and_nobody_else_exists_for_it", BOOTED,
    ),
    "4.2": (f"{SHARES}test_the_hosts_kernel_forbids_devices_foreign_rights_and_if_told_to_writing", BOOTED),
    "4.3": (
        "unit/test_shares.py::TestServedByTheHost::"
        "test_the_host_serves_its_own_directories_and_opt_only_to_be_read",
        f"{RENDER}test_every_group_and_share_reaches_the_guest",
    ),
    "4.4": (
        f"{FRAMES}test_no_hostile_frame_passes_a_pinned_guests_rules",
        f"{FRAMES}test_a_plain_bridge_passes_every_hostile_frame",
        f"{FRAMES6}test_no_hostile_frame_passes_whether_there_is_an_address_or_none",
    ),
    "4.5": (
        f"{DISCOVER}test_of_two_that_claim_to_be_the_guest_the_proven_one_wins",
        f"{SSH}test_another_host_key_is_refused_before_the_user_is_named",
        f"{GUEST}test_a_guest_that_changes_its_key_is_not_the_one_that_was_proven",
    ),
    "4.6": (
        "unit/test_plan.py::test_macs_begin_with_the_sites_prefix_and_differ_between_jobs",
        "unit/test_plan.py::test_by_default_40_bits_tell_guests_from_each_other_and_none_is_taken_for_one_of_kvms_own",
        "unit/test_netfilter.py::TestRules::test_a_peer_is_one_where_guests_may_be_and_nowhere_else",
    ),
    "4.7": (f"{FRAMES}test_real_network_stacks_connect_where_they_should_and_nowhere_else",),
    "4.8": (f"{VALUES}test_guests_have_no_screen_no_usb_no_sound_and_no_memory_in_common",),
    "4.9": (
        f"{LIFE}test_no_secret_is_in_a_command_line_or_an_environment",
        f"{LIFE}test_secrets_are_in_the_state_directory_for_their_owner_only",
        f"{LIFE}test_secrets_are_gone_afterwards",
    ),
    "4.10": (
        f"{GUEST}test_a_proven_guest_keeps_nobody_for_longer_than_the_deadline",
        f"{GUEST}test_a_program_that_does_not_hang_up_is_caught",
    ),
    "4.11": (
        "contract/test_announcement.py::test_a_guest_that_lies_is_not_believed",
        "contract/test_announcement.py::test_of_a_flood_a_few_hundred_bytes_are_read_and_the_guest_is_left_alone",
    ),
    "4.12": (
        f"{DISCOVER}test_a_guests_own_words_are_one_line_that_no_terminal_obeys",
        f"{OBSERVE}test_a_terminal_obeys_nothing_that_a_guest_prints_however_it_is_cut",
    ),
    "4.13": (
        f"{DISCOVER}test_whose_fault_it_was_arrives_whatever_the_words_are",
        "contract/test_service.py::test_what_one_users_guests_say_does_not_take_the_node_out",
        f"{SISTERS}test_nonsense_that_a_user_publishes_drains_no_node",
        "contract/test_imagecache.py::test_without_a_ram_disk_of_roots_own_the_node_goes_on_with_others",
    ),
    "4.14": (f"{OBSERVE}test_a_file_that_is_not_there_or_not_a_file_is_refused",),
    "4.15": (
        "unit/test_plan.py::test_more_memory_than_the_node_offers_is_refused_with_the_numbers",
        "contract/test_admission.py::test_processes_that_race_are_never_promised_the_same",
    ),
    "4.16": (
        f"{SHARES}test_a_stranger_who_calls_himself_a_server_is_all_that_is_killed",
        f"{FAULTS}test_planted_things_of_others_are_untouched_by_a_whole_life",
    ),
}

NOT_OURS = {
    "4.17": "QEMU, KVM and the kernel keep a guest inside",
    "4.18": "the batch system's queues and the network's own limits share what is left",
}


def test_every_attack_of_the_manual_has_a_test_or_is_said_to_be_anothers() -> None:
    rows = re.findall(r"^\| \*\*([0-9]+\.[0-9]+)\*\* \|(.*)\|$", MANUAL.read_text(), re.MULTILINE)
    numbers = [number for number, _ in rows]
    assert len(numbers) == len(set(numbers)) and set(numbers) == ATTACKS.keys() | NOT_OURS.keys()
    assert not ATTACKS.keys() & NOT_OURS.keys()
    assert {number for number, text in rows if "not ours" in text} == NOT_OURS.keys()


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_test_that_is_named_is_there(attack: str) -> None:
    assert ATTACKS[attack] and [test for test in ATTACKS[attack] if not _is_there(test)] == []


def test_one_that_is_not_there_is_noticed() -> None:
    assert not _is_there("unit/test_attacks.py::test_nothing_of_the_kind")
    assert not _is_there("unit/test_attacks.py::TestNobody::test_one_that_is_not_there_is_noticed")
    assert not _is_there("unit/test_nothing.py::test_one_that_is_not_there_is_noticed")


def _is_there(test: str) -> bool:
    path, _, name = test.partition("::")
    return name in _tests(TESTS / path)


@cache
def _tests(path: Path) -> set[str]:
    """Functions of a file, and of its classes."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body if path.is_file() else ():
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return found
