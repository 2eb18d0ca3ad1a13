# SPDX-License-Identifier: Apache-2.0
"""Bring a job's outputs to its user."""

from vtorque import proc
from vtorque.deadline import Deadline
from vtorque.errors import VtorqueError
from vtorque.mom.spool import Home, JobRecord

_COPY_SECONDS = 60.0


def deliver(home: Home, job: JobRecord) -> None:
    """Copy the outputs to the user's files, as the user, or keep them where he can ask for them."""
    identity = proc.Identity(uid=job.uid, gid=job.gid, groups=job.groups)
    for ending, target in (("OU", job.output_path), ("ER", job.error_path)):
        spooled = home.output(job.id, ending)
        if not spooled.exists():
            continue
        try:
            copy = ["/bin/cp", "--", str(spooled), target]
            proc.run(copy, deadline=Deadline(_COPY_SECONDS), identity=identity)
            spooled.unlink()
        except VtorqueError:
            spooled.rename(home.undelivered() / spooled.name)
