# SPDX-License-Identifier: Apache-2.0
"""`vmgr show timings`: where the time of this node's last jobs went."""

import argparse
import json
import sys
from dataclasses import asdict

from vtorque import config, names, timings
from vtorque.cli.prefix import PREFIX
from vtorque.errors import RequestError

_LAST = 100


def add_show(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `show timings`."""
    show = verbs.add_parser("timings", help="how long each phase of this node's last jobs took, median and 95 per cent")
    show.add_argument("--last", metavar="N", type=int, default=_LAST, help=f"of so many starts, {_LAST} if not given")
    show.add_argument("--json", action="store_true", help="for scripts: a list, seconds")
    show.set_defaults(act=_show)


def _show(arguments: argparse.Namespace) -> int:
    if arguments.last < 1:
        raise RequestError(f"--last {arguments.last} is less than 1")
    where = names.accounting(config.load(config.find(PREFIX), trusted_owner=0))
    found = timings.timings(timings.last(timings.days(where), arguments.last))
    if not found and not arguments.json:
        sys.stderr.write(f"vmgr: no start is accounted for in {where}\n")
        return 0
    text = json.dumps([asdict(each) for each in found], indent=1) + "\n" if arguments.json else timings.table(found)
    sys.stdout.write(text)
    return 0
