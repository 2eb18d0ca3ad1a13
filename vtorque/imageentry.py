# SPDX-License-Identifier: Apache-2.0
"""An image's entry in the catalogue: what it may say, and what that means."""

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vtorque import files
from vtorque.errors import ImageError, RequestError, StateError
from vtorque.job import Image
from vtorque.optionforms import fits

SCHEMA = 1
LIMIT = 64 * 1024
"""How long an entry may be, in bytes."""
DIGESTS = {"file": "sha256", "kernel": "kernel_sha256", "initrd": "initrd_sha256"}
"""The keys that name files beside the entry, each with the one that holds its digest."""
SEALED = ".sealed"
"""The directory in the catalogue with a file for each image, named by its digest, in which nobody becomes root."""
SEAL = b"1\n"
"""What such a file says: the number of the rules by which that was found; another one asks for another look."""

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,159}", re.ASCII)
_REQUIRED = {"schema", "name", "distro", "arch", "sha256", "description"}
_OPTIONAL = {"revision", "file", "kernel", "kernel_sha256", "initrd", "initrd_sha256", "cmdline", "url", "packages"}
_OPTIONAL |= {"trusted"}


class Revision(NamedTuple):
    """One revision of an image: its number, its entry as it is written, and what it means."""

    number: int
    entry: Mapping[str, Any]
    image: Image

    def parts(self) -> dict[Path, str]:
        """Its files, each with its digest or nothing where the entry has none."""
        of = {} if self.image.url else {"file": self.image.path}
        of |= {key: path for key in ("kernel", "initrd") if (path := getattr(self.image, key))}
        return {path: self.entry.get(DIGESTS[key], "") for key, path in of.items()}


def is_name(text: str) -> bool:
    """Whether it can name an image or, with @N, a revision of it."""
    return fits("image", text)


def find(directory: Path, name: str) -> Image:
    """The image `NAME`, or its revision N for `NAME@N`, under the name that was asked for.

    Raises RequestError when there is none, ImageError when its entry is broken.
    """
    return revision(directory, name).image


def revision(directory: Path, name: str) -> Revision:
    """The same, with the number of the revision and its entry."""
    if not is_name(name):
        raise RequestError(f"{name[:80]!r} is not the name of an image")
    base, _, number = name.partition("@")
    found = None
    # The newest first: what is no longer the newest has had an entry of its own before that.
    try:
        found = read(directory, base)
    except ImageError:
        if not number:
            raise
    if number and (found is None or str(found.number) != number):
        found = read(directory, name)
    if found is None:
        raise _not_there(directory, name)
    return found._replace(image=found.image._replace(name=name))


def names(directory: Path) -> list[str]:
    """Names of all images and revisions that have an entry."""
    try:
        found = [path.stem for path in directory.iterdir() if path.suffix == ".json"]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ImageError(f"cannot read the image directory {directory}: {error.strerror}") from error
    return sorted(name for name in found if is_name(name))


def read(directory: Path, name: str) -> Revision | None:
    """The entry at `name`.json, or nothing when there is none."""
    base, _, number = name.partition("@")
    try:
        data = json.loads(files.read(directory / f"{name}.json", limit=LIMIT))
        found = _revision(directory, base, data)
        if number and str(found.number) != number:
            raise ValueError("it is of another revision")
    except FileNotFoundError:
        return None
    except StateError as error:
        raise ImageError(str(error)) from error
    except (ValueError, TypeError, KeyError) as error:
        raise ImageError(f"the catalogue entry of {name} is broken: {error}") from error
    return found


def require_trusted(image: Image) -> None:
    """Refuse an image when anybody but root could have put it, or a part of it, there (ConfigError)."""
    entries = [image.path.with_name(f"{name}.json") for name in (image.name, image.name.partition("@")[0])]
    there = [path for path in entries if os.path.lexists(path)]
    for path in filter(None, (*there, None if image.url else image.path, image.kernel, image.initrd)):
        try:
            files.require_trusted(path)
        except FileNotFoundError:
            raise ImageError(f"image {image.name}: {path} is missing") from None


def is_sealed(directory: Path, sha256: str) -> bool:
    """Whether it was found that nobody can become root in the image of that digest, in a catalogue of root's own."""
    with contextlib.suppress(FileNotFoundError, StateError):
        return files.read(directory / SEALED / sha256, limit=len(SEAL)) == SEAL
    return False


def _not_there(directory: Path, name: str) -> RequestError:
    base, _, number = name.partition("@")
    every = names(directory)
    known = [each for each in every if "@" not in each]
    if number and base in known:
        known, near = [each for each in every if each.partition("@")[0] == base], []
    else:
        import difflib  # for whoever mistyped something only

        near = difflib.get_close_matches(base, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known) or 'none'}"
    return RequestError(f"image {name} is not in the catalogue", hint=hint)


def _revision(directory: Path, name: str, data: dict[str, Any]) -> Revision:
    keys = set(data)
    if missing := _REQUIRED - keys:
        raise ValueError(f"{sorted(missing)[0]} is missing")
    if unknown := keys - _REQUIRED - _OPTIONAL:
        raise ValueError(f"{sorted(unknown)[0]} is unknown")
    if data["schema"] != SCHEMA or data["name"] != name:
        raise ValueError("it is of another schema or of another image")
    if not all(isinstance(value, str) for key, value in data.items() if key not in ("schema", "revision", "trusted")):
        raise ValueError("every value must be text")
    number = data.get("revision", 1)
    if type(number) is not int or number < 1:
        raise ValueError(f"{number!r} is not the number of a revision")
    disk = _beside(directory, data.get("file", name))
    if disk is None or disk.suffix != Path(name).suffix:
        raise ValueError("its file has another ending than its name")
    text = {key: data.get(key, "") for key in ("distro", "arch", "sha256", "description", "cmdline", "url")}
    kernel, initrd = (_beside(directory, data.get(key)) for key in ("kernel", "initrd"))
    image = Image(name=name, path=disk, kernel=kernel, initrd=initrd, trusted=data.get("trusted", True) is True, **text)
    return Revision(number=number, entry=data, image=image)


def _beside(directory: Path, name: str | None) -> Path | None:
    if name is None:
        return None
    if _FILE_NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} is not a file name")
    return directory / name
