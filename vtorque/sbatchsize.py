# SPDX-License-Identifier: Apache-2.0
"""What -l asks for, in the words of sbatch: nodes, cores, memory, time, and who else may be there.

A chunk of Torque's nodes= and of OpenPBS's select= is a node. Slurm gives all
nodes of a job the same, so chunks have to agree.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from vtorque import reslist, sbatchforms
from vtorque.errors import RequestError
from vtorque.reslist import Chunk, Options
from vtorque.sbatchforms import unsupported

_SHAPES = ("nodes", "select", "ncpus", "procs")
_MEMORY = ("mem", "vmem", "pmem", "pvmem")
_GPUS = ("gpus", "ngpus", "naccelerators")
_HOSTS = ("host", "vnode")
# Moab's and Torque's words for how a job and its nodes are shared.
_SHARING = {
    "shared": "--oversubscribe", "share": "--oversubscribe", "shareable": "--oversubscribe",
    "excl": "--exclusive", "exclhost": "--exclusive",
    "singlejob": "--exclusive", "singletask": "--exclusive", "uniqueuser": "--exclusive",
    "singleuser": "--exclusive=user",
}
# They stand among a node's features, and are how Torque shares GPUs.
_GPU_MODES = ("exclusive_thread", "exclusive_process", "exclusive", "shared", "default", "reseterr")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """Nodes, 0 when Slurm is to choose; tasks, and CPUs of each, on a node or in all."""

    nodes: int
    tasks: int
    cpus: int
    memory_mib: int = 0
    gpus: str = ""


def translate(options: Options, *, whole: bool) -> list[str]:
    """sbatch's options for everything in -l; RequestError names what it has not, or what is no number.

    With `whole` a node's cores all belong to one task: a job in guests is one
    process on a node, whatever runs in them.
    """
    asked = reslist.entries(options)
    for name, amount in asked.items():
        if name not in {*_SHAPES, *_MEMORY, *_SIMPLE, "place", "naccesspolicy"}:
            raise unsupported(f"-l {name}={amount[:80]}")
    words: list[str] = []
    chosen = [name for name in _SHAPES if name in asked]
    if len(chosen) > 1:
        raise RequestError(f"-l {chosen[0]}= and -l {chosen[1]}= do not go together")
    name = chosen[0] if chosen else ""
    chunks = reslist.chunks(asked[name]) if name in ("nodes", "select") else []
    shape = _shape(name, asked, chunks, whole=whole)
    words += _layout(name, shape)
    words += _which(chunks)
    words += _memory(asked, shape)
    words += [f"{_SIMPLE[name][0]}={_SIMPLE[name][1](amount)}" for name, amount in asked.items() if name in _SIMPLE]
    words += _sharing(asked)
    return words


def _shape(name: str, asked: Mapping[str, str], chunks: list[Chunk], *, whole: bool) -> _Shape:
    if name in ("ncpus", "procs"):
        amount = _positive(name, asked[name])
        return _Shape(nodes=1, tasks=1, cpus=amount) if name == "ncpus" else _Shape(nodes=0, tasks=amount, cpus=1)
    if not chunks:
        return _Shape(nodes=1, tasks=1, cpus=1)
    shapes = {_of_chunk(name, chunk, whole=whole) for chunk in chunks}
    if len(shapes) > 1:
        raise unsupported(
            f"-l {name}={asked[name][:80]}: chunks of different sizes", hint="Slurm gives every node of a job the same",
        )
    one = shapes.pop()
    nodes = sum(chunk.nodes for chunk in chunks)
    if "pack" in asked.get("place", "").split(":"):
        return _Shape(
            nodes=1, tasks=one.tasks * (1 if whole else nodes), cpus=one.cpus * (nodes if whole else 1),
            memory_mib=one.memory_mib * nodes, gpus=str(int(one.gpus) * nodes) if one.gpus.isdecimal() else one.gpus,
        )
    return _Shape(nodes=nodes, tasks=one.tasks, cpus=one.cpus, memory_mib=one.memory_mib, gpus=one.gpus)


def _of_chunk(name: str, chunk: Chunk, *, whole: bool) -> _Shape:
    pairs = dict(chunk.pairs)
    if chunk.nodes < 1:
        raise RequestError(f"-l {name}={chunk.nodes}: there must be a node at least")
    cores = _positive("ppn" if name == "nodes" else "ncpus", pairs.pop("ppn" if name == "nodes" else "ncpus", "1"))
    tasks = cores
    if name == "select":
        tasks = _positive("mpiprocs", pairs.pop("mpiprocs", "1"))
    memory = _mib("mem", pairs.pop("mem", "0"))
    gpus = [pairs.pop(word) for word in _GPUS if word in pairs]
    for key, amount in pairs.items():
        if key not in _HOSTS:
            hint = "-v OMP_NUM_THREADS= says the same" if key == "ompthreads" else ""
            raise unsupported(f"-l {name}=…:{key}={amount[:40]}", hint=hint)
    if cores % tasks:
        raise unsupported(f"-l {name}=: mpiprocs={tasks} that do not divide ncpus={cores}")
    if gpus:
        _positive("gpus", gpus[0])
        if mode := next((word for word in chunk.words if word in _GPU_MODES), ""):
            raise unsupported(f"-l {name}=…:gpus={gpus[0]}:{mode}")
    tasks = 1 if whole else tasks
    return _Shape(nodes=0, tasks=tasks, cpus=cores // tasks, memory_mib=memory, gpus=gpus[0] if gpus else "")


def _layout(name: str, shape: _Shape) -> Iterator[str]:
    if not name:
        return
    if shape.nodes:
        yield f"--nodes={shape.nodes}"
        yield f"--ntasks-per-node={shape.tasks}"
    else:
        yield f"--ntasks={shape.tasks}"
    if shape.cpus > 1:
        yield f"--cpus-per-task={shape.cpus}"
    if shape.gpus:
        yield f"--gpus-per-node={shape.gpus}"


def _which(chunks: list[Chunk]) -> Iterator[str]:
    """Hosts by name, and features: for all nodes, or so many nodes with them."""
    hosts = [chunk.host or next((chunk.pairs[key] for key in _HOSTS if key in chunk.pairs), "") for chunk in chunks]
    if any(hosts):
        yield f"--nodelist={','.join(host for host in hosts if host)}"
    features = ["&".join(chunk.words) for chunk in chunks]
    if not any(features):
        return
    if len(set(features)) == 1:
        yield f"--constraint={features[0]}"
        return
    counted = [
        f"{f'({text})' if '&' in text else text}*{chunk.nodes}"
        for chunk, text in zip(chunks, features, strict=True) if text
    ]
    yield f"--constraint={counted[0]}" if len(counted) == 1 else f"--constraint=[{'&'.join(counted)}]"


def _memory(asked: Mapping[str, str], shape: _Shape) -> Iterator[str]:
    """Memory of a node, for that is what Slurm reserves; of a CPU when nothing else is known."""
    total = max(_mib(name, asked.get(name, "0")) for name in ("mem", "vmem"))
    each = max(_mib(name, asked.get(name, "0")) for name in ("pmem", "pvmem"))
    cpus = shape.tasks * shape.cpus
    if not shape.nodes:
        if each or total:
            yield f"--mem-per-cpu={max(each, -(-total // cpus))}M"
    elif total or shape.memory_mib:
        yield f"--mem={max(shape.memory_mib, -(-total // shape.nodes), each * cpus)}M"
    elif each:
        yield f"--mem-per-cpu={each}M"


def _sharing(asked: Mapping[str, str]) -> Iterator[str]:
    """One word for all that speaks of it."""
    found: dict[str, str] = {}
    if policy := asked.get("naccesspolicy", ""):
        if policy.lower() not in _SHARING:
            raise unsupported(f"-l naccesspolicy={policy[:40]}")
        found[_SHARING[policy.lower()]] = f"-l naccesspolicy={policy}"
    for word in asked.get("place", "").split(":"):
        if word in ("excl", "exclhost"):
            found[_SHARING[word]] = f"-l place={word}"
        elif word not in ("", "free", "pack", "scatter", "vscatter", "shared"):
            raise unsupported(f"-l place={word[:40]}")
    if word := asked.get("nodes", "").partition("#")[2]:
        if word not in _SHARING:
            raise unsupported(f"-l nodes=…#{word[:40]}")
        found[_SHARING[word]] = f"-l nodes=…#{word}"
    if len(found) > 1:
        raise RequestError(f"{' and '.join(list(found.values())[:2])} do not go together")
    yield from found


def _positive(name: str, text: str) -> int:
    amount = reslist.count(text)
    if not amount:
        raise RequestError(f"-l {name}={text[:40]}: must be a whole number above 0")
    return amount


def _mib(name: str, text: str) -> int:
    """MiB of a size, rounded up."""
    amount = reslist.size_bytes(text)
    if amount is None:
        raise RequestError(f"-l {name}={text[:40]}: is not a size", hint="like 4gb")
    return -(-amount >> 20)


def _text(text: str) -> str:
    return text


_SIMPLE: dict[str, tuple[str, Callable[[str], str]]] = {
    "walltime": ("--time", sbatchforms.time_limit),
    "file": ("--tmp", lambda text: f"{_mib('file', text)}M"),
    "software": ("--licenses", _text),
    "qos": ("--qos", _text),
    "advres": ("--reservation", _text),
}
