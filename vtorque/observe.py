# SPDX-License-Identifier: Apache-2.0
"""The jobs that this node holds guests of, as root or as a job's user may see them. Nothing is changed."""

import contextlib
import difflib
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vtorque import files, state, units
from vtorque.backends.hypervisor import Usage
from vtorque.errors import RequestError, StateError, printable
from vtorque.model import JobId, job_id, job_key

Look = Callable[[str], Usage | None]
"""What the hypervisor says of the domain of this name."""

_SCHEMA = 1
_LIMIT = 1 << 20
_SHOWN_JOBS = 8
# A user cannot list the records of jobs, so the elements of his array are tried one by one.
_ARRAY_INDICES = range(10_000)
_INVISIBLE = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What there is of a job: its record at `path`, the user's own `directory` when it is he who looks.

    `plan` is empty for a user and until the job is planned; `ready` and
    `failed` are the markers, when they are there and of this boot.
    """

    id: JobId
    user: str | None
    path: Path
    directory: Path | None
    plan: Mapping[str, Any]
    ready: Mapping[str, Any] | None
    failed: Mapping[str, Any] | None
    begun: float | None

    @property
    def vms(self) -> list[Mapping[str, Any]]:
        """The planned guests."""
        return list(self.plan.get("vms", ()))

    @property
    def reason(self) -> str | None:
        """Why the job has no guests, when its prologue said so."""
        return None if self.failed is None else visible(str(self.failed.get("reason")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A line of `vmgr ps`; None is what the caller cannot know.

    `state` is ready (a user's word for running), running, starting, planned,
    paused, stopping, stopped, crashed, gone, or failed: then `reason` says why.
    """

    job: str
    user: str | None
    rank: int | None
    name: str | None
    hostname: str | None
    node: str
    state: str
    address: str | None
    vcpus: int | None
    memory_mib: int | None
    cpu_seconds: float | None
    age_seconds: int | None
    cpus: str | None = None
    reason: str | None = None


def all_jobs(root: Path, *, owner: int = 0) -> list[Recorded]:
    """Every job recorded below the state directory `root`: what root sees."""
    found = []
    for key in state.jobs(root):
        path = root / "jobs" / key
        plan = _json(path / "plan.json", owner) or {}
        if plan.get("schema", 1) != state.SCHEMA:
            plan = {}
        ready, failed = (_marker(path / name, owner) for name in (state.READY, state.FAILED))
        given = plan.get("job", {}).get("id") or (ready or {}).get("job") or key
        found.append(Recorded(id=JobId(given), user=plan.get("account", {}).get("name"), path=path, directory=None,
                              plan=plan, ready=ready, failed=failed, begun=_begun(path)))
    return sorted(found, key=_order)


def own_jobs(root: Path, home: Path, *, user: str, owner: int = 0) -> list[Recorded]:
    """The jobs that the user's `home` has a job directory of, with what he may read of their records.

    A marker is believed only when it belongs to `owner`.
    """
    found = []
    for job, directory in _links(root, home / ".vtorque"):
        path = root / "jobs" / job_key(job)
        ready, failed = (_marker(path / name, owner) for name in (state.READY, state.FAILED))
        if ready is not None and ready.get("job") != job:
            ready = None
        found.append(Recorded(id=job, user=user, path=path, directory=directory, plan={}, ready=ready,
                              failed=failed, begun=_begun(path)))
    return sorted(found, key=_order)


def is_meant(text: str, job: str) -> bool:
    """Whether a user who says `12`, `58[2]` or `58-2.srv` means this job."""
    return text in (job, job_key(JobId(job)), job.partition(".")[0], job_key(JobId(job)).partition(".")[0])


def find(text: str, jobs: Sequence[Recorded]) -> Recorded:
    """The one job that is meant; RequestError that names others when there is none, or more than one."""
    found = [job for job in jobs if is_meant(text, job.id)]
    if len(found) == 1:
        return found[0]
    if found:
        raise RequestError(f"{text} may be any of {', '.join(job.id for job in found)}", hint="give the whole id")
    known = [str(job.id) for job in jobs]
    near = difflib.get_close_matches(text, known, n=1)
    if near:
        hint = f"did you mean {near[0]}?"
    elif known:
        hint = f"known here: {', '.join(known[:_SHOWN_JOBS])}{', …' if len(known) > _SHOWN_JOBS else ''}"
    else:
        hint = "a job's guests are seen on the node that they run on: qstat -n"
    raise RequestError(f"no job {text if text.isprintable() else repr(text)} on this node", hint=hint)


def ready_guest(job: Recorded, rank: int) -> Mapping[str, Any]:
    """What the ready marker says of one guest; RequestError when the job has no such guest here."""
    if job.failed is not None:
        raise RequestError(f"job {job.id} has no guests: {job.reason}")
    if job.ready is None:
        raise RequestError(f"job {job.id} has no guests on this node",
                           hint=f"it waits, starts, or runs elsewhere: qstat -n {job.id}")
    guests: dict[int, Mapping[str, Any]] = {guest["rank"]: guest for guest in job.ready["guests"]}
    return _ranked(job, rank, guests)


def planned_guest(job: Recorded, rank: int) -> Mapping[str, Any]:
    """What the plan says of one guest; RequestError when the job has no such guest here."""
    if job.failed is not None and not job.vms:
        raise RequestError(f"job {job.id} has no guests: {job.reason}")
    return _ranked(job, rank, {vm["rank"]: vm for vm in job.vms})


