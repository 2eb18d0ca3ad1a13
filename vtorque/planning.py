# SPDX-License-Identifier: Apache-2.0
"""The asking side of planning: what a child that is nobody is asked, and what of its answers is believed.

The child decides and writes texts, by templates and from what a user asked for. It may choose where
guests run, and nothing else: whose the guests are, what they are called, what they mount and how much
they get has to be what the request, the site and the job make of them, and each domain document has to open,
name and limit just that.
"""

from collections.abc import Mapping
from typing import Any

from vtorque import domaincheck, guestnames, orders, servant, shares
from vtorque.config import SiteConfig
from vtorque.deadline import Deadline
from vtorque.errors import InternalError, StateError
from vtorque.model import JobPlan, Order, Question, Templates
from vtorque.servant import Asked


class Planning:
    """Plans of this site and the texts of their guests, asked for and looked through."""

    def __init__(self, site: SiteConfig, planner: Asked, *, templates: Templates) -> None:
        self._site = site
        self._templates = templates
        self._planner = planner

    def plan(self, question: Question, *, deadline: Deadline) -> JobPlan:
        """The plan. Raises what the planner has to say of request and node, and InternalError for what is none."""
        answer = self._ask("plan", question, deadline=deadline)
        try:
            decided = orders.decode(JobPlan, answer.encode())
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InternalError("the planner's answer is no plan", details=str(error)) from error
        _require_own(decided, question, self._site)
        return decided

    def write(self, decided: JobPlan, order: Order, *, handle: int, deadline: Deadline) -> str:
        """Have the seed of a guest of the last plan written to an empty file; the guest's domain document.

        Raises ConfigError when a template is broken, or what it makes differs from the plan.
        """
        domain_xml = self._ask("write", order, deadline=deadline, handle=handle)
        vm = decided.vms[order.slot]
        domaincheck.domain(domain_xml, decided, vm, site=self._site, templates=self._templates)
        return domain_xml

    def close(self) -> None:
        """No more guests are to be started."""
        self._planner.dismiss()

    def _ask(self, verb: str, about: object, *, deadline: Deadline, handle: int | None = None) -> str:
        try:
            answer = self._planner.ask(verb, orders.encode(about).decode(), deadline=deadline, handle=handle)
        except servant.Gone as error:
            raise StateError("what plans guests has ended", details=str(error)) from error
        if not isinstance(answer, str):
            raise InternalError("the planner's answer is no text")
        return answer


def _require_own(decided: JobPlan, question: Question, site: SiteConfig) -> None:
    """Whatever in a plan is not the planner's to choose is what we make of the question; InternalError."""
    job, shape = question.job, question.shape
    node = job.nodes[job.node_index] if job.nodes else shape.name
    asked = {name: getattr(question, name) for name in ("job", "account", "request", "image")}
    asked["mounts"] = shares.mounts(question.account, question.request, question.image, site)
    _compare(decided, asked)
    if len(decided.vms) != question.request.vms_per_node:
        raise InternalError(f"the planner made {len(decided.vms)} guests of {question.request.vms_per_node}")
    for slot, vm in enumerate(decided.vms):
        _compare(vm, guestnames.given(job, question.request, site, slot=slot, node=node))
    own = {cpu for vm in decided.vms for cpus in vm.pins for cpu in cpus} | set(decided.iocm_cpus)
    hosts = {cpu for vm in decided.vms for cpu in vm.emulator_cpus}
    if not own <= set(shape.cpus) or not hosts <= {*shape.cpus, *shape.outside}:
        raise InternalError("the planner put guests on CPUs that the job has not")


def _compare(found: object, wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        if getattr(found, name) != value:
            raise InternalError(f"the planner chose {name}, which is not its to choose")
