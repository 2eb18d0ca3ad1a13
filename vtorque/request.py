# SPDX-License-Identifier: Apache-2.0
"""The text in which a request rides inside the job.

`vt1.` and the base64url of compact JSON, in the job's own resource list: root
reads it from the hook's arguments and needs nothing from the user's home. It is
the user's text all the same, and checked as if vsub had not. What is not asked
for is not in the text, so that it stays short.
"""

import base64
import json
import re
from typing import Any

from vtorque import metadata, units
from vtorque.errors import RequestError
from vtorque.job import VmRequest
from vtorque.optionforms import FORMS

PREFIX = "vt1."
LIMIT = 1000
"""Characters of an encoded request: Slurm takes 1,024, Torque drops what makes its list pass 2 KiB."""

DISTROS = ("debian", "ubuntu", "redhat", "centos", "osv")
ARCHS = ("x86_64",)

_TEXT = re.compile(r"vt1\.[A-Za-z0-9_-]+", re.ASCII)
_KEY = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_KEY_TYPE = "ssh-ed25519"
# RFC 8709: the type's name and the 32 bytes of the key, each after its length.
_KEY_HEAD = b"\0\0\0\x0bssh-ed25519\0\0\0\x20"
_KEY_BYTES = 32

# Key in the text, then the field of VmRequest; with a range for numbers, a pattern for texts.
_INTEGERS = {
    "c": ("vcpus", 1, 1024), "m": ("memory_mib", 64, 16 << 20), "n": ("vms_per_node", 1, 256),
    "s": ("unclot_shmem_mib", 0, 16 << 20), "x": ("iocm_min_cores", 0, 1024), "y": ("iocm_max_cores", 0, 1024),
    "t": ("elements", 1, 1 << 20), "z": ("disk_size_mib", 1, 16 << 20),
    "N": ("disk_new_mib", 1, 16 << 20),
}
_CPUS = r"[0-9]{1,4}(?:-[0-9]{1,4})?(?:,[0-9]{1,4}(?:-[0-9]{1,4})?)*"
_STRINGS = {
    "i": ("image", *FORMS["image"]),
    "d": ("distro", "|".join(DISTROS), f"one of {', '.join(DISTROS)}"),
    "a": ("arch", "|".join(ARCHS), " or ".join(ARCHS)),
    "r": ("request_id", r"[0-9a-f]{16}", "16 hexadecimal digits"),
    "p": (
        "pinning", rf"true|false|auto|{_CPUS}(?:;{_CPUS})*",
        "true, false, auto, or lists of CPUs",
    ),
    "f": ("fs_type", "sharedfs|ramdisk", "sharedfs or ramdisk"),
    "D": (
        "disk", r"/(?!\.\.?/)(?!.*/\.\.?/)[A-Za-z0-9._+/@-]{1,254}\.(?:img|qcow2)",
        "the absolute path of an .img or .qcow2 file, of letters, digits and / . _ + @ -",
    ),
}
_FLAGS = {"b": "vm_prologue", "e": "vm_epilogue", "v": "vrdma", "u": "unclot", "o": "iocm"}
_METADATA, _PUBLIC_KEY = "M", "k"
_REQUIRED = {"i", "d", "a", "r", "c", "m", "n", _PUBLIC_KEY}
_KNOWN = {*_INTEGERS, *_STRINGS, *_FLAGS, _METADATA, _PUBLIC_KEY}
_DEFAULTS = {name: VmRequest._field_defaults.get(name) for name in VmRequest._fields}
# What a field is called in -vm, where that is something else.
_OPTION = {
    "image": "img", "memory_mib": "ram", "pinning": "vcpu_pinning", "unclot_shmem_mib": "unclot_shmem",
    "disk_size_mib": "disk_size", "disk_new_mib": "disk",
}


def encode(request: VmRequest) -> str:
    """The request as one word; RequestError when it is not valid or longer than LIMIT."""
    text = _spell(request)
    if len(text) > LIMIT:
        raise RequestError(f"the request has {len(text)} characters, {LIMIT} fit into a job")
    if decode(text) != request:
        raise RequestError("the job's public key has more to it than its type and the key")
    return text


