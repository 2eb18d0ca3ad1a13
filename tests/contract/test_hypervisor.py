# SPDX-License-Identifier: Apache-2.0
"""What we and a hypervisor promise each other: one suite over the fake and over libvirt itself."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.fakes.hypervisor import FakeHypervisor
from vtorque.backends.hypervisor import Domains
from vtorque.backends.hypervisor.inspector import Inspector
from vtorque.backends.hypervisor.libvirt import Libvirt
from vtorque.deadline import Deadline
from vtorque.errors import DeadlineExceeded, HypervisorError

pytestmark = pytest.mark.runs

XML = """\
<domain type='test'><name>{name}</name><uuid>{uuid}</uuid>
<metadata>{tag}</metadata><memory unit='MiB'>64</memory><os><type>hvm</type></os></domain>
"""
TAG = "<vt:vtorque xmlns:vt='https://vtorque.org/xmlns/domain/1' job='7.srv' rank='0'/>"


def xml(name: str, *, tag: str = TAG, uuid: str = "") -> str:
    return XML.format(name=name, uuid=uuid or uuid4(), tag=tag)


def soon() -> Deadline:
    return Deadline(30)


@pytest.fixture(params=["fake", "libvirt"])
def hypervisor(request: pytest.FixtureRequest) -> Iterator[Domains]:
    """libvirt's own test driver keeps its domains in memory and needs no daemon."""
    if request.param == "fake":
        yield FakeHypervisor()
    else:
        libvirt = Libvirt("test:///default")
        yield libvirt
        libvirt.close()


def test_a_domain_is_created_and_then_gone(hypervisor: Domains) -> None:
    assert not hypervisor.is_running("a", deadline=soon())
    hypervisor.create(xml("a"), deadline=soon())
    assert hypervisor.is_running("a", deadline=soon())
    assert hypervisor.destroy("a", deadline=soon()) is True
    assert not hypervisor.is_running("a", deadline=soon())


def test_a_power_button_is_pressed_and_of_what_is_not_there_quietly(hypervisor: Domains) -> None:
    hypervisor.create(xml("p"), deadline=soon())
    for _ in range(2):
        hypervisor.shutdown("p", deadline=soon())
    assert not hypervisor.is_running("p", deadline=soon())


def test_destroying_twice_or_never_created_is_quiet(hypervisor: Domains) -> None:
    assert hypervisor.destroy("b", deadline=soon()) is False
    hypervisor.create(xml("b"), deadline=soon())
    assert hypervisor.destroy("b", deadline=soon()) is True
    assert hypervisor.destroy("b", deadline=soon()) is False


def test_creating_may_be_repeated(hypervisor: Domains) -> None:
    same = xml("c", uuid=str(uuid4()))
    for _ in range(2):
        hypervisor.create(same, deadline=soon())
    assert hypervisor.destroy("c", deadline=soon())
    assert not hypervisor.is_running("c", deadline=soon())


def test_only_domains_with_our_tag_are_listed(hypervisor: Domains) -> None:
    hypervisor.create(xml("ours"), deadline=soon())
    hypervisor.create(xml("theirs", tag=""), deadline=soon())
    assert hypervisor.domains(deadline=soon()) == {"ours": "7.srv"}
    for name in ("ours", "theirs"):
        hypervisor.destroy(name, deadline=soon())


def test_a_name_that_belongs_to_another_domain_is_refused_in_one_line(hypervisor: Domains) -> None:
    hypervisor.create(xml("d"), deadline=soon())
    with pytest.raises(HypervisorError) as error:
        hypervisor.create(xml("d"), deadline=soon())
    assert error.value.brief.startswith("cannot start guest d: ")
    assert "\n" not in error.value.brief
    hypervisor.destroy("d", deadline=soon())


def test_what_somebody_has_defined_under_our_name_is_destroyed_too() -> None:
    libvirt = Inspector("test:///default")
    libvirt.define(xml("e"), deadline=soon())
    assert libvirt.domains(deadline=soon()) == {"e": "7.srv"}
    assert libvirt.destroy("e", deadline=soon()) is True
    assert libvirt.domains(deadline=soon()) == {}
    libvirt.close()


def test_a_hypervisor_that_is_not_there_is_named() -> None:
    libvirt = Libvirt("test:///nonexistent/file.xml")
    with pytest.raises(HypervisorError, match="cannot look at guest x"):
        libvirt.is_running("x", deadline=soon())


def test_nothing_begins_after_the_deadline(hypervisor: Domains) -> None:
    with pytest.raises(DeadlineExceeded):
        hypervisor.create(xml("late"), deadline=Deadline(0))
    assert hypervisor.domains(deadline=soon()) == {}
