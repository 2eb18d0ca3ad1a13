# SPDX-License-Identifier: Apache-2.0
"""The same command on many nodes: over pdsh where there is one, else over ssh, so many at a time."""

import itertools
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vtorque import hostlist, proc
from vtorque.deadline import Deadline
from vtorque.errors import CommandError, DeadlineExceeded, RequestError

AT_A_TIME = 32
"""Connections that are open together."""

_NODE_SECONDS = 120.0
_CONNECT_SECONDS = 10
_NOTE = re.compile(r"note +(.+)")
_NUMBERED = re.compile(r"(.*?)([0-9]{1,9})(\D*)", re.ASCII)
_STATUS = re.compile(r"pdsh@\S+: (\S+): (?:ssh|mrsh|rsh|mcmd)? ?(?:exited with exit code (\d+)|(.*))")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How the command ended on a node, the last line it said, and its notes for the administrator."""

    node: str
    status: int
    says: str
    notes: tuple[str, ...] = ()


def names(text: str) -> tuple[str, ...]:
    """The nodes of a list like `cn[001-128],login1`; RequestError when it is none."""
    try:
        return tuple(dict.fromkeys(hostlist.expand(text)))
    except ValueError as error:
        raise RequestError(str(error), hint="like cn[001-128]") from None


def fold(names: Sequence[str]) -> str:
    """The list that stands for these names in this order: `cn[001-128],login1`."""
    found = []
    for (head, tail), some in itertools.groupby(map(_split, names), key=lambda each: (each[0], each[2])):
        ranges: list[tuple[str, str]] = []
        for _, number, _ in some:
            if ranges and number and number == f"{int(ranges[-1][1]) + 1:0{len(ranges[-1][0])}d}":
                ranges[-1] = (ranges[-1][0], number)
            else:
                ranges.append((number, number))
        texts = [first if first == last else f"{first}-{last}" for first, last in ranges]
        whole = texts[0] if len(texts) == 1 and "-" not in texts[0] else f"[{','.join(texts)}]"
        found.append(f"{head}{whole}{tail}")
    return ",".join(found)


def notes(answers: Sequence[Answer]) -> list[str]:
    """Each note once, after the nodes that said it."""
    by_note: dict[str, list[str]] = {}
    for answer in answers:
        for note in answer.notes:
            by_note.setdefault(note, []).append(answer.node)
    return [f"{fold(those)}: {note}" for note, those in by_note.items()]


def run(
    nodes: Sequence[str], command: Sequence[str], *, which: Callable[[str], str | None], env: Mapping[str, str]
) -> list[Answer]:
    """Run a command on each, and what came of it in the order given. Raises CommandError without pdsh and ssh."""
    if pdsh := which("pdsh"):
        return _pdsh(pdsh, nodes, shlex.join(command), env)
    if ssh := which("ssh"):
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            return list(pool.map(lambda node: _ssh(ssh, node, shlex.join(command), env), nodes))
    raise CommandError("there is neither pdsh nor ssh to reach other nodes with", hint="apt-get install openssh-client")


def _ssh(ssh: str, node: str, command: str, env: Mapping[str, str]) -> Answer:
    argv = [ssh, "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}", "-T", "--", node, command]
    try:
        done = proc.run(argv, deadline=Deadline(_NODE_SECONDS), env=env, statuses=range(-64, 256))
    except (CommandError, DeadlineExceeded) as error:
        return Answer(node=node, status=255, says=error.brief)
    return Answer(node=node, status=done.status, says=_last(done.stdout, done.stderr, failed=done.status != 0),
                  notes=_notes(done.stdout.decode(errors="replace").splitlines()))


def _pdsh(pdsh: str, nodes: Sequence[str], command: str, env: Mapping[str, str]) -> list[Answer]:
    # All at once would not fit into one argument.
    answers: list[Answer] = []
    for begin in range(0, len(nodes), 1000):
        some = nodes[begin:begin + 1000]
        argv = [pdsh, "-R", "ssh", "-f", str(AT_A_TIME), "-t", str(_CONNECT_SECONDS), "-u", str(int(_NODE_SECONDS)),
                "-w", ",".join(some), command]
        seconds = _NODE_SECONDS * (len(some) // AT_A_TIME + 2)
        done = proc.run(argv, deadline=Deadline(seconds), env=env, statuses=range(256))
        answers += _sorted_out(some, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
    return answers


def _sorted_out(nodes: Sequence[str], stdout: str, stderr: str) -> list[Answer]:
    """What belongs to whom in pdsh's output: `node: text`, and for failures `pdsh@here: node: ...` (pdsh(1))."""
    said: dict[str, list[str]] = {}
    failed: dict[str, tuple[int, str]] = {}
    for line in (*stdout.splitlines(), *stderr.splitlines()):
        if found := _STATUS.fullmatch(line):
            failed[found[1]] = (int(found[2] or 255), found[3] or "")
        else:
            node, colon, text = line.partition(": ")
            if colon and text.strip():
                said.setdefault(node, []).append(text.strip())
    answers = []
    for node in nodes:
        status, why = failed.get(node, (0, ""))
        if not status and node not in said:
            # Even when there is nothing to do, the command says so.
            status, why = 255, "nothing was heard of it"
        lines = said.get(node, [])
        answers.append(Answer(node=node, status=status, says=why or "".join(lines[-1:]), notes=_notes(lines)))
    return answers


def _split(name: str) -> tuple[str, str, str]:
    """What is before a name's last number, the number, and what is after it."""
    found = _NUMBERED.fullmatch(name)
    return (found[1], found[2], found[3]) if found else (name, "", "")


def _notes(lines: Iterable[str]) -> tuple[str, ...]:
    found = (_NOTE.fullmatch(line.strip()) for line in lines)
    return tuple(dict.fromkeys(each[1] for each in found if each))


def _last(stdout: bytes, stderr: bytes, *, failed: bool) -> str:
    for data in (stderr, stdout) if failed else (stdout, stderr):
        lines = [line for line in data.decode(errors="replace").splitlines() if line.strip()]
        if lines:
            return lines[-1].strip()
    return "it said nothing"
