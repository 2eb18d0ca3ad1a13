# SPDX-License-Identifier: Apache-2.0
"""What is measured for each budget."""

import contextlib
import json
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from tests.bench import standin, trace
from tests.bench.budgets import INTERPRETER_SECONDS
from tests.bench.measure import Command, Series, interleaved, memory_mib, per_second, ratio, settled_cpu
from tests.bench.trace import Counts
from tests.bench.world import GUESTS, JOB, UID, World
from tests.builders import KEY, a_job, a_plan, a_request, a_shape
from vtorque import accounting, imageprobe, images, kinds, markers, published, run, seed, timings
from vtorque.deadline import Deadline
from vtorque.model import Guest, Peer

NO_MORE: Mapping[str, str] = MappingProxyType({})
_BARE = ["/usr/bin/python3", "-I", "-c", "pass"]
INTERPRETER = "python3 -I -c pass"
_LATER = "python3 -I -c pass, beside hooks"
_OLD_JOBS = 1000
_SUBMITTING_SECONDS = 4.0
_PATIENCE_SECONDS = 30.0


def counts(here: World) -> tuple[dict[str, float], dict[str, Counts]]:
    """The budgets that are counts, and all that was counted."""
    found: dict[str, Counts] = {}

    def note(name: str, command: Command, meanwhile: Callable[[], object] = lambda: None) -> Counts:
        command.before()
        found[name] = trace.count(command, home=here.home, meanwhile=meanwhile)
        return found[name]

    bare = note(INTERPRETER, Command(argv=_BARE, env=here.environ))
    hooks = [note(f"{kind}, bare-metal job", here.hook(kind, plain=True)) for kind in ("prologue", "epilogue")]
    plain, submitted = note("vsub", here.plain_vsub()), note("vsub -vm", here.vm_vsub())
    here.old_submissions(_OLD_JOBS)
    later = note(f"vsub -vm after {_OLD_JOBS} others", here.vm_vsub())
    here.job_directory()
    # What keeps the connection stays until the wrapper has it.
    start = note("prologue, 1 guest", here.hook("prologue"), lambda: note("wrapper", _when_ready(here)))
    wrapper = found["wrapper"]
    end = note("epilogue, 1 guest", here.hook("epilogue"))
    here.job_directory()
    # Several guests have a guard, who stays until their job is over.
    guards: list[int] = []
    many = note(
        f"prologue, {GUESTS} guests", here.hook("prologue", guests=GUESTS),
        lambda: guards.append(_end_when_guarded(here)),
    )
    return {
        "hook.processes": max(each.processes for each in hooks),
        "hook.home_files": sum(each.home_files for each in hooks),
        "vsub_plain.processes": plain.processes,
        "vsub_plain.third_party": len(set(plain.third_party) - set(bare.third_party)),
        "vsub_vm.processes": submitted.processes,
        "vsub_vm.modules": submitted.modules,
        "vsub_vm.old_jobs": max(0, later.calls - submitted.calls),
        "start1.processes": start.processes,
        "start1.home_files": start.home_files,
        "start1.written": start.bytes_written / 1024,
        "start16.more": (many.processes - start.processes) / (GUESTS - 1),
        "epilogue16.alive": len(here.domains()),
        "guard.processes": max(guards),
        "life.processes": submitted.processes + start.processes + wrapper.processes + end.processes,
        "cluster.growth": _calls(1000) / _calls(100),
    }, found


