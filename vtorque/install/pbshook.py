# SPDX-License-Identifier: Apache-2.0
"""OpenPBS's hook: one on the server, which copies it to the nodes by itself; all through qmgr."""

import json
from pathlib import Path

from vtorque import proc
from vtorque.deadline import Deadline
from vtorque.install.parts import PBS_HOOK, PBS_HOOK_SETTINGS, Setup
from vtorque.install.tree import inside

_NAME = "vtorque"
_SECONDS = 30.0
_LEAST_ALARM, _MARGIN, _FREQUENCY = 180, 15, 300
EVENTS = ("queuejob", "execjob_begin", "execjob_launch", "execjob_end", "execjob_abort", "exechost_periodic")
"""Without execjob_epilogue: where a hook has it, no mom runs her site's mom_priv/epilogue (catch_child.c:805-815).

The server cannot know which nodes have one, and execjob_end and execjob_abort reach every node that has begun.
"""

_PYTHON, _SETTINGS = "application/x-python", "application/x-config"


def create(setup: Setup) -> list[str]:
    """qmgr's directives that make the hook, and enable it at the end."""
    alarm = max(_LEAST_ALARM, setup.site.timeout + setup.site.undo_reserve + _MARGIN)
    return [
        f"create hook {_NAME} enabled = false",
        f"set hook {_NAME} event = '{','.join(EVENTS)}'",
        f"set hook {_NAME} alarm = {alarm}",
        f"set hook {_NAME} freq = {_FREQUENCY}",
        *imports(setup),
        f"set hook {_NAME} enabled = true",
    ]


def imports(setup: Setup) -> list[str]:
    """qmgr's directives that give an existing hook its text and its settings."""
    return [
        f"import hook {_NAME} {_PYTHON} default {setup.prefix / PBS_HOOK}",
        f"import hook {_NAME} {_SETTINGS} default {PBS_HOOK_SETTINGS}",
    ]


def missing(setup: Setup, root: Path, *, qmgr: str, cut_short: bool) -> list[str]:
    """The directives that the server here still needs; all but the first when making the hook was `cut_short`.

    What an administrator has set otherwise since stays. Raises CommandError when the server does not answer.
    """
    whole = create(setup)
    if not is_there(qmgr):
        return whole
    if cut_short:
        return whole[1:]
    text = (inside(root, setup.prefix / PBS_HOOK).read_bytes(), json.dumps({"prefix": str(setup.prefix)}).encode())
    has = (_ask(qmgr, f"export hook {_NAME} {kind} default") or b"" for kind in (_PYTHON, _SETTINGS))
    return [] if all(map(_same, text, has)) else imports(setup)


def is_there(qmgr: str) -> bool:
    """Whether the server has the hook. Raises CommandError when it does not answer."""
    if _ask(qmgr, f"list hook {_NAME}") is not None:
        return True
    # With a server that is down this fails as well, and says so.
    proc.run([qmgr, "-c", "list server"], deadline=Deadline(_SECONDS))
    return False


def remove() -> list[str]:
    """qmgr's directive that takes the hook away, from the nodes as well."""
    return [f"delete hook {_NAME}"]


def shown(directive: str) -> str:
    """A directive as an administrator types it."""
    return f'qmgr -c "{directive}"'


def _same(one: bytes, other: bytes) -> bool:
    return one.strip() == other.strip()


def _ask(qmgr: str, directive: str) -> bytes | None:
    done = proc.run([qmgr, "-c", directive], deadline=Deadline(_SECONDS), statuses=range(256))
    return done.stdout if done.status == 0 else None
