# SPDX-License-Identifier: Apache-2.0
"""Cores and memory that a job has to ask the batch system for, so that its guests fit.

In Torque's words, `-l nodes=2:ppn=4+big:ppn=8,mem=16gb`, and in OpenPBS's,
`-l select=2:ncpus=4:mem=8gb`.
"""

from collections.abc import Callable
from typing import NamedTuple

from vtorque.errors import RequestError
from vtorque.job import VmRequest
from vtorque.options import SiteConfig
from vtorque.overhead import qemu_memory_mib
from vtorque.reslist import Options, chunks, count, mib, value
from vtorque.resolve import Room


class Need(NamedTuple):
    """What one node must give a job for its guests, its host and IOcm, and how it adds up."""

    cores: int
    memory_mib: int
    why_cores: str
    why_memory: str


class Fitted(NamedTuple):
    """New values for options that are there, by number; options to add; what to tell the user."""

    changed: dict[int, str]
    added: list[str]
    notes: list[str]


def need(request: VmRequest, site: SiteConfig) -> Need:
    """Cores and MiB of one node; RequestError when the largest node of the site has not that much."""
    vms = request.vms_per_node
    iocm = request.iocm_max_cores if request.iocm else 0
    guests = "the guest" if vms == 1 else f"{vms} guests"
    cores = site.host_os_core_count + vms * request.vcpus + iocm
    memory = site.host_os_ram_mb + vms * qemu_memory_mib(request.memory_mib, request.vcpus)
    wanted = Need(
        cores=cores,
        memory_mib=memory,
        why_cores=f"{vms * request.vcpus} for {guests}, {site.host_os_core_count} for the host"
        + (f", {iocm} for IOcm" if iocm else ""),
        why_memory=f"{memory - site.host_os_ram_mb} MiB for {guests} with QEMU's own part, "
        f"{site.host_os_ram_mb} for the host",
    )
    if 0 < site.node_core_count < cores:
        raise RequestError(
            f"{cores} cores are needed on a node ({wanted.why_cores}); the largest has {site.node_core_count}",
            hint="lower -vm vcpus= or -vm vms_per_node=",
        )
    if 0 < site.node_ram_mb < memory:
        raise RequestError(
            f"{memory} MiB are needed on a node ({wanted.why_memory}); the largest has {site.node_ram_mb} MiB",
            hint="lower -vm ram= or -vm vms_per_node=",
        )
    return wanted


