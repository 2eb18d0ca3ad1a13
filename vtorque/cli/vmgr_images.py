# SPDX-License-Identifier: Apache-2.0
"""`vmgr`'s image side: what users may ask for, and what root puts there."""

import argparse
import contextlib
import json
import os
import pwd
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from vtorque import catalogue as shelf
from vtorque import config, imagebuild, images, suspended
from vtorque.cli import progress, vmgr_verify
from vtorque.cli.prefix import PREFIX
from vtorque.config import NoConfiguration, SiteConfig
from vtorque.errors import ImageError, RequestError, VtorqueError, printable
from vtorque.job import job_id, job_key
from vtorque.lab import parts

_Areas = argparse._SubParsersAction


def add(areas: "_Areas[argparse.ArgumentParser]") -> None:
    """Register `image` and the manual's `add`, `update` and `delete`."""
    image = areas.add_parser("image", help="the catalogue of guest images")
    verbs = image.add_subparsers(required=True, metavar="build|list|show|verify|add|update|delete|pull")
    build = _verb(verbs, "build", _build, "build an image from Debian packages")
    build.add_argument("recipe", metavar="RECIPE", help=f"what to build: {', '.join(imagebuild.RECIPES)}")
    build.add_argument("--package", action="append", default=[], metavar="NAME", dest="packages",
                       help="a Debian package more, without what it only recommends; any number of them")
    build.add_argument("--name", default="", metavar="NAME.qcow2", help="its name; that of the recipe if not given")
    build.add_argument("--force", action="store_true", help="build it even if it is there, with these packages")
    build.add_argument("--stock", action="store_true", help="as the distribution's own cloud image, to compare with")
    _listing(_verb(verbs, "list", _list, "all images"))
    _listing(_verb(verbs, "show", _show, "one image, and its revisions"), "name")
    vmgr_verify.add_options(_verb(verbs, "verify", _verify, "whether images are intact, and have what guests need"))
    pull = _verb(verbs, "pull", _pull, "download an image into the catalogue (root only)")
    pull.add_argument("url", metavar="URL", help="http:// or https://")
    _about(pull)
    for where in (verbs, areas):
        adding = _verb(where, "add", _add, "put an image into the catalogue (root only)")
        adding.add_argument("image", type=Path, nargs="?", metavar="IMAGE", help="a .qcow2 or .img file, anywhere")
        adding.add_argument("--url", default="", metavar="URL", help="instead: from where each node fetches it")
        adding.add_argument("--kernel", type=Path, metavar="FILE", help="start guests with this kernel directly")
        adding.add_argument("--initrd", type=Path, metavar="FILE")
        adding.add_argument("--cmdline", default="", metavar="TEXT", help="the kernel's command line")
        _about(adding)
        update = _verb(where, "update", _update, "describe an image anew, or say whether it is trusted (root only)")
        update.add_argument("name", metavar="IMAGE", help="NAME or NAME@N")
        update.add_argument("description", nargs="*", metavar="DESCRIPTION")
        _trust(update, "of NAME, all revisions", "of NAME, the newest revision")
    kinds = areas.add_parser("delete", help="delete an image").add_subparsers(required=True, metavar="image|suspended")
    for where, called in ((verbs, "delete"), (kinds, "image")):
        deleting = _verb(where, called, _delete, "delete an image with all its revisions, or NAME@N (root only)")
        deleting.add_argument("name", metavar="NAME", help="all revisions of NAME, or the one of NAME@N")
        deleting.add_argument("--force", action="store_true", help="even if a guest of this machine uses it")
    gone = _verb(kinds, "suspended", _delete_suspended, "a suspended image of one's own; root: any")
    gone.add_argument("name", metavar="NAME", help="as `vmgr show suspended` shows it")


def add_show(verbs: "_Areas[argparse.ArgumentParser]") -> None:
    """Register `images`, `image` and `suspended` below `show`."""
    _listing(_verb(verbs, "images", _list, "all images that users may ask for"))
    _listing(_verb(verbs, "image", _show, "one image, and its revisions"), "name")
    held = _verb(verbs, "suspended", _show_suspended, "suspended images of one's own; root: of all")
    held.description = "Nothing suspends images yet: this shows what others put below SUSPENDED_IMAGE_DIR."
    which = held.add_mutually_exclusive_group()
    which.add_argument("--job", metavar="ID", help="only those of a job")
    which.add_argument("--user", metavar="NAME", help="only those of a user (root only)")
    held.add_argument("--json", action="store_true", help="for scripts")


