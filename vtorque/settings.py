# SPDX-License-Identifier: Apache-2.0
"""What root goes by of a site's configuration: the program has read it before it heard a word of a user's."""

from collections.abc import Mapping
from typing import Any


class Settings:
    """Root's part of the configuration; what each is says `options`."""

    accounting_dir: str
    audit_log: str
    bridge: str
    debug_default: bool
    disk_dir: str
    image_cache_dir: str
    ip_to_mac_script: str
    libvirt_uri: str
    log_dir: str
    min_uid: int
    prometheus_file: str
    qemu_user: str
    ramdisk_dir: str
    share: str
    state_dir: str
    template_dir: str
    torque_home: str
    vm_img_dir: str
    vm_scripts_dir: str
    vm_share_opt: str
    vm_share_opt_readonly: bool
    vm_share_ws: str
    vm_share_ws_readonly: bool

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


def understood(told: Mapping[str, Any]) -> Settings:
    """What was told; ValueError when that is no configuration."""
    found = {}
    for name, kind in Settings.__annotations__.items():
        found[name] = told.get(name)
        if type(found[name]) is not kind:
            raise ValueError(f"{name.upper()} is {found[name]!r}")
    return Settings(**found)
