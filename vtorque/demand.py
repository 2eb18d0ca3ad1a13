# SPDX-License-Identifier: Apache-2.0
"""Who wants what on this node, and that user's side of it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from vtorque import accounts, request
from vtorque.deadline import Deadline
from vtorque.errors import RequestError
from vtorque.model import Account, Job, VmRequest
from vtorque.node import Node
from vtorque.userside import UserSide

_USER_SIDE_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Who wants what: the job, its user, and the request it carries."""

    job: Job
    account: Account
    request: VmRequest


def demand(job: Job, node: Node) -> Demand:
    """What the job asks for; RequestError when its user may not, or it carries no request."""
    account = accounts.account(job.user, min_uid=node.site.min_uid)
    wanted = request.decode(job.request)
    if wanted.distro == "osv":
        raise RequestError("-vm distro=osv: OSv has no shell for a job's script, and is not supported by this version")
    return Demand(job=job, account=account, request=wanted)


@contextlib.contextmanager
def user_side(wanted: Demand, node: Node) -> Iterator[UserSide]:
    """The user's side of a job."""
    with contextlib.closing(UserSide(node.clerk(wanted.account), wanted.request.request_id)) as side:
        yield side


def brief(deadline: Deadline) -> Deadline:
    """As long as anybody may wait for a user's file system."""
    return deadline.within(_USER_SIDE_SECONDS)