def catalogue() -> Path:
    """The site's catalogue; the lab's on a machine that has no site. ConfigError when the site's file is broken."""
    if site := _site():
        return Path(site.vm_img_dir)
    sys.stderr.write(f"vmgr: there is no configuration, so this is about the lab's images in {parts.IMAGES}\n")
    return parts.IMAGES


def _verb(
    verbs: "_Areas[argparse.ArgumentParser]", name: str, act: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text)
    option = "SUSPENDED_IMAGE_DIR" if name == "suspended" else "VM_IMG_DIR"
    parser.add_argument("--directory", type=Path, help=f"where the images are; {option} if not given")
    parser.set_defaults(act=act)
    return parser


def _about(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Options stand before the image or after the description."
    parser.add_argument("description", nargs="*", metavar="DESCRIPTION")
    parser.add_argument("--sha256", metavar="HEX", help="the digest it must have")
    parser.add_argument("--name", default="", help="its name in the catalogue; that of the file if not given")
    parser.add_argument("--distro", default="", choices=shelf.DISTROS, help="guessed from the name if not given")
    parser.add_argument("--arch", default="", choices=shelf.ARCHES, help=f"{shelf.ARCHES[0]} if not given")
    _trust(parser, "so are its further revisions", "the default, unless its newest revision is not")


def _trust(parser: argparse.ArgumentParser, distrusted: str, trusted: str) -> None:
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--untrusted", dest="trusted", action="store_false", default=None,
                        help=f"a user may become root in it: no NFS with sec=sys; {distrusted}")
    either.add_argument("--trusted", dest="trusted", action="store_true", default=None,
                        help=f"no user may become root in it; {trusted}")


def _listing(parser: argparse.ArgumentParser, *names: str) -> None:
    for name in names:
        parser.add_argument(name, metavar="NAME", help="NAME, the newest, or NAME@N")
    parser.add_argument("--json", action="store_true", help="for scripts")


def _build(arguments: argparse.Namespace) -> int:
    image = imagebuild.build(
        arguments.recipe, _root_only(arguments), progress=progress.lines(), packages=arguments.packages,
        name=arguments.name, force=arguments.force, as_stock=arguments.stock,
    )
    sys.stdout.write(f"{image.path}\n")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    directory = arguments.directory or catalogue()
    found, status = [], 0
    for name in images.names(directory):
        try:
            found.append(images.revision(directory, name))
        except ImageError as error:
            status = _complain(error)
    if arguments.json:
        known = [_about_image(directory, each) for each in found]
        sys.stdout.write(json.dumps(known, default=str, indent=1) + "\n")
        return status
    for image in (each.image for each in found):
        missing = "    by URL" if image.url else "   missing"
        size = f"{image.path.stat().st_size >> 20:>6} MiB" if image.path.exists() else missing
        sys.stdout.write(f"{image.name:<28} {image.distro:<8} {size}  {printable(image.description)}\n")
    return status


def _show(arguments: argparse.Namespace) -> int:
    directory = arguments.directory or catalogue()
    found = images.revision(directory, arguments.name)
    about = {key: value for key, value in _about_image(directory, found).items() if value not in (None, "")}
    if found.image.path.exists():
        there = found.image.path.stat()
        about |= {"size": there.st_size, "changed": _when(there.st_mtime)}
    known = images.revisions(directory, arguments.name.partition("@")[0])
    if arguments.json:
        about["revisions"] = [{"revision": each.number, **dict(each.entry)} for each in known]
        sys.stdout.write(json.dumps(about, default=str, indent=1) + "\n")
        return 0
    about["size"] = f"{about['size'] >> 20} MiB" if "size" in about else "by URL" if found.image.url else "missing"
    about.setdefault("description", "-none-")
    sys.stdout.writelines(f"{key:<12} {printable(str(value))}\n" for key, value in about.items())
    for each in (each.image for each in known):
        text = f"{each.name}  {each.sha256[:12]}  {each.path.name}  {each.description}"
        sys.stdout.write(f"{'revisions' if each is known[0].image else '':<12} {printable(text)}\n")
    return 0


def _about_image(directory: Path, found: images.Revision) -> dict[str, Any]:
    """An image's fields, also the one that is not in its entry: whether `vmgr image verify` found nobody to fear."""
    image = found.image._replace(verified=images.is_sealed(directory, found.image.sha256))
    return image._asdict() | {"revision": found.number}


