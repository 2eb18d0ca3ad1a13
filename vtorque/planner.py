# SPDX-License-Identifier: Apache-2.0
"""What root's child does that plans and writes, and is nobody. What root makes of its answers: see `planning`."""

from collections.abc import Mapping
from typing import Any

from vtorque import files, orders, plan, render, seed
from vtorque.config import SiteConfig
from vtorque.deadline import Deadline
from vtorque.model import JobPlan, Order, Question, Templates


class Planner:
    """A planner for this site, in words that JSON can say."""

    def __init__(self, site: SiteConfig, templates: Templates) -> None:
        self._site = site
        self._templates = templates
        self._decided: JobPlan | None = None

    @classmethod
    def of_site(cls, told: Mapping[str, Any], templates: Templates) -> "Planner":
        """A planner for the site that root was told of."""
        return cls(SiteConfig.told(told), templates)

    def plan(self, question: str, *, deadline: Deadline) -> str:
        """The plan, which is kept for the texts. RequestError, NodeBusy, ConfigError."""
        asked = orders.decode(Question, question.encode())
        self._decided = plan.make(
            job=asked.job, account=asked.account, request=asked.request, image=asked.image, site=self._site,
            shape=asked.shape,
        )
        return orders.encode(self._decided).decode()

    def write(self, order: str, *, deadline: Deadline, handle: int) -> str:
        """Write the seed of one of its guests to `handle`, a file; the guest's domain document. ConfigError."""
        wanted = orders.decode(Order, order.encode())
        assert self._decided is not None
        rendered = render.guest(
            self._decided, self._decided.vms[wanted.slot], site=self._site, keys=wanted.keys, announce=wanted.announce,
            templates=self._templates, scripts=dict(wanted.scripts),
        )
        files.write_all(handle, seed.iso({
            "user-data": rendered.user_data, "meta-data": rendered.meta_data,
            "network-config": rendered.network_config,
        }))
        return rendered.domain_xml
