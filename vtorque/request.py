# SPDX-License-Identifier: Apache-2.0
"""What a user asks for: the `-vm` options, and the text in which the request rides inside the job.

`vt1.` and the base64url of compact JSON, in the job's own resource list: root
reads it from the hook's arguments and needs nothing from the user's home. It is
the user's text all the same, and checked as if vsub had not.
"""

import base64
import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vtorque import units
from vtorque.config import FORMS, SiteConfig
from vtorque.errors import RequestError
from vtorque.model import VmRequest

PREFIX = "vt1."
LIMIT = 1000
"""Characters of an encoded request: Slurm takes 1,024, Torque drops what makes its list pass 2 KiB."""

DISTROS = ("debian", "ubuntu", "redhat", "centos", "osv")
ARCHS = ("x86_64",)

_REQUEST_ID = re.compile(r"[0-9a-f]{16}", re.ASCII)
_TEXT = re.compile(r"vt1\.[A-Za-z0-9_-]+", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
_KEY = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_KEY_TYPE = "ssh-ed25519"
# RFC 8709: the type's name and the 32 bytes of the key, each after its length.
_KEY_HEAD = b"\0\0\0\x0bssh-ed25519\0\0\0\x20"
_KEY_BYTES = 32

# Key in the text, and the field's range or pattern.
_INTEGERS = {"c": ("vcpus", 1, 1024), "m": ("memory_mib", 64, 16 << 20), "n": ("vms_per_node", 1, 256)}
_STRINGS = {"i": "image", "d": "distro", "a": "arch", "r": "request_id"}

OPTIONS = ("img", "ram", "vcpus", "vms_per_node", "distro", "arch")
_LATER = (
    "vcpu_pinning", "vm_prologue", "vm_epilogue", "vrdma", "unclot", "unclot_shmem", "iocm",
    "iocm_min_cores", "iocm_max_cores", "fs_type", "disk", "metadata",
)


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
    if not isinstance(data, dict) or set(data) != {*_STRINGS, *_INTEGERS, "k"}:
        raise RequestError("the request has missing or unknown keys")
    texts = {name: _string(name, data[key]) for key, name in _STRINGS.items()}
    numbers = {name: _integer(name, data[key], low, high) for key, (name, low, high) in _INTEGERS.items()}
    request = VmRequest(
        image=texts["image"],
        distro=texts["distro"],
        arch=texts["arch"],
        request_id=texts["request_id"],
        vcpus=numbers["vcpus"],
        memory_mib=numbers["memory_mib"],
        vms_per_node=numbers["vms_per_node"],
        public_key=_public_key(_string("key", data["k"])),
    )
    _check(request)
    if _spell(request) != text:
        raise RequestError("the request is not in its canonical form")
    return request


def parse_vm_options(texts: Sequence[str]) -> dict[str, str]:
    """Keys and values of `-vm key=value,key=value`: keys in any case, the last one of each wins.

    Raises RequestError that names what is wrong, or not a key.
    """
    options: dict[str, str] = {}
    for text in texts:
        for part in text.split(","):
            key, equals, value = part.partition("=")
            name = key.strip().lower()
            if not (name and equals and value):
                raise RequestError(f"-vm {part[:80]!r} is not key=value", hint="like -vm vcpus=4,ram=8G")
            if name not in OPTIONS:
                raise _unknown(name)
            options[name] = value
    return options


def resolve(
    options: Mapping[str, str], site: SiteConfig, *, request_id: str, public_key: str
) -> VmRequest:
    """The complete request: the user's options over the site's defaults, within the site's limits.

    Raises RequestError that names key, value and what is allowed. `public_key`
    is only looked at by `encode`.
    """
    image = options.get("img", site.img_default)
    request = VmRequest(
        request_id=request_id,
        image=image,
        distro=_distro(options.get("distro"), image, site),
        arch=options.get("arch", site.arch_default),
        vcpus=_parsed("vcpus", options, _count, site.vcpus_default),
        memory_mib=_parsed("ram", options, units.mebibytes, site.ram_default),
        vms_per_node=_parsed("vms_per_node", options, _count, site.vms_per_node_default),
        public_key=public_key,
    )
    _check(request)
    for name, value, limit, unit in (
        ("vcpus", request.vcpus, site.max_vcpus, ""),
        ("ram", request.memory_mib, site.max_ram, " MiB"),
        ("vms_per_node", request.vms_per_node, site.max_vms_per_node, ""),
    ):
        if 0 < limit < value:
            raise RequestError(f"-vm {name}={value}{unit}: this cluster allows at most {limit}{unit}")
    return request


def _check(request: VmRequest) -> None:
    """What every request must be, wherever it comes from."""
    if _REQUEST_ID.fullmatch(request.request_id) is None:
        raise RequestError("the request's id is not 16 hexadecimal digits")
    pattern, form = FORMS["image"]
    if pattern.fullmatch(request.image) is None:
        raise RequestError(f"-vm img={request.image[:80]!r}: must be {form}")
    if request.distro not in DISTROS:
        raise RequestError(f"-vm distro={request.distro[:80]!r}: must be one of {', '.join(DISTROS)}")
    if request.arch not in ARCHS:
        raise RequestError(f"-vm arch={request.arch[:80]!r}: must be {' or '.join(ARCHS)}")
    for name, low, high in _INTEGERS.values():
        value = getattr(request, name)
        if not low <= value <= high:
            unit = " MiB" if name == "memory_mib" else ""
            option = "ram" if name == "memory_mib" else name
            raise RequestError(f"-vm {option}={value}{unit}: must be {low} to {high}{unit}")


def _unknown(name: str) -> RequestError:
    if name in _LATER:
        return RequestError(f"-vm {name}= is not supported by this version")
    near = difflib.get_close_matches(name, OPTIONS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(OPTIONS)}"
    return RequestError(f"-vm {name[:80]!r} is not a key", hint=hint)


def _distro(wanted: str | None, image: str, site: SiteConfig) -> str:
    if wanted is not None:
        return wanted.lower()
    return next((name for name in DISTROS if name in image.lower()), site.distro_default)


def _count(text: str) -> int:
    if _NUMBER.fullmatch(text) is None:
        raise ValueError(f"{text[:80]!r} is not a whole number")
    return int(text)


def _parsed(name: str, options: Mapping[str, str], read: Callable[[str], int], default: int) -> int:
    if name not in options:
        return default
    try:
        return read(options[name])
    except ValueError as error:
        raise RequestError(f"-vm {name}=: {error}") from None


def _integer(name: str, value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise RequestError(f"the request's {name} is not a number from {low} to {high}")
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
    data: dict[str, str | int] = {key: getattr(request, name) for key, name in _STRINGS.items()}
    data |= {key: getattr(request, name) for key, (name, _, _) in _INTEGERS.items()}
    data["k"] = _b64(_key_bytes(request.public_key))
    return PREFIX + _b64(json.dumps(data, sort_keys=True, separators=(",", ":")).encode())


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
