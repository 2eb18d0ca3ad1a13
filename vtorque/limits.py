# SPDX-License-Identifier: Apache-2.0
"""What a site allows: to everybody, to a group of users, with an image. Checked by vsub and again by root."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from vtorque import units
from vtorque.errors import RequestError
from vtorque.job import VmRequest
from vtorque.options import SiteConfig

_WORD = r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*"
_NUMBER = r"[0-9]{1,9}"
_OPTIONS = {"vcpus": "vcpus", "ram": "memory_mib", "vms_per_node": "vms_per_node", "disk_size": "disk_size_mib"}
_SIZES = ("ram", "disk_size")


class Limit(NamedTuple):
    """One entry of GROUP_LIMITS or IMAGE_LIMITS: a name, the most of each option, and who may at all."""

    name: str
    most: Mapping[str, int]
    groups: tuple[str, ...] = ()


def parse(text: str) -> Limit:
    """`NAME max_vcpus=4 max_ram=8G max_vms_per_node=2 groups=a,b`; ValueError says what is wrong."""
    name, *words = text.split() or [""]
    if re.fullmatch(_WORD, name, re.ASCII) is None:
        raise ValueError(f"{name[:80]!r} is not a name")
    most: dict[str, int] = {}
    groups: tuple[str, ...] = ()
    for word in words:
        key, _, value = word.partition("=")
        if key == "groups":
            groups = tuple(value.split(","))
            if not all(re.fullmatch(_WORD, group, re.ASCII) for group in groups):
                raise ValueError(f"{value[:80]!r} is not a list of groups: like groups=staff,guests")
        elif key.removeprefix("max_") in _OPTIONS and key.startswith("max_"):
            most[key.removeprefix("max_")] = _amount(key, value)
        else:
            raise ValueError(f"{key[:80]!r} is not one of max_vcpus, max_ram, max_vms_per_node, max_disk_size, groups")
    return Limit(name=name, most=most, groups=groups)


def check(request: VmRequest, site: SiteConfig, groups: Collection[str]) -> None:
    """Refuse a request beyond what the site allows a member of `groups` (RequestError with the numbers).

    A user of several groups that have limits gets the most generous of each.
    """
    if request.disk and not site.disk_allowed:
        raise RequestError("-vm disk=: this cluster allows no disks of users")
    for key in ("iocm", "vrdma", "unclot"):
        if getattr(request, key) and not getattr(site, f"{key}_enabled"):
            raise RequestError(f"-vm {key}=: {key} is off on this cluster")
    low, high = site.iocm_min_cores, site.iocm_max_cores
    if request.iocm and not low <= request.iocm_min_cores <= request.iocm_max_cores <= high:
        raise RequestError(f"-vm iocm=: this cluster allows {low} to {high} cores of IOcm")
    everybody = {"vcpus": site.max_vcpus, "ram": site.max_ram, "vms_per_node": site.max_vms_per_node,
                 "disk_size": site.max_disk_size}
    _require(request, {key: most for key, most in everybody.items() if most}, "this cluster")
    own = [limit for limit in map(parse, site.group_limits) if limit.name in groups]
    if own:
        _require(request, _most_generous(own), f"group {' and '.join(limit.name for limit in own)}")
    for limit in map(parse, site.image_limits):
        if limit.name == request.image.partition("@")[0]:
            if limit.groups and not set(limit.groups) & set(groups):
                raise RequestError(
                    f"-vm img={request.image}: only for members of {', '.join(limit.groups)}"
                )
            _require(request, limit.most, f"image {limit.name}")


def _most_generous(own: Sequence[Limit]) -> dict[str, int]:
    """An option that one of the groups does not limit is not limited."""
    return {
        key: max(limit.most[key] for limit in own)
        for key in _OPTIONS if all(key in limit.most for limit in own)
    }


def _require(request: VmRequest, most: Mapping[str, int], who: str) -> None:
    for key, limit in most.items():
        value = getattr(request, _OPTIONS[key])
        unit = " MiB" if key in _SIZES else ""
        if value > limit:
            raise RequestError(f"-vm {key}={value}{unit}: {who} allows at most {limit}{unit}")
        if key == "disk_size" and request.disk_new_mib > limit:
            raise RequestError(f"-vm disk=: a new one of {request.disk_new_mib} MiB: {who} allows at most {limit} MiB")


def _amount(key: str, value: str) -> int:
    if key.removeprefix("max_") in _SIZES:
        return units.mebibytes(value)
    if re.fullmatch(_NUMBER, value, re.ASCII) is None:
        raise ValueError(f"{key}={value[:80]!r} is not a whole number")
    return int(value)
