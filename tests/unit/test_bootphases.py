# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of a boot: the guest's clock beside the host's, and what neither of them can make nonsense of."""

import json

import pytest

from vtorque import bootphases
from vtorque.bootphases import GUEST, HOST, Span

CLOUD_INIT = {"v1": {
    "datasource": "DataSourceNoCloud [seed=/dev/vdb][dsmode=net]",
    "init-local": {"errors": [], "start": 1008.5, "finished": 1010.0},
    "init": {"errors": [], "start": 1010.25, "finished": 1014.0},
    "modules-config": {"errors": [], "start": 1014.5, "finished": 1015.0},
    "modules-final": {"errors": [], "start": 1019.75, "finished": None},
    "stage": "modules-final",
}}
OUTPUT = f"""\
Debian GNU/Linux 12
vtorque-boot uptime 20.00
vtorque-boot now 1020.000000000
vtorque-boot userspace 1004.500000000
vtorque-boot set-up-began 1011.000000000
vtorque-boot set-up-ended 1013.500000000
vtorque-boot sshd 1016.000000000
vtorque-boot cloud-init {json.dumps(CLOUD_INIT)}
"""
PHASES = "".join(json.dumps({"phase": phase, "time": at, **more}) + "\n" for phase, at, more in (
    ("queued", 400.0, {}), ("planned", 499.0, {}), ("started", 500.0, {}), ("first-packet", 511.5, {"guests": 1}),
    ("announced", 517.0, {"guests": 1, "word": "guest"}), ("ssh", 517.5, {"guests": 1}),
    ("cloud-init", 517.75, {"guests": 1, "word": "guest"}), ("ready", 518.0, {}), ("running", 521.0, {}),
)).encode()


def boot(output: str = OUTPUT, record: bytes = PHASES) -> dict[str, Span]:
    return {span.name: span for span in bootphases.spans(bootphases.phases(record), bootphases.facts(output))}


def test_the_two_clocks_meet_where_the_script_begins() -> None:
    # It began at 521 by the host, 21 s after the start, when the guest had been up for 20 s.
    assert boot() == {span.name: span for span in (
        Span("firmware", 0.0, 1.0, GUEST), Span("boot", 0.0, 18.0, HOST), Span("kernel", 1.0, 5.5, GUEST),
        Span("userspace", 5.5, 17.0, GUEST), Span("cloud-init local", 9.5, 11.0, GUEST),
        Span("cloud-init network", 11.25, 15.0, GUEST), Span("first packet", 11.5, 11.5, HOST),
        Span("mounts", 12.0, 14.5, GUEST), Span("cloud-init config", 15.5, 16.0, GUEST),
        Span("announced", 17.0, 17.0, GUEST), Span("sshd listens", 17.0, 17.0, GUEST), Span("SSH", 17.5, 17.5, HOST),
        Span("set up", 17.75, 17.75, GUEST), Span("hand-over", 18.0, 21.0, HOST),
    )}


def test_the_parts_come_in_the_order_in_which_they_began() -> None:
    found = bootphases.spans(bootphases.phases(PHASES), bootphases.facts(OUTPUT))
    assert found == sorted(found, key=lambda span: span.began)


def test_of_a_guest_without_systemd_only_the_hosts_phases_are_shown() -> None:
    silent = "vtorque-boot uptime 3.10\nvtorque-boot now 1003.%N\nvtorque-boot sshd stat: bad format\n"
    for output in ("", silent, "vtorque-boot now 1003.5\n"):
        assert set(boot(output)) == {"boot", "hand-over", "first packet", "announced", "SSH", "set up"}


def test_a_stage_of_cloud_init_that_goes_on_is_not_shown() -> None:
    assert "cloud-init final" not in boot()


@pytest.mark.parametrize("said", ["1020.5", "999.9", "0", "1e9", "-3", "nan", "17 18", "", "9" * 400, "1" * 10])
def test_a_time_before_the_kernel_or_after_the_script_was_not_said(said: str) -> None:
    found = bootphases.facts(OUTPUT.replace("sshd 1016.000000000", f"sshd {said}"))
    assert "sshd" not in found
    assert found["userspace"] == 4.5, "the others stand"


@pytest.mark.parametrize("said", [
    "[]", "{}", '{"v1": []}', '{"v1": {"init": 3}}', "[" * 5000, "no JSON",
    '{"v1": {"init-local": {"start": "1008", "finished": NaN}}}', '{"v1": {"init-local": {"start": null}}}',
])
def test_what_cloud_init_cannot_have_written_is_no_stage(said: str) -> None:
    found = bootphases.facts(OUTPUT.replace(json.dumps(CLOUD_INIT), said))
    assert not [name for name in found if name.endswith("-began") and name != "set-up-began"]


def test_a_firmware_does_not_take_less_than_nothing() -> None:
    assert boot(OUTPUT.replace("uptime 20.00", "uptime 22.00"))["firmware"] == Span("firmware", 0.0, 0.0, GUEST)


def test_a_record_that_was_cut_off_loses_no_more_than_its_end() -> None:
    assert set(boot(record=PHASES[:-10] + b"\n[]\n3\n\xff\n")) == set(boot("")) - {"hand-over"}
    assert boot(record=b"") == {}


def test_of_a_job_that_was_requeued_only_its_last_start_counts() -> None:
    again = PHASES.replace(b"announced", b"heard") + PHASES.replace(b'"phase": "announced"', b'"phase": "other"')
    assert bootphases.phases(PHASES + again) == bootphases.phases(PHASES.replace(b"announced", b"other"))
    assert bootphases.spans({"queued": 1.0}, {"uptime": 3.0}) == []


def test_medians_are_those_of_begin_and_length_over_the_boots_in_which_a_part_was_seen() -> None:
    boots = [
        [Span("kernel", 1.0, 3.0, GUEST), Span("boot", 0.0, 9.0, HOST)],
        [Span("kernel", 5.0, 6.0, GUEST), Span("boot", 0.0, 30.0, HOST)],
        [Span("boot", 0.0, 10.0, HOST)],
    ]
    assert bootphases.medians(boots) == [Span("boot", 0.0, 10.0, HOST), Span("kernel", 3.0, 4.5, GUEST)]


def test_the_table_says_whose_word_a_time_is() -> None:
    assert bootphases.table([Span("kernel", 1.0, 5.5, GUEST), Span("SSH", 17.5, 17.5, HOST)]) == (
        "PHASE                    BEGAN        TOOK  SAYS\n"
        "kernel                 1.000 s     4.500 s  guest\n"
        "SSH                   17.500 s           -  host\n"
    )