def room(options: Options, site: SiteConfig, *, openpbs: bool) -> Room:
    """What -l leaves for the guests of a node and what serves them."""
    cores: list[int] = []
    memory: list[int] = []
    name, cores_name = _names(options, openpbs=openpbs)
    for chunk in chunks(value(options, name)):
        if (amount := count(chunk.pairs.get(cores_name, ""))) is not None:
            cores.append(amount)
        if (amount := mib(chunk.pairs.get("mem", ""))) is not None:
            memory.append(amount)
    whole = mib(value(options, "mem"))
    if whole is not None and not memory:
        memory = [whole // max(1, count_nodes(options, openpbs=openpbs))]
    if not cores and (ncpus := count(value(options, "ncpus"))) is not None:
        cores = [ncpus]
    left = min(memory) - site.host_os_ram_mb if memory else None
    return Room(
        cores=min(cores) - site.host_os_core_count if cores else None,
        memory_mib=left,
    )


def count_nodes(options: Options, *, openpbs: bool) -> int:
    """How many nodes -l asks for: `2:ppn=4+hostA` are three; one when nothing is said."""
    spelled = value(options, _names(options, openpbs=openpbs)[0])
    return sum(chunk.nodes for chunk in chunks(spelled)) if spelled else 1


def fit(
    given: Options, header: Options, wanted: Need, *, openpbs: bool, exclusive: bool
) -> Fitted:
    """What the command line has to ask for instead, or besides; `given` is the command line's own.

    The header's values count where the command line says nothing (-l merges by
    resource, qsub_functions.c:4333-4344), and are replaced by it. An amount that
    cannot be read is the batch system's to complain of.
    """
    fitted = Fitted(changed={}, added=[], notes=[])
    both = [*header, *given]
    name, cores = _names(both, openpbs=openpbs)
    nodes = count_nodes(both, openpbs=openpbs)
    spelled = value(both, name)
    total = value(both, "mem")
    chunk_memory = name == "select" and not total
    if spelled or not value(both, "ncpus"):
        _fit_chunks(fitted, given, name, spelled or "1", cores, wanted, chunk_memory=chunk_memory)
    else:
        _fit_total(fitted, given, "ncpus", value(both, "ncpus"), wanted.cores, wanted.why_cores)
    if not chunk_memory:
        needed = wanted.memory_mib * nodes
        if not total:
            fitted.added.append(f"mem={needed}mb")
        elif _is_less(mib(total), needed):
            _put(fitted, given, "mem", f"{needed}mb")
            fitted.notes.append(f"-l mem={total}: raised to {needed}mb ({wanted.why_memory}, on each node)")
    if exclusive and not openpbs and not value(both, "naccesspolicy"):
        fitted.added.append("naccesspolicy=uniqueuser")
    return fitted


def _fit_chunks(
    fitted: Fitted, given: Options, name: str, spelled: str, cores: str, wanted: Need, *, chunk_memory: bool
) -> None:
    """Every chunk of nodes= or select= has to be large enough."""
    # `#shared` and the like stand behind the last chunk and are for all of them.
    text, mark, properties = spelled.partition("#")
    raised = "+".join(
        _fit_chunk(fitted, name, chunk, cores, wanted, chunk_memory=chunk_memory) for chunk in text.split("+")
    )
    if f"{raised}{mark}{properties}" != spelled:
        _put(fitted, given, name, f"{raised}{mark}{properties}")


def _fit_chunk(
    fitted: Fitted, name: str, chunk: str, cores: str, wanted: Need, *, chunk_memory: bool
) -> str:
    parts = chunk.split(":")
    places = {part.partition("=")[0]: at for at, part in enumerate(parts) if "=" in part}
    checks: tuple[tuple[str, int, str, Callable[[str], int | None], str], ...] = (
        (cores, wanted.cores, "", count, wanted.why_cores),
        ("mem", wanted.memory_mib, "mb", mib, wanted.why_memory),
    )
    for key, least, unit, read, why in checks:
        if key not in places:
            if key == cores or chunk_memory:
                parts.append(f"{key}={least}{unit}")
        elif _is_less(read(parts[places[key]].partition("=")[2]), least):
            fitted.notes.append(f"-l {name}={chunk}: {key} raised to {least}{unit} ({why})")
            parts[places[key]] = f"{key}={least}{unit}"
    return ":".join(parts)


def _is_less(amount: int | None, least: int) -> bool:
    return amount is not None and amount < least


def _fit_total(fitted: Fitted, given: Options, name: str, asked: str, least: int, why: str) -> None:
    if _is_less(count(asked), least):
        fitted.notes.append(f"-l {name}={asked}: raised to {least} ({why})")
        _put(fitted, given, name, str(least))


def _names(options: Options, *, openpbs: bool) -> tuple[str, str]:
    """The resource that holds chunks, and what cores are called in it; OpenPBS knows Torque's as well."""
    if openpbs and not value(options, "nodes"):
        return "select", "ncpus"
    return "nodes", "ppn"


def _put(fitted: Fitted, given: Options, name: str, amount: str) -> None:
    """Replace the resource where the command line has it last, or add it."""
    for place in reversed(range(len(given))):
        letter, text = given[place]
        entries = fitted.changed.get(place, text).split(",")
        places = [at for at, entry in enumerate(entries) if entry.partition("=")[0].strip() == name]
        if letter == "l" and places:
            entries[places[-1]] = f"{name}={amount}"
            fitted.changed[place] = ",".join(entries)
            return
    fitted.added.append(f"{name}={amount}")
