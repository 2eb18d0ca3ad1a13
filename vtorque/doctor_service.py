# SPDX-License-Identifier: Apache-2.0
"""Whether this node has taken itself out after failing one job after the other."""

from collections.abc import Iterator

from vtorque import service
from vtorque.config import SiteConfig
from vtorque.doctor_checks import Finding, error, ok, warning


def in_service(site: SiteConfig) -> Iterator[Finding]:
    """The node takes jobs with guests, and did not fail the last ones."""
    standing = service.look(site)
    if standing.out:
        yield error("service", f"out since {standing.since}: {standing.out}", f"mend it, then {service.BRING_BACK}")
    elif standing.row:
        jobs = ", ".join(each.job for each in standing.row)
        yield warning("service", f"the last jobs with guests failed here: {jobs}", f"vmgr logs {standing.row[-1].job}")
    else:
        yield ok("service", "the node takes jobs with guests")