def decode(text: str) -> VmRequest:
    """The request in `text`, or RequestError: a closed schema, and only the spelling that encode makes."""
    if len(text) > LIMIT or _TEXT.fullmatch(text) is None:
        raise RequestError("the job carries no request that this version understands")
    try:
        data = json.loads(_unb64(text.removeprefix(PREFIX)), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the request is damaged: {error}") from None
    if not isinstance(data, dict) or not _REQUIRED <= set(data) <= _KNOWN:
        raise RequestError("the request has missing or unknown keys")
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key in _INTEGERS:
            values[_INTEGERS[key][0]] = _integer(_INTEGERS[key][0], value)
        elif key in _STRINGS:
            values[_STRINGS[key][0]] = _string(_STRINGS[key][0], value)
        elif key in _FLAGS:
            values[_FLAGS[key]] = _integer(_FLAGS[key], value) == 1
    request = VmRequest(
        **values,
        metadata=_metadata(data[_METADATA]) if _METADATA in data else "",
        public_key=_public_key(_string("key", data[_PUBLIC_KEY])),
    )
    check(request)
    if _spell(request) != text:
        raise RequestError("the request is not in its canonical form")
    return request


def check(request: VmRequest) -> None:
    """What every request must be, wherever it comes from; RequestError with key, value and what is allowed."""
    for name, pattern, form in _STRINGS.values():
        value = getattr(request, name)
        if value != _DEFAULTS[name] and re.fullmatch(pattern, value, re.ASCII) is None:
            raise RequestError(f"-vm {_OPTION.get(name, name)}={value[:80]!r}: must be {form}")
    for name, low, high in _INTEGERS.values():
        value = getattr(request, name)
        if value != _DEFAULTS[name] and not low <= value <= high:
            unit = " MiB" if name.endswith("_mib") else ""
            raise RequestError(f"-vm {_OPTION.get(name, name)}={value}{unit}: must be {low} to {high}{unit}")
    if request.pinning[0].isdecimal():
        _check_mapping(request)
    if request.iocm_min_cores > request.iocm_max_cores:
        raise RequestError(
            f"-vm iocm_min_cores={request.iocm_min_cores}: more than iocm_max_cores={request.iocm_max_cores}"
        )


def check_disk_size(request: VmRequest, *, most_mib: int, image_bytes: int = 0) -> None:
    """Within the site's `most_mib` (0: no limit) and no smaller than the image; RequestError with both numbers."""
    asked = request.disk_size_mib
    if 0 < most_mib < asked:
        raise RequestError(f"-vm disk_size={asked} MiB: this cluster allows at most {most_mib} MiB")
    if asked and asked << 20 < image_bytes:
        needed = -(-image_bytes >> 20)
        raise RequestError(
            f"-vm disk_size={asked} MiB: image {request.image} has {needed} MiB, and a disk cannot shrink",
            hint=f"leave it out, or disk_size={needed}M",
        )


def _check_mapping(request: VmRequest) -> None:
    """As many lists as guests, as long as a guest has vCPUs, and no CPU twice."""
    guests = [units.cpu_sequence(text) for text in request.pinning.split(";")]
    if len(guests) != request.vms_per_node or any(len(cpus) != request.vcpus for cpus in guests):
        has = f"has {len(guests)}, of {' and '.join(str(len(cpus)) for cpus in guests)} CPUs"
        must = f"must have a line of {request.vcpus} CPUs for each guest of a node, {request.vms_per_node} in all"
        raise RequestError(f"-vm vcpu_pinning={request.pinning[:80]!r}: {must}; {has}")
    every = [cpu for cpus in guests for cpu in cpus]
    if len(set(every)) != len(every):
        raise RequestError(f"-vm vcpu_pinning={request.pinning[:80]!r}: names a CPU twice")


def _metadata(data: object) -> str:
    if not isinstance(data, dict) or not data:
        raise RequestError("the request's metadata is not a mapping")
    metadata.check(data)
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def _integer(name: str, value: object) -> int:
    if type(value) is not int:
        raise RequestError(f"the request's {name} is not a number")
    return value


def _string(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise RequestError(f"the request's {name} is not text")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key comes twice")
    return data


def _key_bytes(public_key: str) -> bytes:
    kind, _, text = public_key.partition(" ")
    try:
        blob = base64.b64decode(text.partition(" ")[0], validate=True)
    except ValueError:
        blob = b""
    if kind != _KEY_TYPE or not blob.startswith(_KEY_HEAD) or len(blob) != len(_KEY_HEAD) + _KEY_BYTES:
        raise RequestError("the job's public key is not an ed25519 key")
    return blob.removeprefix(_KEY_HEAD)


def _public_key(text: str) -> str:
    if _KEY.fullmatch(text) is None:
        raise RequestError("the request's key is not an ed25519 key")
    return f"{_KEY_TYPE} {base64.b64encode(_KEY_HEAD + _unb64(text)).decode()}"


def _spell(request: VmRequest) -> str:
    """The one way to write a request down."""
    named = {key: about[0] for key, about in (*_INTEGERS.items(), *_STRINGS.items())} | _FLAGS
    data: dict[str, object] = {
        key: int(value) if key in _FLAGS else value
        for key, name in named.items()
        if (value := getattr(request, name)) != _DEFAULTS[name]
    }
    if request.metadata:
        data[_METADATA] = json.loads(request.metadata)
    data[_PUBLIC_KEY] = _b64(_key_bytes(request.public_key))
    return PREFIX + _b64(json.dumps(data, sort_keys=True, separators=(",", ":")).encode())


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