def times(here: World, *, rounds: int) -> tuple[dict[str, float], dict[str, float], dict[str, Series]]:
    """The budgets that are times and memory, those that go by the machine as they are on theirs, and every series."""
    here.forget_submissions()
    found = interleaved({
        "sh -c :": Command(argv=["/bin/sh", "-c", ":"], env=here.environ),
        "prologue, bare-metal job": here.hook("prologue", plain=True),
        "epilogue, bare-metal job": here.hook("epilogue", plain=True),
        INTERPRETER: Command(argv=_BARE, env=here.environ),
        "qsub": here.qsub(), "vsub": here.plain_vsub(), "vsub -vm": here.vm_vsub(),
    }, rounds=2 * rounds)
    two_at_once = per_second([here.vm_vsub()] * 2, seconds=_SUBMITTING_SECONDS)
    here.job_directory()
    found |= interleaved({_LATER: Command(argv=_BARE, env=here.environ)} | {
        f"{kind}, {guests} guest{'s' * (guests > 1)}": _afresh(here, kind, guests)
        for guests in (1, GUESTS) for kind in ("prologue", "epilogue")
    }, rounds=rounds)
    wrapper = replace(here.wrapper(), before=partial(_started, here))
    found |= interleaved({"ssh host true": here.ssh(), "wrapper": wrapper}, rounds=rounds)
    _call(here, "epilogue")
    shell, bare, later = found["sh -c :"], found[INTERPRETER], found[_LATER]
    beyond = Series(cpu=[a - b for a, b in zip(found["vsub -vm"].cpu, found["qsub"].cpu, strict=True)])
    values = {
        "hook.ratio": max(ratio(found[f"{kind}, bare-metal job"], shell) for kind in ("prologue", "epilogue")),
        "vsub_plain.ratio": ratio(found["vsub"], bare) - ratio(found["qsub"], bare),
        "vsub_vm.ratio": ratio(beyond, bare),
        "submissions": two_at_once,
        "submissions.cpu": 2 / statistics.median(found["vsub -vm"].cpu),
        "start1.cpu": statistics.median(found["prologue, 1 guest"].cpu),
        "start16.cpu": statistics.median(found[f"prologue, {GUESTS} guests"].cpu),
        "reaction.ratio": statistics.median(found["wrapper"].wall) / statistics.median(found["ssh host true"].wall),
        "epilogue1.cpu": statistics.median(found["epilogue, 1 guest"].cpu),
        "epilogue16.cpu": statistics.median(found[f"epilogue, {GUESTS} guests"].cpu),
        "disk.ms": _disk_ms(here, rounds),
        "cluster.cpu": _cluster_cpu(),
        **_memory(here),
    }
    slower = statistics.median(later.cpu) / INTERPRETER_SECONDS
    return values, {
        "submissions": two_at_once * statistics.median(bare.cpu) / INTERPRETER_SECONDS,
        "submissions.cpu": 2 / (ratio(found["vsub -vm"], bare) * INTERPRETER_SECONDS),
        "start1.cpu": ratio(found["prologue, 1 guest"], later) * INTERPRETER_SECONDS,
        "start16.cpu": ratio(found[f"prologue, {GUESTS} guests"], later) * INTERPRETER_SECONDS,
        "epilogue1.cpu": ratio(found["epilogue, 1 guest"], later) * INTERPRETER_SECONDS,
        "epilogue16.cpu": ratio(found[f"epilogue, {GUESTS} guests"], later) * INTERPRETER_SECONDS,
        "disk.ms": values["disk.ms"] / slower,
        "cluster.cpu": values["cluster.cpu"] / slower,
    }, found


def phases(here: World, *, guests: int) -> list[tuple[str, float, float]]:
    """Where the time of one start goes: name, begin and end in seconds since the hook was called.

    First what single functions took, root's and then the program's, then the phases that the accounting tells.
    """
    here.job_directory()
    _call(here, "prologue", guests=guests, environ={standin.BEGUN: str(time.monotonic())})
    _call(here, "epilogue", guests=guests)
    spans = [
        (name, begin, end) for file in ("spans.root.json", "spans.json")
        for name, begin, end in json.loads((here.root / "told" / file).read_text())
    ]
    (marks,) = timings.last(timings.days(here.root / "log/accounting"), 1)
    # The hook's own clock begins when its interpreter has loaded it.
    loaded = next(end for name, _, end in spans if name == "import")
    return spans + [
        (f"phase: {phase}", loaded + marks[phase] - seconds, loaded + marks[phase])
        for phase, seconds in accounting.durations(marks).items() if marks[phase] <= marks["ready"]
    ]


def _afresh(here: World, kind: str, guests: int) -> Command:
    command = here.hook(kind, guests=guests)
    behind = partial(_keeper_cpu, here) if kind == "prologue" else command.behind
    return replace(command, before=here.job_directory, behind=behind)


def _keeper_cpu(here: World) -> float:
    """What the child has taken that keeps the connection for the job."""
    ledger = (here.root / "run/jobs" / JOB / "ledger").read_text().splitlines()
    name = next(name for verb, kind, name in map(json.loads, ledger) if (verb, kind) == ("take", kinds.KEEPER))
    return settled_cpu(int(name.split()[0]))


def _when_ready(here: World) -> Command:
    """The wrapper, as soon as mom would start it."""
    _await((here.root / "run/jobs" / JOB / "ready").exists)
    return here.wrapper()


def _started(here: World) -> None:
    _call(here, "epilogue")
    here.job_directory()
    _call(here, "prologue")


