# SPDX-License-Identifier: Apache-2.0
"""Values for tests, each with what it takes to be valid; name only what the test is about."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vtorque import plan
from vtorque.model import Account, Group, GuestKeys, Image, Job, JobId, JobPlan, NodeShape, VmRequest
from vtorque.options import SiteConfig

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICUWPyK1Dl6Ln8wPRUBfT4BXg7WEPrRM8mZSqnsOv67v"


def a_site(**changes: Any) -> SiteConfig:
    site = SiteConfig(
        vm_nfs_home="nfs:/home", vm_nfs_ws="nfs:/ws", vm_nfs_opt="nfs:/opt", hypervisor_type="qemu",
        # Tests of failures leave no note of them.
        node_failure_limit=0,
    )
    return site.but(**changes)


def a_job(**changes: Any) -> Job:
    return Job(id=JobId("7.srv"), user="ann", node_index=0, nodes=("n1",), request="")._replace(**changes)


def a_request(**changes: Any) -> VmRequest:
    request = VmRequest(
        request_id="0123456789abcdef", image="debian-12.qcow2", distro="debian", arch="x86_64",
        vcpus=2, memory_mib=1024, vms_per_node=1, public_key=KEY,
    )
    return request._replace(**changes)


def an_account(**changes: Any) -> Account:
    own, more = Group(name="ann", gid=2000), Group(name="hpc", gid=3000)
    account = Account(name="ann", uid=2000, group=own, groups=(own, more), home=Path("/home/ann"), shell="/bin/bash")
    return account._replace(**changes)


def an_image(**changes: Any) -> Image:
    image = Image(
        name="debian-12.qcow2", distro="debian", arch="x86_64", path=Path("/images/debian-12.qcow2"), sha256="0" * 64,
    )
    return image._replace(**changes)


def a_shape(**changes: Any) -> NodeShape:
    return replace(NodeShape(name="n1", cpus=tuple(range(8)), memory_mib=16384), **changes)


def a_plan(**changes: Any) -> JobPlan:
    """A plan made by the planner itself from the values above, with `changes` to its arguments."""
    arguments: dict[str, Any] = {
        "job": a_job(), "account": an_account(), "request": a_request(), "image": an_image(),
        "site": a_site(), "shape": a_shape(),
    }
    return plan.make(**{**arguments, **changes})


def some_keys() -> GuestKeys:
    return GuestKeys(host_private="-----BEGIN KEY-----\nhost\n-----END KEY-----\n", host_public=KEY, probe_public=KEY)