def guests(job: Recorded, *, node: str, look: Look | None, now: float) -> list[Guest]:
    """A line for each guest, and one without a rank for a job that has none (yet)."""
    age = None if job.begun is None else max(0, int(now - job.begun))
    planned = {vm["rank"]: vm for vm in job.vms}
    proven = {each["rank"]: each for each in job.ready["guests"]} if job.ready is not None else {}
    if job.failed is not None or not (planned or proven):
        return [Guest(job=job.id, user=job.user, rank=None, name=None, hostname=None, node=node,
                      state="starting" if job.failed is None else "failed", address=None, vcpus=None,
                      memory_mib=None, cpu_seconds=None, age_seconds=age, reason=job.reason)]
    lines = []
    for rank in sorted({*planned, *proven}):
        vm = planned.get(rank, {})
        about = {**vm, **proven.get(rank, {})}
        # Guests of other nodes are known by the marker only.
        here = look if vm else None
        used = here(vm["name"]) if here is not None else None
        lines.append(Guest(
            job=job.id, user=job.user, rank=rank, name=vm.get("name"), hostname=about.get("hostname"),
            node=about.get("node", node), cpus=_pins(about),
            state=_state(used, is_known=here is not None, is_proven=rank in proven), address=about.get("address"),
            vcpus=vm.get("vcpus") or _told_vcpus(job),
            memory_mib=vm.get("memory_mib") or (used.memory_mib if used else None),
            cpu_seconds=round(used.cpu_seconds, 1) if used else None, age_seconds=age,
        ))
    return lines


def _pins(about: Mapping[str, Any]) -> str | None:
    """Host CPUs as the marker, or the plan, tells of them."""
    cpus = about.get("cpus")
    return ",".join(map(str, cpus)) if isinstance(cpus, list) else cpus


def as_json(lines: Iterable[Guest]) -> str:
    """A JSON list, one object a line of `vmgr ps`, with the fields of Guest; null is what is not known."""
    return json.dumps([asdict(line) for line in lines], indent=1) + "\n"


def table(lines: Sequence[Guest]) -> str:
    """The same for people; `-` is what is not known."""
    head = ("JOB", "USER", "RANK", "NODE", "STATE", "ADDRESS", "VCPUS", "PINS", "MEMORY", "CPU", "AGE")
    rows: list[tuple[str, ...]] = [head]
    for line in lines:
        memory = None if line.memory_mib is None else units.size(line.memory_mib)
        cpu = None if line.cpu_seconds is None else units.duration(int(line.cpu_seconds))
        age = None if line.age_seconds is None else units.duration(line.age_seconds)
        cells = (
            line.job, line.user, line.rank, line.node, line.state, line.address, line.vcpus, line.cpus or None,
            memory, cpu, age,
        )
        rows.append(tuple("-" if cell is None else printable(str(cell)) for cell in cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )


def visible(text: str) -> str:
    """The text with every control character but newline and tab spelled out, for a terminal that must not obey it."""
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in _INVISIBLE else _spelled(char) for char in text
    )


def _spelled(char: str) -> str:
    code = ord(char)
    return f"^{chr(code ^ 0x40)}" if code < 0x20 or code == 0x7F else f"<{code:04X}>"


def _links(root: Path, jobs: Path) -> Iterator[tuple[JobId, Path]]:
    try:
        names = sorted(entry.name for entry in jobs.iterdir() if entry.is_symlink())
    except OSError:
        return
    for name in names:
        with contextlib.suppress(RequestError):
            job = job_id(name)
            yield job, jobs / name
            if "[]" not in job:
                continue
            for index in _ARRAY_INDICES:
                element = job_id(job.replace("[]", f"[{index}]"))
                if (root / "jobs" / job_key(element)).exists():
                    yield element, jobs / name


def _json(path: Path, owner: int) -> dict[str, Any] | None:
    """What the file holds; nothing when it is not there, not ours to read, or just being written."""
    try:
        data = json.loads(files.read(path, limit=_LIMIT, owner=owner))
    except (FileNotFoundError, StateError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _marker(path: Path, owner: int) -> dict[str, Any] | None:
    data = _json(path, owner)
    if data is None or data.get("schema") != _SCHEMA:
        return None
    # A state directory that is no tmpfs, against all advice, survives the guests.
    return data if data.get("boot_id") in (None, _BOOT_ID.read_text().strip()) else None


def _begun(path: Path) -> float | None:
    for name in ("plan.json", state.READY, state.FAILED):
        with contextlib.suppress(OSError):
            return (path / name).stat().st_mtime
    return None


def _order(job: Recorded) -> tuple[int, str]:
    digits = job.id.partition(".")[0].partition("[")[0].partition("-")[0]
    return int(digits) if digits.isdecimal() else 0, job.id


def _ranked(job: Recorded, rank: int, by_rank: Mapping[int, Mapping[str, Any]]) -> Mapping[str, Any]:
    if rank in by_rank:
        return by_rank[rank]
    ranks = ", ".join(map(str, sorted(by_rank))) or "none yet"
    raise RequestError(f"job {job.id} has no guest of rank {rank} on this node", hint=f"ranks here: {ranks}")


def _state(used: Usage | None, *, is_known: bool, is_proven: bool) -> str:
    if not is_known:
        return "ready" if is_proven else "starting"
    if used is None:
        return "gone" if is_proven else "planned"
    return "starting" if used.state == "running" and not is_proven else used.state


def _told_vcpus(job: Recorded) -> int | None:
    """From what the job's own processes are told."""
    told = (job.ready or {}).get("environment", {})
    try:
        return int(told["PBS_NUM_PPN"]) // int(told["PBS_VMS_PN"])
    except (KeyError, ValueError, ZeroDivisionError):
        return None

