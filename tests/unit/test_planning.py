# SPDX-License-Identifier: Apache-2.0
"""What root believes of a planner that somebody has got the better of."""

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.builders import a_job, a_request, a_shape, a_site, an_account, an_image, some_keys
from tests.fakes.node import TEMPLATES, TEXTS, Here, a_node
from vtorque import orders, servant
from vtorque.cli.rooted import read_templates
from vtorque.deadline import Deadline
from vtorque.errors import ConfigError, InternalError, NodeBusy, RequestError, StateError
from vtorque.model import JobPlan, Mount, Order, Question, VmPlan
from vtorque.planner import Planner
from vtorque.planning import Planning
from vtorque.shape import Reservation

SITE = a_site()
QUESTION = Question(
    job=a_job(), account=an_account(), request=a_request(vms_per_node=2), image=an_image(), shape=a_shape(outside=(8,))
)
ORDER = Order(slot=1, keys=some_keys(), announce="10.0.0.254", scripts=())


def soon() -> Deadline:
    return Deadline(10.0)


class Turned(Planner):
    """Answers what an honest planner would, but for what somebody makes of it."""

    def __init__(
        self, plan: Callable[[JobPlan], object] = lambda plan: plan,
        document: Callable[[str], object] = lambda document: document,
    ) -> None:
        super().__init__(SITE, TEXTS)
        self._of_plan, self._of_document = plan, document

    def plan(self, question: str, *, deadline: Deadline) -> Any:
        made = self._of_plan(orders.decode(JobPlan, super().plan(question, deadline=deadline).encode()))
        return orders.encode(made).decode() if isinstance(made, JobPlan) else made

    def write(self, order: str, *, deadline: Deadline, handle: int) -> Any:
        return self._of_document(super().write(order, deadline=deadline, handle=handle))


def planning(**turned: Any) -> Planning:
    return Planning(SITE, Here(Turned(**turned)), templates=TEXTS)


def write(ours: Planning, decided: JobPlan, seed: Path = Path("/dev/null")) -> str:
    with seed.open("wb") as file:
        return ours.write(decided, ORDER, handle=file.fileno(), deadline=soon())


def of_guest(**changes: Any) -> Callable[[JobPlan], JobPlan]:
    """The plan with other fields of its second guest."""
    return lambda plan: replace(plan, vms=(plan.vms[0], replace(plan.vms[1], **changes)))


def test_an_honest_plan_and_its_texts_are_believed(tmp_path: Path) -> None:
    ours = planning()
    decided = ours.plan(QUESTION, deadline=soon())
    assert [vm.name for vm in decided.vms] == ["7.srv_1of2", "7.srv_2of2"]
    assert "<name>7.srv_2of2</name>" in write(ours, decided, tmp_path / "seed")
    assert json.dumps(ORDER.keys.host_public).encode() in (tmp_path / "seed").read_bytes()


@pytest.mark.parametrize("name", ["job", "account", "request", "image", "mounts"])
def test_whose_the_plan_is_and_what_it_mounts_is_not_the_planners_to_choose(name: str) -> None:
    other = {
        "job": a_job(user="bob"), "account": an_account(uid=0), "request": a_request(vms_per_node=2, memory_mib=9000),
        "image": an_image(path=Path("/etc/shadow")),
        "mounts": (Mount(source="home", target=Path("/root"), fstype="9p", options="rw", directory=Path("/root")),),
    }[name]
    with pytest.raises(InternalError, match=f"the planner chose {name}, which is not its to choose"):
        planning(plan=lambda plan: replace(plan, **{name: other})).plan(QUESTION, deadline=soon())


@pytest.mark.parametrize(("name", "value"), [
    ("rank", 0), ("slot", 0), ("node_index", 1), ("node", "n2"), ("name", "8.srv_2of2"), ("uuid", UUID(int=1)),
    ("mac", "52:54:00:00:00:01"), ("tap", "eth0"), ("hostname", "login"), ("vcpus", 3), ("memory_mib", 1025),
    ("overlay", Path("/etc/shadow")), ("seed", Path("/etc/shadow")), ("console", Path("/etc/cron.d/x")),
    ("share_sockets", (Path("/run/docker.sock"),)), ("disk_socket", Path("/run/docker.sock")),
    ("channel", Path("/run/dbus/system_bus_socket")),
])
def test_what_a_guest_is_called_and_has_is_not_either(name: str, value: object) -> None:
    with pytest.raises(InternalError, match=f"the planner chose {name}, which is not its to choose"):
        planning(plan=of_guest(**{name: value})).plan(QUESTION, deadline=soon())


def test_every_field_of_a_guest_is_compared_but_for_where_it_runs() -> None:
    compared = {
        "rank", "slot", "node_index", "node", "name", "uuid", "mac", "tap", "hostname", "vcpus", "memory_mib",
        "overlay", "seed", "console", "share_sockets", "disk_socket", "channel",
    }
    assert set(VmPlan.__slots__) - compared == {
        "cpus", "floating", "numa_nodes", "cells", "emulator_cpus", "iothread", "page_kib", "sockets", "threads",
    }


