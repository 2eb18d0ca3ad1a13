# SPDX-License-Identifier: Apache-2.0
"""How options, keys and values are written: the words that manual, help and messages share."""

from collections.abc import Iterator

from vtorque import units
from vtorque.optionforms import FORMS
from vtorque.options import OPTIONS, SiteConfig

KEY_EXAMPLES = {
    "img": "img=debian-12.qcow2", "ram": "ram=8G", "distro": "img=own.qcow2,distro=debian", "arch": "arch=x86_64",
    "vcpus": "vcpus=4", "vcpu_pinning": "vcpu_pinning=false", "vms_per_node": "vms_per_node=2,ram=1G",
    "vm_prologue": "vm_prologue=setup.sh", "vm_epilogue": "vm_epilogue=collect.sh", "vrdma": "vrdma=false",
    "unclot": "unclot=true", "unclot_shmem": "unclot=true,unclot_shmem=512M", "iocm": "iocm=false",
    "iocm_min_cores": "iocm=true,iocm_min_cores=2", "iocm_max_cores": "iocm=true,iocm_max_cores=4",
    "fs_type": "fs_type=ramdisk", "disk": "disk=own.img", "disk_size": "disk_size=40G", "metadata": "metadata=m.yaml",
}
"""How each key of -vm is written."""

KIND_FORMS = {
    "path": "an absolute path, without `..` in it", "dir": "empty or an absolute path, without `..` in it",
    "size": "a size: a number with K, M, G or T, a plain one is MiB",
    "hosts": 'a regular expression for the whole of a short host name, or `"*"` for all',
    "regex": "a regular expression for any part of a short host name",
    "list": "a list of words", "limits": "a list of texts",
    **{kind: form for kind, (_, form) in FORMS.items()},
}
"""What a value of each kind looks like."""

EXAMPLES = {
    "REGEX_FE": '"login[0-9]+"',
    "DISABLED_HOSTS_LIST": '"^gpu"',
    "NODE_CORE_COUNT": '64',
    "NODE_RAM_MB": '256G',
    "MAX_VCPUS": '32',
    "MAX_RAM": '128G',
    "MAX_VMS_PER_NODE": '8',
    "MAX_DISK_SIZE": '100G',
    "VM_SCRIPTS_DIR": '/etc/vtorque/scripts-vm',
    "RAMDISK_LIMIT": '16G',
    "IMAGE_CACHE_LIMIT": '200G',
    "PROMETHEUS_FILE": '/var/lib/prometheus/node-exporter/vtorque.prom',
    "GROUP_LIMITS": '["students max_vcpus=4 max_ram=8G"]',
    "IMAGE_LIMITS": '["win.qcow2 groups=staff max_vms_per_node=1"]',
    "CUSTOM_IP_MAPPING": 'true',
    "IP_TO_MAC_SCRIPT": '/etc/vtorque/ip-mapping.sh',
    "VM_NFS_HOME": 'nfs1:/export/home',
    "GUEST_NET_ALLOW": '10.0.0.7:27000-27009',
    "GUEST_NET_DENY": '192.168.0.0/16',
    "NAME_SERVER": '10.0.0.53 10.0.0.54',
    "DOMAIN": 'cluster.example.org',
    "SEARCH_DOMAIN": 'cluster.example.org example.org',
    "NTP_SERVER_1": 'ntp1.example.org',
    "NTP_SERVER_2": 'ntp2.example.org',
    "SW_PACKAGES_DEBIAN": '[gdb, libgomp1]',
    "SW_PACKAGES_REDHAT": '[gdb, libgomp]',
    "SECURITY_UPDATES": 'true',
    "VM_NFS_WS": 'nfs1:/export/work',
    "VM_NFS_OPT": 'nfs1:/export/opt',
}
"""Values for the manual, where the default would not teach anything."""


def written(name: str) -> str:
    """The default of an option as an administrator would write it."""
    default = OPTIONS[name].default
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return f"[{', '.join(default)}]"
    if OPTIONS[name].metadata.get("kind") == "hosts" and default == ".*":
        return '"*"'
    return str(default) or '""'


def example(name: str) -> str:
    """A line of the file that sets the option."""
    return f"{name}: {EXAMPLES.get(name, written(name))}"


def limits(site: SiteConfig) -> Iterator[str]:
    """The site's limits in words, for its users."""
    for name, most in (("vcpus", str(site.max_vcpus or "")), ("ram", site.max_ram and units.size(site.max_ram)),
                       ("vms_per_node", str(site.max_vms_per_node or "")),
                       ("disk_size", site.max_disk_size and units.size(site.max_disk_size))):
        if most:
            yield f"{name} at most {most}"
    if not site.disk_allowed:
        yield "no disk"
    yield from (f"group {text}" for text in site.group_limits)
    yield from (f"image {text}" for text in site.image_limits)
