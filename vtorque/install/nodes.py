# SPDX-License-Identifier: Apache-2.0
"""The same command on many nodes: over pdsh where there is one, else over ssh, so many at a time."""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vtorque import hostlist, proc
from vtorque.deadline import Deadline
from vtorque.errors import CommandError, DeadlineExceeded, RequestError

AT_A_TIME = 32
"""Connections that are open together."""

_NODE_SECONDS = 120.0
_CONNECT_SECONDS = 10
_STATUS = re.compile(r"pdsh@\S+: (\S+): (?:ssh|mrsh|rsh|mcmd)? ?(?:exited with exit code (\d+)|(.*))")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How the command ended on a node, and the last line it said."""

    node: str
    status: int
    says: str


def names(text: str) -> tuple[str, ...]:
    """The nodes of a list like `cn[001-128],login1`; RequestError when it is none."""
    try:
        return tuple(dict.fromkeys(hostlist.expand(text)))
    except ValueError as error:
        raise RequestError(str(error), hint="like cn[001-128]") from None


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
    return Answer(node=node, status=done.status, says=_last(done.stdout, done.stderr, failed=done.status != 0))


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
    said: dict[str, str] = {}
    failed: dict[str, tuple[int, str]] = {}
    for line in (*stdout.splitlines(), *stderr.splitlines()):
        if found := _STATUS.fullmatch(line):
            failed[found[1]] = (int(found[2] or 255), found[3] or "")
        else:
            node, colon, text = line.partition(": ")
            if colon and text.strip():
                said[node] = text.strip()
    answers = []
    for node in nodes:
        status, why = failed.get(node, (0, ""))
        if not status and node not in said:
            # Even when there is nothing to do, the command says so.
            status, why = 255, "nothing was heard of it"
        answers.append(Answer(node=node, status=status, says=why or said.get(node, "")))
    return answers


def _last(stdout: bytes, stderr: bytes, *, failed: bool) -> str:
    for data in (stderr, stdout) if failed else (stdout, stderr):
        lines = [line for line in data.decode(errors="replace").splitlines() if line.strip()]
        if lines:
            return lines[-1].strip()
    return "it said nothing"