@pytest.mark.parametrize("change", [
    of_guest(cpus=(9,)), of_guest(cpus=(8,)), of_guest(floating=((0, 9), (1,))), of_guest(emulator_cpus=(9,)),
    lambda plan: replace(plan, iocm_cpus=(9,)),
])
def test_guests_run_on_the_cpus_of_their_job(change: Callable[[JobPlan], JobPlan]) -> None:
    with pytest.raises(InternalError, match="on CPUs that the job has not"):
        planning(plan=change).plan(QUESTION, deadline=soon())


@pytest.mark.parametrize(("name", "value"), [
    ("floating", (tuple(range(8)), (0,))), ("emulator_cpus", (0, 8)), ("emulator_cpus", tuple(range(9))),
])
def test_they_may_have_all_of_them_and_the_host_those_outside_of_the_jobs_cpuset(name: str, value: object) -> None:
    decided = planning(plan=of_guest(**{name: value})).plan(QUESTION, deadline=soon())
    assert getattr(decided.vms[1], name) == value


@pytest.mark.parametrize("change", [
    lambda plan: replace(plan, vms=plan.vms[:1]), lambda plan: replace(plan, vms=plan.vms * 2),
    lambda plan: replace(plan, vms=()),
])
def test_there_are_as_many_guests_as_were_asked_for(change: Callable[[JobPlan], JobPlan]) -> None:
    with pytest.raises(InternalError, match=r"the planner made \d guests of 2"):
        planning(plan=change).plan(QUESTION, deadline=soon())


@pytest.mark.parametrize("answer", [
    "", "null", "[]", "{}", pytest.param("[" * 9000, id="deep"), 7, None, ["x"], '{"job": 7}',
])
def test_an_answer_that_makes_no_sense_is_none(answer: object) -> None:
    with pytest.raises(InternalError, match=r"the planner's answer is no (plan|text)"):
        planning(plan=lambda plan: answer).plan(QUESTION, deadline=soon())
    ours = planning(document=lambda document: answer)
    decided = ours.plan(QUESTION, deadline=soon())
    with pytest.raises((InternalError, ConfigError), match=r"the planner's answer is no text|domain\.xml: not XML"):
        write(ours, decided)


@pytest.mark.parametrize(("old", "new"), [
    ("/images/debian-12.qcow2", "/etc/shadow"), ("7.srv_2of2</name>", "8.srv_1of1</name>"),
    ("<memballoon", "<hostdev mode='subsystem' type='pci'><source file='/dev/mem'/></hostdev><memballoon"),
    ("type='bridge'", "type='network'"), (">1024</memory>", ">9024</memory>"),
])
def test_a_domain_document_has_to_be_the_plans(old: str, new: str) -> None:
    ours = planning(document=lambda document: document.replace(old, new))
    decided = ours.plan(QUESTION, deadline=soon())
    with pytest.raises(ConfigError, match=r"template domain\.xml"):
        write(ours, decided)


def test_what_the_planner_has_to_say_of_a_request_or_of_the_node_is_said() -> None:
    with pytest.raises(RequestError, match="2 guests of 8 vCPUs need 16 cores; node n1 offers"):
        planning().plan(replace(QUESTION, request=a_request(vms_per_node=2, vcpus=8)), deadline=soon())
    held = Reservation(key="6.srv", cpus=tuple(range(8)), memory_mib=0, shares=())
    with pytest.raises(NodeBusy, match=r"job 6\.srv holds 8 cores"):
        planning().plan(replace(QUESTION, shape=a_shape(held=(held,))), deadline=soon())


def test_without_a_planner_nothing_is_planned() -> None:
    class Ended:
        def ask(self, verb: str, *words: object, deadline: Deadline, handle: object = None) -> Any:
            raise servant.Gone("killed")

        def dismiss(self) -> None:
            dismissed.append(self)

    dismissed: list[Ended] = []
    ended = Ended()
    with contextlib.closing(Planning(SITE, ended, templates=TEXTS)) as ours:
        with pytest.raises(StateError, match="what plans guests has ended"):
            ours.plan(QUESTION, deadline=soon())
        assert not dismissed
    assert dismissed == [ended]
    with pytest.raises(InternalError, match="nobody plans here"):
        _ = a_node(SITE, planning=None).plans


def test_what_else_lies_beside_templates_is_none(tmp_path: Path) -> None:
    (tmp_path / ".domain.xml.swp").write_bytes(b"b0VIM\xff")
    (tmp_path / "image").write_bytes(b" " * ((1 << 20) + 1))
    (tmp_path / "gone").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert read_templates(TEMPLATES, tmp_path) == TEXTS


def test_a_sites_own_template_comes_before_ours_and_may_lean_on_it(tmp_path: Path) -> None:
    (tmp_path / "meta-data.yaml").write_text("{% include 'parts/own.yaml' %}")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "own.yaml").write_text("local-hostname: {{ vm.hostname }}\nof: the site\n")
    texts = read_templates(TEMPLATES, tmp_path, tmp_path / "missing")
    ours = Planning(SITE, Here(Planner(SITE, texts)), templates=texts)
    decided = ours.plan(QUESTION, deadline=soon())
    write(ours, decided, tmp_path / "seed")
    assert b"local-hostname: vn1-2\nof: the site\n" in (tmp_path / "seed").read_bytes()
