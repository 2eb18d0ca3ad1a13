# SPDX-License-Identifier: Apache-2.0
"""The planner: the same answer everywhere, the node's limits, and the numbers in every refusal."""

import itertools

import pytest

from tests.builders import a_job, a_plan, a_request, a_shape, a_site, an_image
from vtorque.errors import RequestError
from vtorque.model import JobId
from vtorque.overhead import qemu_memory_mib

SHAPES = list(itertools.product(range(1, 5), (1, 2, 3, 7), (64, 1000, 2048)))


@pytest.mark.parametrize(("guests", "vcpus", "memory"), SHAPES)
def test_every_plan_keeps_its_promises(guests: int, vcpus: int, memory: int) -> None:
    request = a_request(vms_per_node=guests, vcpus=vcpus, memory_mib=memory)
    shape = a_shape(cpus=tuple(range(3, 40)), memory_mib=64000)
    made = a_plan(request=request, shape=shape, site=a_site(host_os_core_count=2))
    assert [vm.rank for vm in made.vms] == list(range(guests))
    pins = [cpu for vm in made.vms for cpu in vm.cpus]
    assert len(pins) == len(set(pins)) == guests * vcpus
    assert set(pins) <= set(shape.cpus[2:])
    for what in ("name", "uuid", "mac", "hostname", "overlay", "seed", "console"):
        assert len({getattr(vm, what) for vm in made.vms}) == guests, what
    assert made == a_plan(request=request, shape=shape, site=a_site(host_os_core_count=2))


def test_names_are_those_of_the_manual() -> None:
    (vm,) = a_plan(job=a_job(nodes=("cn12.example.org",))).vms
    assert (vm.name, vm.hostname) == ("7.srv_1of1", "vcn12-1")


def test_an_array_element_makes_names_that_files_and_domains_can_have() -> None:
    (vm,) = a_plan(job=a_job(id=JobId("58[2].srv"))).vms
    assert vm.name == "58-2.srv_1of1"
    assert str(vm.seed) == "/run/vtorque/seeds/58-2.srv_1of1.iso"


@pytest.mark.parametrize("prefix", ["02", "52:54", "52:54:00"])
def test_macs_begin_with_the_sites_prefix_and_differ_between_jobs(prefix: str) -> None:
    macs = {
        a_plan(job=a_job(id=JobId(f"{number}.srv")), site=a_site(mac_prefix=prefix)).vms[0].mac
        for number in range(200)
    }
    assert len(macs) == 200
    assert all(mac.startswith(prefix) and len(mac) == 17 for mac in macs)


def test_by_default_40_bits_tell_guests_from_each_other_and_none_is_taken_for_one_of_kvms_own() -> None:
    octets = bytes.fromhex(a_plan().vms[0].mac.replace(":", ""))
    first = octets[0]
    assert (first & 3, len(octets) - len(bytes.fromhex(a_site().mac_prefix))) == (2, 5), "locally administered, unicast"
    # QEMU's and libvirt's; docker's, Xen's and others' begin otherwise still.
    assert first != 0x52


def test_more_cores_than_the_node_offers_are_refused_with_the_numbers() -> None:
    with pytest.raises(RequestError) as refusal:
        a_plan(request=a_request(vms_per_node=2, vcpus=4))
    assert refusal.value.brief == "2 guests of 4 vCPUs need 8 cores; node n1 offers 7"


def test_more_memory_than_the_node_offers_is_refused_with_the_numbers() -> None:
    with pytest.raises(RequestError, match=r"^1 guest of 16384 MiB need \d+ MiB .*; node n1 offers 14336 MiB$"):
        a_plan(request=a_request(memory_mib=16384))


def test_memory_that_just_fits_is_taken_and_a_mebibyte_more_is_not() -> None:
    site, shape = a_site(host_os_ram_mb=0), a_shape(memory_mib=qemu_memory_mib(2048, 2))
    assert a_plan(request=a_request(memory_mib=2048), site=site, shape=shape)
    with pytest.raises(RequestError):
        a_plan(request=a_request(memory_mib=2049), site=site, shape=shape)


def test_an_image_of_another_architecture_is_refused() -> None:
    with pytest.raises(RequestError, match="is for aarch64, not x86_64"):
        a_plan(image=an_image(arch="aarch64"))


def test_ranks_are_dense_and_a_sister_comes_to_the_same_without_knowing_the_others() -> None:
    wanted = a_request(vms_per_node=3, vcpus=1)
    nodes = ("n1", "n2.example.org", "n3")
    mother = [a_plan(job=a_job(nodes=nodes, node_index=index), request=wanted) for index in range(3)]
    sister = [
        a_plan(job=a_job(nodes=(), node_index=index), request=wanted, shape=a_shape(name=nodes[index]))
        for index in range(3)
    ]
    assert [vm.rank for made in mother for vm in made.vms] == list(range(9))
    assert [made.vms for made in mother] == [made.vms for made in sister]
    for what in ("mac", "uuid", "hostname"):
        assert len({getattr(vm, what) for made in mother for vm in made.vms}) == 9


def test_shares_that_the_site_does_not_have_are_not_mounted() -> None:
    made = a_plan(site=a_site(vm_nfs_ws="", vm_nfs_opt=""))
    assert [(mount.source, str(mount.target)) for mount in made.mounts] == [("nfs:/home/ann", "/home/ann")]


def test_the_overlays_of_a_ramdisk_job_are_in_the_ram_disk() -> None:
    (vm,) = a_plan(request=a_request(fs_type="ramdisk"), site=a_site(ramdisk_dir="/ram")).vms
    assert str(vm.overlay) == "/ram/jobs/7.srv/7.srv_1of1.qcow2"
    (vm,) = a_plan().vms
    assert str(vm.overlay) == "/var/lib/vtorque/disks/7.srv/7.srv_1of1.qcow2"


def test_without_pinning_nothing_is_pinned() -> None:
    assert a_plan(request=a_request(pinning="false")).vms[0].cpus == ()


def test_a_user_may_map_vcpus_to_cpus_that_his_job_has() -> None:
    mapped = a_plan(request=a_request(pinning="7,2;4-5", vms_per_node=2))
    assert [vm.cpus for vm in mapped.vms] == [(7, 2), (4, 5)]
    with pytest.raises(RequestError, match=r"node n1 offers the CPUs 1-7, not 0,9"):
        a_plan(request=a_request(pinning="0,9"))


def test_an_osv_guest_gets_no_disk() -> None:
    with pytest.raises(RequestError, match="-vm disk=: OSv guests have no place for it"):
        a_plan(request=a_request(distro="osv", disk="/home/ann/a.qcow2"), image=an_image(distro="osv"))
