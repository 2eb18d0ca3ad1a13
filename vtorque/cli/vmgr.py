# SPDX-License-Identifier: Apache-2.0
"""`vmgr`, the administrator's command: images, and the one-machine lab."""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from vtorque import __version__, config, imagebuild, images, lab, lifecycle
from vtorque.backends.hypervisor.libvirt import Libvirt
from vtorque.cli import PREFIX, assembly
from vtorque.deadline import Deadline
from vtorque.errors import RequestError, VtorqueError
from vtorque.lab import demo, parts

_PARTLY, _DOWN = 1, 3
_SWEEP_SECONDS = 300.0

_EXAMPLES = """\
examples:
  vmgr image build debian-12       build a guest image into the catalogue
  vmgr image list                  what users may ask for with -vm img=
  vmgr lab up; vmgr lab shell      a one-machine cluster, and a shell of its user
  vmgr lab demo                    run a job in a guest, show everything, leave nothing
  vmgr lab down                    remove what `up` made; built images stay
  vmgr sweep --dry-run             jobs that left something on this node

exit status: 0 done, 1 failed, 2 wrong usage; `lab status`: 0 up, 1 partly, 3 down
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    arguments = _parser().parse_args(argv)
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
    except KeyboardInterrupt:
        sys.stderr.write("vmgr: interrupted\n")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vmgr", description="Manage vtorque's images and its one-machine lab.", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vtorque {__version__}")
    areas = parser.add_subparsers(required=True, metavar="image|lab|sweep")
    _image_parser(areas.add_parser("image", help="the catalogue of guest images"))
    _lab_parser(areas.add_parser("lab", help="a cluster on this one machine"))
    sweep = areas.add_parser("sweep", help="give back what jobs hold on this node that mom no longer knows")
    sweep.add_argument("--dry-run", action="store_true", help="only say which jobs these are")
    sweep.set_defaults(act=_sweep)
    return parser


def _image_parser(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(required=True, metavar="build|list|show|verify")
    build = verbs.add_parser("build", help="build an image from Debian packages")
    build.add_argument("name", help=f"what to build: {', '.join(imagebuild.RECIPES)}")
    build.add_argument("--force", action="store_true", help="build it even if it is there")
    listing = verbs.add_parser("list", help="all images")
    show = verbs.add_parser("show", help="one image")
    verify = verbs.add_parser("verify", help="compare an image with its digest, inspect its header")
    for verb in (show, verify):
        verb.add_argument("name")
    for verb in (listing, show):
        verb.add_argument("--json", action="store_true", help="for scripts")
    for verb in (build, listing, show, verify):
        verb.add_argument("--directory", type=Path, help="the catalogue; VM_IMG_DIR if not given")
    build.set_defaults(act=_image_build)
    listing.set_defaults(act=_image_list)
    show.set_defaults(act=_image_show)
    verify.set_defaults(act=_image_verify)


def _lab_parser(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(required=True, metavar="up|down|status|shell|demo")
    verbs.add_parser("up", help="bring up what is not up").set_defaults(act=_lab_up)
    verbs.add_parser("down", help="remove what up made").set_defaults(act=_lab_down)
    status = verbs.add_parser("status", help="what is up")
    status.add_argument("--json", action="store_true", help="for scripts")
    status.set_defaults(act=_lab_status)
    verbs.add_parser("shell", help="a login shell of the lab's user").set_defaults(act=_lab_shell)
    verbs.add_parser("demo", help="run examples/hello.sh in a guest").set_defaults(act=_lab_demo)


def _image_build(arguments: argparse.Namespace) -> int:
    directory = arguments.directory or _catalogue()
    image = imagebuild.build(arguments.name, directory, progress=_progress(), force=arguments.force)
    sys.stdout.write(f"{image.path}\n")
    return 0


def _image_list(arguments: argparse.Namespace) -> int:
    directory = arguments.directory or _catalogue()
    found = [images.find(directory, name) for name in images.names(directory)]
    if arguments.json:
        sys.stdout.write(json.dumps([asdict(image) for image in found], default=str, indent=1) + "\n")
        return 0
    for image in found:
        size = image.path.stat().st_size >> 20
        sys.stdout.write(f"{image.name:<28} {image.distro:<8} {size:>6} MiB  {image.description}\n")
    return 0


def _image_show(arguments: argparse.Namespace) -> int:
    image = images.find(arguments.directory or _catalogue(), arguments.name)
    about = {key: str(value) for key, value in asdict(image).items() if value not in (None, "")}
    if arguments.json:
        sys.stdout.write(json.dumps(about, indent=1) + "\n")
    else:
        sys.stdout.writelines(f"{key:<12} {value}\n" for key, value in about.items())
    return 0


def _image_verify(arguments: argparse.Namespace) -> int:
    image = images.find(arguments.directory or _catalogue(), arguments.name)
    images.require_trusted(image)
    header = images.inspect(image.path)
    if images.digest(image.path) != image.sha256:
        sys.stderr.write(f"vmgr: {image.path} differs from its digest in the catalogue\n")
        return 1
    sys.stdout.write(f"{image.name}: {header.format}, {header.size >> 20} MiB, intact\n")
    return 0


def _lab_up(arguments: argparse.Namespace) -> int:
    lab.up(PREFIX, progress=_progress())
    return 0


def _lab_down(arguments: argparse.Namespace) -> int:
    lab.down(PREFIX, progress=_progress())
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


def _lab_shell(arguments: argparse.Namespace) -> int:
    if all(lab.status(PREFIX).values()):
        os.execv("/bin/su", ["su", "-", parts.USER])
    sys.stderr.write("vmgr: the lab is not up: vmgr lab up\n")
    return 1


def _lab_demo(arguments: argparse.Namespace) -> int:
    progress = _progress()
    was_up = any(lab.status(PREFIX).values())
    imagebuild.build("debian-12", parts.IMAGES, progress=lambda text: progress(f"image: {text}"))
    lab.up(PREFIX, progress=lambda text: progress(f"lab: {text}"))
    try:
        site = config.load(parts.PROGRAM / "etc/vtorque.yaml", trusted_owner=0)
        with contextlib.closing(Libvirt(site.libvirt_uri)) as hypervisor:
            return demo.run(parts.PROGRAM / "examples/hello.sh", hypervisor, progress=progress)
    finally:
        if not was_up:
            lab.down(PREFIX, progress=lambda text: progress(f"removing: {text}"))


def _sweep(arguments: argparse.Namespace) -> int:
    site = assembly.site(PREFIX)
    with assembly.node(site, PREFIX) as node:
        found = lifecycle.forgotten(node)
        gone = found if arguments.dry_run else lifecycle.sweep(node, deadline=Deadline(_SWEEP_SECONDS))
    sys.stdout.writelines(f"{key}\n" for key in gone)
    return 0 if len(gone) == len(found) else 1


def _catalogue() -> Path:
    """The site's catalogue; the lab's on a machine that has no site."""
    try:
        site = config.load(config.find(PREFIX), trusted_owner=None)
    except VtorqueError:
        return parts.IMAGES
    return Path(site.vm_img_dir)


def _progress() -> Callable[[str], None]:
    """Lines with the seconds since the start, on standard error."""
    start = time.monotonic()

    def show(text: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - start:6.1f} s] {text}\n")
        sys.stderr.flush()

    return show