def _end_when_guarded(here: World) -> int:
    """How many processes a guard is, once she has all and whoever is not needed has gone."""
    _await((here.root / "run/jobs" / JOB / "ready").exists)
    # The user's own is the last that is made.
    _await(lambda: UID in _guards())
    before = 0
    while (found := len(_guards())) != before:
        before = found
        time.sleep(1)
    _call(here, "epilogue", guests=GUESTS)
    return found


def _guards() -> list[int]:
    """The users of all processes that are guards, or children of guards."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"\0guard\0" in (process / "cmdline").read_bytes():
                # Whoever has become somebody else cannot be traced, and its directory is root's.
                found.append(int((process / "status").read_text().partition("\nUid:")[2].split(maxsplit=1)[0]))
    return found


def _disk_ms(here: World, rounds: int) -> float:
    image = images.find(here.root / "images", "a.qcow2")
    base = imageprobe.probe(image.path, deadline=Deadline(_PATIENCE_SECONDS))
    contents = {"user-data": "x" * 30000, "meta-data": "x" * 100, "network-config": "x" * 100}
    seconds = []
    for _ in range(rounds + 1):
        overlay = here.root / "overlay"
        begun = time.monotonic()
        with overlay.open("xb") as file:
            imageprobe.make_overlay(base, file.fileno())
        seed.iso(contents)
        seconds.append(time.monotonic() - begun)
        overlay.unlink()
    return 1000 * statistics.median(seconds[1:])


def _memory(here: World) -> dict[str, float]:
    """What the three that wait for a whole boot, or a whole job, hold while they do."""
    found, told = {}, here.root / "told"
    waiting = told / "waiting"
    (told / "silent").touch()
    here.job_directory()
    with _running(here.hook("prologue")) as child:
        _await(waiting.exists)
        # Root, who only stands by, or the program: whoever holds more.
        found["memory.prologue"] = max(memory_mib(child.pid), memory_mib(int(waiting.read_text())))
    _call(here, "epilogue")
    waiting.unlink()
    _call(here, "prologue.parallel")
    _await(waiting.exists)
    found["memory.guard"] = memory_mib(int(waiting.read_text()))
    _call(here, "epilogue.parallel")
    (told / "silent").unlink()
    here.job_directory()
    about = here.home / ".vtorque" / a_request().request_id / "script/job.sh"
    about.write_text(f"#!/bin/sh\ntouch {here.home}/running\nsleep 600\n")
    _call(here, "prologue")
    with _running(here.wrapper()) as child:
        _await((here.home / "running").exists)
        found["memory.wrapper"] = memory_mib(child.pid)
    _call(here, "epilogue")
    return found


def _call(here: World, kind: str, *, guests: int = 1, environ: Mapping[str, str] = NO_MORE) -> None:
    command = here.hook(kind, guests=guests)
    subprocess.run(command.argv, env={**command.env, **environ}, check=True)


@contextlib.contextmanager
def _running(command: Command) -> Iterator[subprocess.Popen[bytes]]:
    user = command.user
    child = subprocess.Popen(command.argv, env=command.env, user=user, group=user, extra_groups=(), cwd="/")
    try:
        yield child
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()


def _await(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE_SECONDS
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError("what is waited for does not happen")
        time.sleep(0.02)


def _cluster_cpu() -> float:
    begun = resource.getrusage(resource.RUSAGE_SELF)
    _merge(1000)
    ended = resource.getrusage(resource.RUSAGE_SELF)
    return ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime


def _calls(nodes: int) -> int:
    """How many Python functions run when a job of so many nodes is planned and merged."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        _merge(nodes)
    finally:
        sys.setprofile(None)
    return count


def _merge(nodes: int) -> None:
    """Every node plans its four guests and publishes them; the mother superior reads all that, and tells the guests."""
    request = a_request(vcpus=1, memory_mib=128, vms_per_node=4)
    shape, found = a_shape(), list[Peer]()
    for index in range(nodes):
        planned = a_plan(job=a_job(nodes=(), node_index=index), request=request, shape=shape)
        guests = tuple(
            Guest(vm=vm, address=f"10.{index >> 8}.{index & 255}.{vm.slot + 1}", host_key=KEY) for vm in planned.vms
        )
        text = published.guests_text(guests)
        found += published.read(text, job=JOB, node_index=index, request=request)
    marker = markers.ready_marker(planned, found)
    told = run.Guests(peers=tuple(found), vcpus=1, environment={"PBS_NODEFILE": "/n"})
    run.order(environment={}, directory="/", shell="/bin/sh", command=[], files=run.furnishing(told, "key"))
    json.dumps(marker)
