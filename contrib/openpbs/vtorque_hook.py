# SPDX-License-Identifier: Apache-2.0
"""vtorque's hook for OpenPBS: hands an event's job to vtorque's own command, and the verdict to OpenPBS.

It runs in the Python that OpenPBS was built with, 3.6 or later, which knows
nothing of ours: the command runs in the node's own Python, in a session of its
own (mom kills a hook's process group when it ends, mom_hook_func.c:842-850).
Whatever goes wrong here costs no node and nobody else's job: a job without a
request is let pass before anything else is looked at, and so is every event
that this file itself stumbles over. A job whose guests are missing then finds
no ready marker, and its wrapper says so.
"""

import json
import os
import re
import signal
import subprocess

import pbs

PREFIX = "/opt/vtorque"
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
REQUEST = re.compile(r"vt1\.[A-Za-z0-9_-]{1,996}\Z")
EVENTS = (
    "queuejob", "execjob_begin", "execjob_prologue", "execjob_launch", "execjob_epilogue", "execjob_end",
    "execjob_abort", "exechost_periodic",
)
STARTS = ("execjob_begin", "execjob_prologue", "execjob_launch")
# At these a rejection alone deletes the job (start_exec.c), or will one day.
ASK_FOR_RERUN = ("execjob_prologue", "execjob_launch")
DEFAULT_ALARM_SECONDS = 30
MARGIN_SECONDS = 5
ANSWER_LIMIT = 65536


def main() -> None:
    """Ends by SystemExit: that is how accept and reject end a hook."""
    event = pbs.event()
    names = [name for name in EVENTS if getattr(pbs, name.upper(), None) == event.type]
    name = names[0] if names else ""
    if name == "exechost_periodic":
        answer = ask({"event": name}, event)
        if answer["verdict"] == "offline":
            take_offline(event, answer["message"])
        event.accept()
    request = text(event.job.Resource_List["site"])
    if not name or not request.startswith("vt1."):
        event.accept()
    if name == "queuejob":
        if REQUEST.match(request) is None:
            event.reject("vtorque: -l site= carries no request for guests of at most 1000 characters; use vsub -vm")
        event.accept()
    job = about(event.job, request)
    if name in ASK_FOR_RERUN and not job["mother_superior"]:
        event.accept()
    answer = ask({"event": name, "job": job}, event)
    if answer["message"]:
        pbs.logjobmsg(job["id"], "vtorque: {}: {}".format(name, answer["message"]))
    if name in STARTS and answer["verdict"] == "requeue":
        if name in ASK_FOR_RERUN:
            event.job.rerun()
        event.reject("vtorque: {}".format(answer["message"]))
    event.accept()


def take_offline(event: "pbs.event", reason: str) -> None:
    """Every virtual node of this mom's; an administrator brings them back, with pbsnodes -r."""
    pbs.logmsg(pbs.LOG_ERROR, "vtorque: {}".format(reason))
    for name in event.vnode_list:
        event.vnode_list[name].state = pbs.ND_OFFLINE
        event.vnode_list[name].comment = "vtorque: {}".format(reason)


def text(value: object) -> str:
    return "" if value is None else str(value)


def about(job: "pbs.job", request: str) -> dict:
    """What the command has to know; which attributes there are depends on the event."""

    def attribute(name: str) -> str:
        try:
            return text(getattr(job, name))
        except Exception:
            return ""

    return {
        "id": text(job.id), "user": attribute("euser"), "request": request,
        "hosts": attribute("exec_host"), "vnodes": attribute("exec_vnode"), "exit_status": attribute("Exit_status"),
        "node": text(pbs.get_local_nodename()), "mother_superior": bool(job.in_ms_mom()),
    }


def ask(told: dict, event: "pbs.event") -> dict:
    """Run vtorque's command on what it is told; its verdict."""
    seconds = alarm(event.hook_name) - MARGIN_SECONDS
    # mom runs hooks in <her home>/mom_priv/hooks/tmp.
    home = os.path.abspath(os.path.join(os.getcwd(), os.pardir, os.pardir, os.pardir))
    told = dict(told, seconds=seconds, home=home)
    # Its standard error stays ours: at launch that is the job's own.
    command = subprocess.Popen(
        ["/usr/bin/python3", "-I", os.path.join(prefix(), "scripts", "pbs-hook")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT, cwd="/", start_new_session=True,
    )
    try:
        command.stdin.write(json.dumps(told).encode())
        command.stdin.close()
        command.wait(seconds)
        # A pipe that somebody else still holds open must not keep us.
        os.set_blocking(command.stdout.fileno(), False)
        return json.loads(os.read(command.stdout.fileno(), ANSWER_LIMIT).decode())
    finally:
        if command.poll() is None:
            os.killpg(command.pid, signal.SIGKILL)
            command.wait()
        command.stdout.close()


def alarm(hook_name: str) -> int:
    """The seconds after which mom kills this hook, from her copy of its settings."""
    try:
        with open(os.path.join(os.pardir, hook_name + ".HK")) as settings:
            found = re.findall(r"^alarm=([0-9]+)$", settings.read(), re.MULTILINE)
    except OSError:
        found = []
    return int(found[-1]) if found else DEFAULT_ALARM_SECONDS


def prefix() -> str:
    """Where vtorque is installed on the nodes: `prefix` in the hook's own configuration file."""
    path = os.environ.get("PBS_HOOK_CONFIG_FILE")
    if not path:
        return PREFIX
    with open(path) as file:
        return json.load(file).get("prefix", PREFIX)


try:
    main()
except Exception as error:
    pbs.logmsg(pbs.LOG_ERROR, "vtorque: the hook failed: {!r}".format(error))
    pbs.event().accept()
