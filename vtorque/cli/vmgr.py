# SPDX-License-Identifier: Apache-2.0
"""`vmgr`, the administrator's command: images, running guests, this node and its configuration, the lab."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence

from vtorque import __version__
from vtorque.cli import (
    leave,
    vmgr_bench,
    vmgr_guests,
    vmgr_images,
    vmgr_install,
    vmgr_lab,
    vmgr_node,
    vmgr_site,
    vmgr_timings,
)
from vtorque.errors import RequestError, VtorqueError

_EXAMPLES = """\
examples:
  vmgr show images                 what users may ask for with -vm img=
  vmgr image build debian-12       build a guest image into the catalogue
  vmgr image pull https://host/x.qcow2 --sha256 HEX
  vmgr add own.qcow2 An image of our own
  vmgr show config --origin        every option, and the line it comes from
  vmgr config check                every mistake in the configuration
  vmgr doctor                      whether this node can run guests
  vmgr node return                 take jobs again on a node that took itself out
  vmgr ps                          running guests: a user's own, root's all
  vmgr ssh 12 -- uptime            a command in rank 0 of job 12
  vmgr logs 12 -f                  what root did for the job, as it happens
  vmgr show timings --last 50      where the time of the last jobs went
  vmgr bench boot debian-12.qcow2  what the parts of a guest's boot cost
  vmgr sweep --dry-run             jobs that left something on this node
  vmgr install --system torque --dry-run
                                   what would be linked and written on this node
  vmgr lab up; vmgr lab shell      a one-machine cluster, and a shell of its user

exit status: 0 done, 1 failed, 2 wrong usage; `doctor`: 0 well, 1 warnings, 2 errors;
`image verify`: 1 something is wrong, 3 not all was looked into;
`sweep`: 1 when something could not be given back or looked at, with a line for each;
`node status`: 0 in, 3 out; `lab status`: 0 up, 1 partly, 3 down; `ssh`: the command's own
"""


def command() -> None:
    """The process: output that nobody takes is a failure in one line, that of a closed pipe in none."""
    for name, mode, way in (("stdin", os.O_WRONLY, "r"), ("stdout", os.O_RDONLY, "w"), ("stderr", os.O_RDONLY, "w")):
        # What is closed stays as good as closed, but no file or pipe of ours gets its number.
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, mode), way))
    try:
        try:
            status = main()
        except SystemExit as ended:
            # argparse has said what there is to say.
            status = int(ended.code or 0)
        sys.stdout.flush()
    except BrokenPipeError:
        status = 1
    except OSError as error:
        status = 1
        with contextlib.suppress(OSError):
            sys.stderr.write(f"vmgr: {error.filename or 'cannot write'}: {error.strerror}\n")
    leave(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    arguments = parser().parse_args(argv)
    act: Callable[[argparse.Namespace], int] = arguments.act
    try:
        return act(arguments)
    except RequestError as error:
        sys.stderr.write(f"vmgr: {error.one_line()}\n")
        return 2
    except VtorqueError as error:
        for text in error.one_line().splitlines():
            sys.stderr.write(f"vmgr: {text}\n")
        return 1
    except PermissionError as error:
        sys.stderr.write(f"vmgr: {error.filename}: {error.strerror}; this needs root\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"vmgr: {error.filename or 'cannot go on'}: {error.strerror}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("vmgr: interrupted\n")
        return 130


def parser() -> argparse.ArgumentParser:
    """The whole grammar of the command."""
    top = argparse.ArgumentParser(
        prog="vmgr", description="Manage images, running guests and nodes of vtorque.", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"vtorque {__version__}")
    areas = top.add_subparsers(required=True, metavar="command", title="commands")
    show = areas.add_parser("show", help="the configuration, the images and where time went")
    verbs = show.add_subparsers(required=True, metavar="config|images|image|suspended|privileged|timings")
    vmgr_site.add_show(verbs)
    vmgr_images.add_show(verbs)
    vmgr_node.add_show(verbs)
    vmgr_timings.add_show(verbs)
    vmgr_images.add(areas)
    vmgr_guests.add(areas)
    vmgr_site.add(areas)
    vmgr_node.add(areas)
    vmgr_bench.add(areas)
    vmgr_install.add(areas)
    vmgr_lab.add(areas)
    return top
