# SPDX-License-Identifier: Apache-2.0
"""Stands in for `pbs_python`: runs one hook file on one event, as OpenPBS 23.06 does.

Run it as `python3 -I pbs_python.py HOOK`; the event comes as JSON on standard
input, what became of it goes as JSON to standard output.
"""

import json
import os
import sys
from types import ModuleType
from typing import Any, NoReturn

CODES = {
    "queuejob": 0x01, "modifyjob": 0x02, "execjob_begin": 0x40, "execjob_prologue": 0x80, "execjob_epilogue": 0x100,
    "execjob_end": 0x200, "execjob_preterm": 0x400, "execjob_launch": 0x800, "exechost_periodic": 0x1000,
    "execjob_abort": 0x40000,
}
# An attribute that an event does not have cannot be read at all.
STATUS_EVENTS = ("execjob_epilogue", "execjob_end")


class EventIncompatibleError(Exception):
    """What is asked for does not belong to this event."""


class Job:
    """`pbs.event().job`: only what this event has."""

    def __init__(self, event: str, about: dict[str, Any], outcome: dict[str, Any]) -> None:
        self._outcome = outcome
        self._mother_superior = about["mother_superior"]
        self.id = about["id"]
        self.Resource_List = Resources(about["resources"])
        if event != "queuejob":
            self.euser, self.exec_vnode = about["user"], about["exec_vnode"]
            self.exec_host = about["exec_host"] or None
        if event in STATUS_EVENTS:
            self.Exit_status = about["exit_status"]

    def in_ms_mom(self) -> bool:
        return bool(self._mother_superior)

    def rerun(self) -> None:
        self._outcome["rerun"] = True

    def delete(self) -> None:
        self._outcome["delete"] = True


class Resources(dict[str, Any]):
    """`Resource_List`: what was not asked for is None."""

    def __missing__(self, name: str) -> None:
        return None


class Vnode:
    """One of the mom's own virtual nodes: what is set goes to the server."""

    _name: str
    _outcome: dict[str, Any]

    def __init__(self, name: str, outcome: dict[str, Any]) -> None:
        self.__dict__.update(_name=name, _outcome=outcome)

    def __setattr__(self, attribute: str, value: Any) -> None:
        self._outcome.setdefault("vnodes", {}).setdefault(self._name, {})[attribute] = value


class Event:
    """`pbs.event()`: accepting and rejecting end the hook."""

    def __init__(self, about: dict[str, Any], outcome: dict[str, Any]) -> None:
        self._outcome = outcome
        self.type = CODES[about["event"]]
        self.hook_name = "vtorque"
        if about["event"] == "exechost_periodic":
            self.vnode_list = {name: Vnode(name, outcome) for name in about.get("vnodes", [about["node"]])}
        if "job" in about:
            self.job = Job(about["event"], about["job"], outcome)

    def __getattr__(self, name: str) -> NoReturn:
        raise EventIncompatibleError(name)

    def accept(self, code: int = 0) -> NoReturn:
        self._outcome["accepted"] = True
        raise SystemExit(str(code))

    def reject(self, message: str = "", code: int = 255) -> NoReturn:
        self._outcome.update(accepted=False, message=message)
        raise SystemExit(str(code))


def module(about: dict[str, Any], outcome: dict[str, Any]) -> ModuleType:
    """The `pbs` that the hook imports."""
    pbs = ModuleType("pbs")
    event = Event(about, outcome)
    vars(pbs).update(
        {name.upper(): code for name, code in CODES.items()},
        event=lambda: event,
        get_local_nodename=lambda: about["node"],
        LOG_ERROR=3,
        ND_OFFLINE=1,
        logmsg=lambda level, text: outcome["log"].append(text),
        logjobmsg=lambda job, text: outcome["log"].append(f"{job};{text}"),
    )
    return pbs


def main() -> None:
    about = json.loads(sys.stdin.buffer.read())
    outcome: dict[str, Any] = {"accepted": None, "message": "", "rerun": False, "delete": False, "log": []}
    answer = os.dup(1)
    if about["event"] == "queuejob":
        # The server's own interpreter has no standard output.
        sys.stdout = None
    sys.modules["pbs"] = module(about, outcome)
    with open(sys.argv[1]) as file:  # noqa: PTH123
        text = file.read()
    try:
        exec(compile(text, sys.argv[1], "exec"), {"__name__": "__main__"})
        # A hook that ends without a word accepts.
        outcome["accepted"] = True
    except SystemExit:
        pass
    except Exception as error:  # noqa: BLE001
        outcome.update(accepted=False, message=repr(error))
        outcome["log"].append("encountered an exception, request rejected")
    with os.fdopen(answer, "w") as file:
        json.dump(outcome, file)


if __name__ == "__main__":
    main()
