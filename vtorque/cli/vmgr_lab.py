# SPDX-License-Identifier: Apache-2.0
"""`vmgr lab`: a cluster on this one machine."""

import argparse
import json
import os
import sys

from vtorque import imagebuild, lab
from vtorque.cli import progress
from vtorque.cli.prefix import PREFIX
from vtorque.lab import demo, nodes, parts

_PARTLY, _DOWN = 1, 3


def add(areas: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `lab`."""
    parser = areas.add_parser("lab", help="a cluster on this one machine")
    verbs = parser.add_subparsers(required=True, metavar="up|down|status|exec|shell|demo")
    up = verbs.add_parser("up", help="bring up what is not up")
    up.add_argument("--nodes", type=int, metavar="N",
                    help=f"of how many nodes, up to {nodes.MOST}: one is the machine itself, more are simulated")
    up.set_defaults(act=_lab_up)
    verbs.add_parser("down", help="remove what up made").set_defaults(act=_lab_down)
    status = verbs.add_parser("status", help="what is up")
    status.add_argument("--json", action="store_true", help="for scripts")
    status.set_defaults(act=_lab_status)
    inside = verbs.add_parser("exec", help="run a command on a simulated node, as root")
    inside.add_argument("node", help="vtn1, vtn2 and so on")
    inside.add_argument("command", nargs="+", help="after `--` when words of it begin with a dash")
    inside.set_defaults(act=_lab_exec)
    verbs.add_parser("shell", help="a login shell of the lab's user").set_defaults(act=_lab_shell)
    verbs.add_parser("demo", help="run examples/hello.sh in a guest").set_defaults(act=_lab_demo)


def _lab_up(arguments: argparse.Namespace) -> int:
    lab.up(PREFIX, number=arguments.nodes, progress=progress.lines())
    return 0


def _lab_down(arguments: argparse.Namespace) -> int:
    lab.down(PREFIX, progress=progress.lines())
    return 0


def _lab_status(arguments: argparse.Namespace) -> int:
    states = lab.status(PREFIX)
    if arguments.json:
        sys.stdout.write(json.dumps(states) + "\n")
    else:
        sys.stdout.writelines(f"{name:<16} {'up' if up else 'down'}\n" for name, up in states.items())
    if all(states.values()):
        return 0
    return _PARTLY if any(states.values()) else _DOWN


def _lab_exec(arguments: argparse.Namespace) -> int:
    command = nodes.command(arguments.node, arguments.command)
    os.execv(command[0], command)


def _lab_shell(arguments: argparse.Namespace) -> int:
    if all(lab.status(PREFIX).values()):
        os.execv("/bin/su", ["su", "-", parts.USER])
    sys.stderr.write("vmgr: the lab is not up: vmgr lab up\n")
    return 1


def _lab_demo(arguments: argparse.Namespace) -> int:
    say = progress.lines()
    was_up = lab.status(PREFIX)["batch system"]
    if not was_up:
        # What is left of a lab that the machine went down under would start its old jobs again.
        lab.down(PREFIX, progress=lambda text: say(f"removing: {text}"))
    # One with more packages will do.
    if imagebuild.present(parts.IMAGES, demo.IMAGE) is None:
        imagebuild.build(demo.RECIPE, parts.IMAGES, progress=lambda text: say(f"image: {text}"))
    lab.up(PREFIX, progress=lambda text: say(f"lab: {text}"))
    try:
        return demo.run(parts.PROGRAM / "examples/hello.sh", nodes.views(lab.size()), progress=say)
    finally:
        if not was_up:
            lab.down(PREFIX, progress=lambda text: say(f"removing: {text}"))