def _verify(arguments: argparse.Namespace) -> int:
    site = _site() or SiteConfig()
    directory = arguments.directory or catalogue()
    return vmgr_verify.verify(directory, arguments.name, share=site.share, as_json=arguments.json)


def _add(arguments: argparse.Namespace) -> int:
    directory, source = _root_only(arguments), arguments.image
    if not arguments.url and (source is None or arguments.sha256):
        raise RequestError("which image?", hint="IMAGE, or --url URL --sha256 HEX")
    if source and arguments.url:
        arguments.description.insert(0, str(source))
    about = replace(_said(arguments), kernel=arguments.kernel, initrd=arguments.initrd, cmdline=arguments.cmdline)
    about = replace(about, url=arguments.url, sha256=arguments.sha256 or "")
    return _added(shelf.add(directory, None if arguments.url else source, about, progress=progress.lines()))


def _pull(arguments: argparse.Namespace) -> int:
    root, url, about, digest = _root_only(arguments), arguments.url, _said(arguments), arguments.sha256
    return _added(shelf.pull(root, url, about, sha256=digest, progress=progress.lines(), transfer=progress.Transfer()))


def _said(arguments: argparse.Namespace) -> shelf.About:
    return shelf.About(
        name=arguments.name, description=" ".join(arguments.description), distro=arguments.distro,
        arch=arguments.arch, trusted=arguments.trusted,
    )


def _added(found: images.Revision) -> int:
    sys.stdout.write(f"{found.image.name.partition('@')[0]}@{found.number}: {found.image.url or found.image.path}\n")
    return 0


def _update(arguments: argparse.Namespace) -> int:
    directory, words = _root_only(arguments), arguments.description
    if not words and arguments.trusted is None:
        raise RequestError(f"what about {arguments.name[:80]}?", hint="DESCRIPTION, --untrusted or --trusted")
    shelf.update(directory, arguments.name, " ".join(words) if words else None, trusted=arguments.trusted)
    return 0


def _delete(arguments: argparse.Namespace) -> int:
    directory, site = _root_only(arguments), None if arguments.force else _site()
    disks = [parts.ROOT / "disks", *([Path(site.disk_dir)] if site else [])]
    for name in shelf.delete(directory, arguments.name, disks=disks, force=arguments.force):
        sys.stdout.write(f"deleted {name}\n")
    return 0


def _show_suspended(arguments: argparse.Namespace) -> int:
    uid = os.geteuid() or None
    if arguments.user is not None:
        if uid is not None:
            raise RequestError("--user is for root only")
        try:
            uid = pwd.getpwnam(arguments.user).pw_uid
        except (KeyError, ValueError):
            raise RequestError(f"there is no user {arguments.user[:80]!r}") from None
    job = job_key(job_id(arguments.job)) if arguments.job is not None else ""
    directory = arguments.directory or Path((_site() or SiteConfig()).suspended_image_dir)
    found = suspended.find(directory, uid=uid, job=job)
    if arguments.json:
        sys.stdout.write(json.dumps([asdict(each) for each in found], indent=1) + "\n")
        return 0
    if not found:
        sys.stderr.write(f"vmgr: there is no such image in {directory}\n")
    for each in found:
        about = f"{_owner(directory / each.name):<12} {each.size >> 20:>6} MiB  {_when(each.changed)}"
        sys.stdout.write(f"{printable(each.name):<28} {about}  {each.description or '-none-'}\n")
    return 0


def _delete_suspended(arguments: argparse.Namespace) -> int:
    directory = arguments.directory or Path((_site() or SiteConfig()).suspended_image_dir)
    suspended.delete(directory, arguments.name, uid=os.geteuid())
    sys.stdout.write(f"deleted {arguments.name}\n")
    return 0


def _root_only(arguments: argparse.Namespace) -> Path:
    """The catalogue that is about to be changed."""
    if os.geteuid() != 0:
        raise ImageError("to change the catalogue needs root")
    return Path(arguments.directory or catalogue())


def _site() -> SiteConfig | None:
    """The site's configuration; nothing on a machine that has none."""
    try:
        path = config.find(PREFIX)
    except NoConfiguration:
        return None
    return config.load(path, trusted_owner=None)


def _complain(error: VtorqueError) -> int:
    sys.stderr.writelines(f"vmgr: {printable(line)}\n" for line in error.one_line().splitlines())
    return 1


def _owner(path: Path) -> str:
    with contextlib.suppress(KeyError, OSError):
        return path.owner()
    return "?"


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="seconds")
