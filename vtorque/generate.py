# SPDX-License-Identifier: Apache-2.0
"""All files of a job in guests, written for the user to look at: nothing is submitted, nothing started."""

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from vtorque import images, orders, plan, render, units
from vtorque.errors import RequestError
from vtorque.model import Account, GuestKeys, Job, JobId, JobPlan, NodeShape, VmRequest
from vtorque.options import SiteConfig
from vtorque.shape import HugePages, NumaNode
from vtorque.submission import Submission

_JOB = JobId("0")
_PLACEHOLDER = "made by root for each start"


def write(
    target: Path,
    draft: Submission,
    site: SiteConfig,
    *,
    account: Account,
    command: Sequence[str],
    wrapper: bytes,
    public_key: str,
    templates: Path,
    host: str,
) -> list[Path]:
    """Write the files of job 0 on a node like this host, with all the room it needs; their paths.

    Raises RequestError when `target` is there already; nothing is left of it when it cannot be filled.
    """
    wanted = draft.resolved.request._replace(public_key=public_key)
    decided = _plan(wanted, site, account, host)
    program = "sbatch.sh" if draft.slurm else "qsub.sh"
    texts = {
        program: f"#!/bin/sh\nexec {shlex.join(command)}\n".encode(errors="surrogateescape"),
        "wrapper.sh": wrapper,
        "script.sh": draft.script.text,
        "request.json": _json(wanted._asdict()),
        "plan.json": _json(orders.plain(decided)),
        **_rendered(decided, site, templates),
    }
    try:
        target.mkdir(parents=True)
    except FileExistsError:
        raise RequestError(f"--generate: {target} is there already") from None
    try:
        for name, data in texts.items():
            (target / name).write_bytes(data)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return [target / name for name in texts]


def _rendered(decided: JobPlan, site: SiteConfig, templates: Path) -> dict[str, bytes]:
    keys = GuestKeys(host_private=_PLACEHOLDER, host_public=_PLACEHOLDER, probe_public=_PLACEHOLDER)
    files: dict[str, bytes] = {}
    for vm in decided.vms:
        rendered = render.guest(decided, vm, site=site, keys=keys, announce="", templates=templates)
        files |= {
            f"{vm.hostname}.domain.xml": rendered.domain_xml.encode(),
            f"{vm.hostname}.user-data.yaml": rendered.user_data.encode(),
            f"{vm.hostname}.meta-data.yaml": rendered.meta_data.encode(),
            f"{vm.hostname}.network-config.yaml": rendered.network_config.encode(),
        }
    return files


def _plan(wanted: VmRequest, site: SiteConfig, account: Account, host: str) -> JobPlan:
    """The plan on a node that has all the CPUs the user maps, and more memory than anybody asks for."""
    cores = site.host_os_core_count + wanted.vcpus * wanted.vms_per_node
    mapped = [] if not wanted.pinning[0].isdecimal() else [
        cpu for text in wanted.pinning.split(";") for cpu in units.cpu_sequence(text)
    ]
    iocm = wanted.iocm_max_cores if wanted.iocm else 0
    cpus = tuple(range(max([cores, *(cpu + 1 for cpu in mapped)]) + iocm))
    pages = HugePages(size_kib=2048, total=1 << 29, free=1 << 29)
    numa = (NumaNode(id=0, cpus=cpus, memory_mib=1 << 31, pages=(pages,)),) if site.hugepages else ()
    return plan.make(
        job=Job(id=_JOB, user=account.name, node_index=0, nodes=(host,), request=""),
        account=account,
        request=wanted,
        image=images.find(Path(site.vm_img_dir), wanted.image),
        site=site,
        shape=NodeShape(name=host, cpus=cpus, memory_mib=1 << 31, numa=numa),
    )


def _json(data: object) -> bytes:
    return json.dumps(data, default=str, indent=1, sort_keys=True).encode() + b"\n"
