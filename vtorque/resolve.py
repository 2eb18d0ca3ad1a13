# SPDX-License-Identifier: Apache-2.0
"""From the words a user gave to a complete request: over the site's defaults, within its switches."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vtorque import request, units
from vtorque.errors import RequestError
from vtorque.job import Image, VmRequest
from vtorque.optionforms import FORMS, fits
from vtorque.options import SiteConfig
from vtorque.overhead import guest_memory_mib
from vtorque.vmoptions import KEYS, Given, Source, contents, expanded, wrong

AUTO = "auto"

# The manual's vocabulary; 0 is true, as an exit status of the shell.
_BOOLEANS = {
    "enabled": True, "true": True, "yes": True, "0": True,
    "disabled": False, "false": False, "no": False, "1": False,
}
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
_FIELDS = {"img": "image", "ram": "memory_mib", "vcpu_pinning": "pinning", "unclot_shmem": "unclot_shmem_mib",
           "disk_size": "disk_size_mib"}
# Nothing without the component whose name they begin with.
_OF_COMPONENTS = ("iocm_min_cores", "iocm_max_cores", "unclot_shmem")


class Setting(NamedTuple):
    """A line of --explain."""

    key: str
    value: str
    origin: str


class Resolved(NamedTuple):
    """The complete request, how it came about, what to tell the user, and his scripts by option."""

    request: VmRequest
    settings: tuple[Setting, ...]
    notes: tuple[str, ...]
    scripts: Mapping[str, bytes]


class Room(NamedTuple):
    """What one node's guests together may have when the job's own -l says it; nothing where it does not."""

    cores: int | None = None
    memory_mib: int | None = None


def resolve(
    given: Mapping[str, Given],
    site: SiteConfig,
    *,
    find_image: Callable[[str], Image],
    room: Room,
    directory: Path,
    request_id: str,
    public_key: str,
    elements: int = 1,
) -> Resolved:
    """The complete request: the user's options over the site's defaults; switches of the site beat both.

    Relative paths are of `directory`. `public_key` is only looked at by the
    codec. Raises RequestError that names key, value and what is allowed.
    """
    reader = _Reader(given, site, directory)
    wanted = VmRequest(
        request_id=request_id, public_key=public_key, elements=elements, **_values(reader, site, find_image, room)
    )
    request.check(wanted)
    if wanted.disk_size_mib:
        from vtorque import imageheader

        size = imageheader.disk_bytes(find_image(wanted.image).path)
        request.check_disk_size(wanted, most_mib=site.max_disk_size, image_bytes=size)
    return Resolved(wanted, tuple(_settings(wanted, given, reader.origins)), tuple(reader.notes), reader.scripts)


def _values(
    reader: "_Reader", site: SiteConfig, find_image: Callable[[str], Image], room: Room
) -> dict[str, Any]:
    image = reader.image(find_image)
    distro = reader.distro(image)
    number = reader.number("vms_per_node", site.vms_per_node_default)
    iocm = reader.iocm()
    vcpus = reader.vcpus(room, number, iocm.get("iocm_max_cores", 0))
    return {
        "image": reader.image_name,
        "distro": distro,
        "arch": reader.text("arch", site.arch_default),
        "vms_per_node": number,
        "vcpus": vcpus,
        "memory_mib": reader.ram(room, number, vcpus),
        "pinning": reader.pinning(site.vcpu_pinning_default),
        "fs_type": reader.text("fs_type", site.filesystem_type_default).lower(),
        **reader.disk(),
        "disk_size_mib": reader.size("disk_size", None),
        "metadata": reader.metadata(),
        "vm_prologue": reader.script("vm_prologue"),
        "vm_epilogue": reader.script("vm_epilogue"),
        "vrdma": reader.component("vrdma", site.vrdma_enabled, site.vrdma_enabled_default),
        **iocm,
        **reader.unclot(distro),
    }


class _Reader:
    """Reads one option after the other and remembers where each value came from."""

    def __init__(self, given: Mapping[str, Given], site: SiteConfig, directory: Path) -> None:
        self._given = given
        self._site = site
        self._directory = directory
        self.image_name = ""
        self.origins: dict[str, str] = {}
        self.notes: list[str] = []
        self.scripts: dict[str, bytes] = {}

    def image(self, find: Callable[[str], Image]) -> Image:
        """The image's entry. A path is taken when it is the catalogue's own."""
        name = self.text("img", self._site.img_default)
        path = Path(name)
        if path.is_absolute() and path.parent == Path(self._site.vm_img_dir):
            name = path.name
        if not fits("image", name):
            hint = f"like img={name}.qcow2" if fits("image", f"{name}.qcow2") else ""
            raise self._wrong("img", name, f"must be {FORMS['image'][1]}", hint=hint)
        self.image_name = name
        return find(name)

    def distro(self, image: Image) -> str:
        """The user's word, else the catalogue's."""
        if "distro" in self._given:
            return self.text("distro", "").lower()
        self.origins["distro"] = f"image {image.name}"
        return image.distro

    def text(self, key: str, default: str) -> str:
        """The value as it stands."""
        if key not in self._given:
            self.origins[key] = f"site: {_DEFAULT_NAMES[key]}"
            return default
        self.origins[key] = self._given[key].origin
        return self._given[key].value

    def number(self, key: str, default: int) -> int:
        """A whole number."""
        text = self.text(key, str(default))
        if _NUMBER.fullmatch(text) is None:
            raise self._wrong(key, "", f"{text[:80]!r} is not a whole number")
        return int(text)

    def size(self, key: str, default: int | None) -> int:
        """MiB; 0 for what is not given and has no default."""
        if default is None and key not in self._given:
            return 0
        try:
            return units.mebibytes(self.text(key, f"{default}M"))
        except ValueError as error:
            raise self._wrong(key, "", str(error)) from None

    def flag(self, key: str, *, default: bool) -> bool:
        """One of the manual's words for yes and no."""
        text = self.text(key, str(default))
        if text.lower() not in _BOOLEANS:
            raise self._wrong(key, text, "must be true, yes, enabled or 0, or false, no, disabled or 1")
        return _BOOLEANS[text.lower()]

    def vcpus(self, room: Room, number: int, iocm_cores: int) -> int:
        """A number, or as many as the job's ppn leaves for each guest."""
        if self.text("vcpus", str(self._site.vcpus_default)).lower() != AUTO:
            return self.number("vcpus", self._site.vcpus_default)
        if room.cores is None:
            raise self._wrong("vcpus", AUTO, "needs cores to fit into", hint="like -l nodes=1:ppn=8")
        cores = max(0, room.cores - iocm_cores)
        if cores < number:
            raise self._wrong("vcpus", AUTO, f"{number} guests do not fit into the {cores} cores that -l leaves")
        return cores // number

    def ram(self, room: Room, number: int, vcpus: int) -> int:
        """A size, or as much as the job's mem leaves for each guest."""
        if self.text("ram", "").lower() != AUTO:
            return self.size("ram", self._site.ram_default)
        if room.memory_mib is None:
            raise self._wrong("ram", AUTO, "needs memory to fit into", hint="like -l mem=16gb")
        return guest_memory_mib(room.memory_mib // max(1, number), vcpus)

    def pinning(self, default: str) -> str:
        """A word, or the CPUs that a file maps."""
        text = self.text("vcpu_pinning", default)
        if text.lower() == AUTO:
            return AUTO
        if text.lower() in _BOOLEANS:
            return str(_BOOLEANS[text.lower()]).lower()
        lines = [line.partition(b"#")[0].split() for line in self._file("vcpu_pinning").splitlines()]
        return ";".join(b"".join(words).decode(errors="backslashreplace") for words in lines if words)

    def disk(self) -> dict[str, Any]:
        """The user's own, and what it may have to be made with; nothing when none is given."""
        if "disk" not in self._given:
            return {}
        from vtorque import userdisk

        try:
            found = userdisk.read(self.text("disk", ""), self._directory)
        except RequestError as error:
            raise self._wrong("disk", self._given["disk"].value, error.brief, hint=error.hint) from None
        if found.holder:
            self.notes.append(f"-vm disk=: in use by {found.holder}; the job fails if it still is when it starts")
        return {"disk": str(found.path), "disk_new_mib": found.new_mib}

    def script(self, key: str) -> bool:
        """Whether there is such a script; its text is kept."""
        if key not in self._given:
            return False
        self.scripts[key] = self._file(key)
        if not self.scripts[key].startswith(b"#!"):
            raise self._wrong(key, self._given[key].value, "is not a script: its first line does not begin with #!")
        return True

    def metadata(self) -> str:
        """Checked JSON of the user's YAML."""
        if "metadata" not in self._given:
            return ""
        if not self._given["metadata"].value.endswith(".yaml"):
            raise self._wrong("metadata", self._given["metadata"].value, "must be the name of a .yaml file")
        from vtorque import metadatafile

        return metadatafile.read(self._file("metadata"))

    def component(self, key: str, enabled: bool, default: bool) -> bool:
        """A component of the cluster, unless the cluster has it switched off."""
        wanted = self.flag(key, default=default)
        if wanted and not enabled:
            if key in self._given:
                self.notes.append(f"-vm {key}=: {key} is off on this cluster, the job runs without it")
            self.origins[key] = f"site: {key.upper()}_ENABLED"
            return False
        return wanted

    def iocm(self) -> dict[str, Any]:
        """IOcm and its cores, which are nothing without it."""
        site = self._site
        wanted = self.component("iocm", site.iocm_enabled, site.iocm_enabled_default)
        low = self.number("iocm_min_cores", site.iocm_min_cores_default)
        high = self.number("iocm_max_cores", site.iocm_max_cores_default)
        if not wanted:
            return {}
        if low < site.iocm_min_cores:
            raise self._wrong("iocm_min_cores", str(low), f"this cluster demands at least {site.iocm_min_cores}")
        if high > site.iocm_max_cores:
            raise self._wrong("iocm_max_cores", str(high), f"this cluster allows at most {site.iocm_max_cores}")
        return {"iocm": True, "iocm_min_cores": low, "iocm_max_cores": high}

    def unclot(self, distro: str) -> dict[str, Any]:
        """UNCLOT and its memory, for OSv only."""
        wanted = self.component("unclot", self._site.unclot_enabled, self._site.unclot_enabled_default)
        memory = self.size("unclot_shmem", self._site.unclot_shmem_default)
        if wanted and distro != "osv":
            self.notes.append(f"-vm unclot=: only OSv guests have UNCLOT, not {distro}; the job runs without it")
            self.origins["unclot"] = "only OSv guests have it"
            wanted = False
        return {"unclot": True, "unclot_shmem_mib": memory} if wanted else {}

    def _file(self, key: str) -> bytes:
        path = self._directory / expanded(self.text(key, ""))
        try:
            return contents(path)
        except OSError as error:
            raise self._wrong(key, "", f"{path}: {error.strerror}") from None

    def _wrong(self, key: str, value: str, text: str, *, hint: str = "") -> RequestError:
        where = self._given[key].origin if key in self._given else f"site: {_DEFAULT_NAMES[key]}"
        shown = repr(value[:80]) if value else ""
        return wrong(Source(origin=where, text=""), f"{key}={shown}: {text}", hint=hint)


_DEFAULT_NAMES = {
    **{key: f"{key.upper()}_DEFAULT" for key in ("img", "ram", "vcpus", "vms_per_node", "arch", "vcpu_pinning")},
    **{key: f"{key.upper()}_DEFAULT" for key in _OF_COMPONENTS}, "fs_type": "FILESYSTEM_TYPE_DEFAULT",
    **{key: f"{key.upper()}_ENABLED_DEFAULT" for key in ("vrdma", "iocm", "unclot")},
}


def _settings(wanted: VmRequest, given: Mapping[str, Given], origins: Mapping[str, str]) -> Iterator[Setting]:
    for key in KEYS:
        value = getattr(wanted, _FIELDS.get(key, key))
        origin = origins.get(key, "not set")
        if key in _OF_COMPONENTS and not getattr(wanted, component := key.partition("_")[0]):
            value, origin = "", f"{component} is off"
        elif key in ("vm_prologue", "vm_epilogue"):
            value = given[key].value if key in given else ""
        elif key in ("ram", "unclot_shmem", "disk_size"):
            value = units.size(value) if value or key != "disk_size" else ""
        yield Setting(key=key, value=str(value).lower() if isinstance(value, bool) else str(value), origin=origin)
