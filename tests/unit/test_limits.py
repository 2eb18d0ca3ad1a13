# SPDX-License-Identifier: Apache-2.0
"""What a site allows: everybody, groups, images."""


import contextlib
from pathlib import Path

import pytest

from tests.builders import a_request
from vtorque import config, limits
from vtorque.cli import wording
from vtorque.errors import ConfigError, RequestError
from vtorque.model import VmRequest
from vtorque.options import SiteConfig

SITE = SiteConfig(
    max_vcpus=8, max_ram=4096, max_vms_per_node=2,
    group_limits=("students max_vcpus=2 max_ram=2G", "staff max_vcpus=4 max_disk_size=20G"),
    image_limits=("win.qcow2 groups=staff,admins max_vms_per_node=1", "debian-12.qcow2 max_ram=3G"),
)


def refusal(wanted: VmRequest, *groups: str) -> str:
    with pytest.raises(RequestError) as caught:
        limits.check(wanted, SITE, groups)
    return caught.value.one_line()


@pytest.mark.parametrize(
    ("change", "groups", "says"),
    [
        ({"vcpus": 9}, (), "-vm vcpus=9: this cluster allows at most 8"),
        ({"memory_mib": 5120}, (), "-vm ram=5120 MiB: this cluster allows at most 4096 MiB"),
        ({"vms_per_node": 3}, (), "-vm vms_per_node=3: this cluster allows at most 2"),
        ({"vcpus": 3}, ("students",), "-vm vcpus=3: group students allows at most 2"),
        ({"vcpus": 5}, ("students", "staff"), "-vm vcpus=5: group students and staff allows at most 4"),
        ({"disk_size_mib": 20481}, ("staff",), "-vm disk_size=20481 MiB: group staff allows at most 20480 MiB"),
        ({"memory_mib": 3500}, (), "-vm ram=3500 MiB: image debian-12.qcow2 allows at most 3072 MiB"),
        ({"memory_mib": 3500, "image": "debian-12.qcow2@2"}, (), "image debian-12.qcow2 allows at most 3072 MiB"),
        ({"image": "win.qcow2"}, ("students",), "-vm img=win.qcow2: only for members of staff, admins"),
        ({"image": "win.qcow2", "vms_per_node": 2}, ("staff",), "image win.qcow2 allows at most 1"),
    ],
)
def test_what_is_beyond_a_limit_is_refused_with_the_numbers(
    change: dict[str, object], groups: tuple[str, ...], says: str
) -> None:
    assert says in refusal(a_request()._replace(**change), *groups)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["iocm", "vrdma", "unclot"])
def test_what_the_site_has_switched_off_is_refused_and_else_is_not(key: str) -> None:
    """vsub leaves it out; who writes a request himself asks for it all the same."""
    wanted = a_request(**{key: True}, iocm_min_cores=1, iocm_max_cores=4)
    with pytest.raises(RequestError, match=f"-vm {key}=: {key} is off on this cluster"):
        limits.check(wanted, SiteConfig(), [])
    limits.check(wanted, SiteConfig(**{f"{key}_enabled": True}), [])
    limits.check(a_request(**{key: False}), SiteConfig(), [])


@pytest.mark.parametrize(("least", "most", "good"), [(1, 12, True), (2, 3, True), (0, 12, False), (1, 13, False)])
def test_iocm_keeps_to_the_sites_cores(least: int, most: int, good: bool) -> None:
    wanted, site = a_request(iocm=True, iocm_min_cores=least, iocm_max_cores=most), SiteConfig(iocm_enabled=True)
    with contextlib.nullcontext() if good else pytest.raises(RequestError, match="allows 1 to 12 cores of IOcm"):
        limits.check(wanted, site, [])


def test_what_is_within_them_passes_and_the_most_generous_group_counts() -> None:
    for wanted, beyond, groups in (
        (a_request(vcpus=8, memory_mib=3072, vms_per_node=2), a_request(vcpus=9), ["others"]),
        (a_request(vcpus=4, memory_mib=2560), a_request(vcpus=5), ["students", "staff"]),
        (a_request(image="win.qcow2"), a_request(image="win.qcow2", vms_per_node=2), ["admins"]),
    ):
        limits.check(wanted, SITE, groups)
        assert "allows at most" in refusal(beyond, *groups)


def test_no_limit_is_no_limit() -> None:
    wanted = a_request(vcpus=1024, memory_mib=1 << 24, vms_per_node=256)
    limits.check(wanted, SiteConfig(), [])
    assert "this cluster allows" in refusal(wanted)


@pytest.mark.parametrize(
    "text", ["", "a b", "a max_x=1", "a max_vcpus=x", "a max_ram=1X", "a max_disk_size=x", "a groups=", "a groups=a,,b",
             "a/b max_vcpus=1"],
)
def test_a_limit_that_cannot_be_read_is_an_error_of_the_configuration(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not|not a"):
        limits.parse(text)


def test_users_are_told() -> None:
    assert list(wording.limits(SITE))[:3] == ["vcpus at most 8", "ram at most 4G", "vms_per_node at most 2"]
    assert "group staff max_vcpus=4 max_disk_size=20G" in list(wording.limits(SITE))


def test_a_site_that_has_no_disks_of_users_says_so() -> None:
    site = SITE.but(disk_allowed=False)
    with pytest.raises(RequestError, match="-vm disk=: this cluster allows no disks of users"):
        limits.check(a_request(disk="/home/ann/a.qcow2"), site, ())
    limits.check(a_request(), site, ())
    assert "no disk" in wording.limits(site) and "no disk" not in wording.limits(SITE)


def test_a_disk_that_would_be_made_counts_like_a_larger_one() -> None:
    wanted = a_request(disk="/home/ann/a.qcow2", disk_new_mib=20481)
    assert refusal(wanted, "staff") == "-vm disk=: a new one of 20481 MiB: group staff allows at most 20480 MiB"
    limits.check(wanted._replace(disk_new_mib=20480), SITE, ("staff",))


@pytest.mark.parametrize(("text", "says"), [
    ("students max_vcpus=4", 'must be a list, like ["students max_vcpus=4 max_ram=8G"]'),
    ("[students max_vcpus=many]", "'many' is not a whole number"),
])
def test_limits_in_a_configuration_are_checked_like_everything_there(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "vtorque.yaml"
    file.write_text(f"GROUP_LIMITS: {text}\n")
    with pytest.raises(ConfigError) as caught:
        config.load(file, trusted_owner=None)
    assert says in caught.value.one_line()
