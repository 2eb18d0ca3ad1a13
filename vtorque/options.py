# SPDX-License-Identifier: Apache-2.0
"""Every option of the site's configuration: name, type, default, unit, meaning.

One table drives the parser, the checks and the manual. Names are those of the
vTorque manual, in lower case here and in upper case in the file.
"""

from collections.abc import Mapping
from typing import Any

from vtorque.optionforms import Option, inert, option
from vtorque.settings import Settings

LIMITS = (
    ("max_vcpus", "vcpus_default"),
    ("max_ram", "ram_default"),
    ("max_vms_per_node", "vms_per_node_default"),
    ("iocm_max_cores", "iocm_max_cores_default"),
)
"""A limit, and the default that has to keep to it."""


_LIMITED = "max_vcpus=N max_ram=SIZE max_vms_per_node=N max_disk_size=SIZE"
_LATER = "not supported by this version"
_SERVER = "nfs-server.my-domain.com:"
_PACKAGES = "at every boot, which takes minutes of TIMEOUT"


class SiteConfig(Settings):
    """What a site decided, frozen. Attributes are the options' names in lower case.

    Not a dataclass: what that generates for so many fields takes longer than all that vsub does with them.
    """

    batch_system: str = option(
        "torque", "batch system of this cluster", choices=("torque", "openpbs", "slurm", "local")
    )
    torque_home: str = option("/var/spool/torque", "mom's and server's directory", kind="path")
    slurm_conf: str = option("/etc/slurm/slurm.conf", "Slurm's configuration, for vmgr doctor", kind="path")
    pbs_qsub_on_fe: str = option("/usr/bin/qsub", "the real qsub on front ends; with Slurm sbatch", kind="path")
    pbs_qsub_on_nodes: str = option("/usr/bin/qsub", "the real qsub on nodes; with Slurm sbatch", kind="path")
    regex_fe: str = option(".*", "which short host names are front ends", kind="hosts")
    disabled_hosts_list: str = option("", "short host names on which vsub refuses to work", kind="regex")

    vm_img_dir: str = option("/opt/vm-images", "the authorised images", kind="path")
    vm_images_verified: bool = option(
        False, "only images in which vmgr image verify found nobody who can become root mount NFS with sec=sys"
    )
    suspended_image_dir: str = option(
        "/opt/vm-images-suspended", "suspended images, for vmgr show suspended", kind="path"
    )
    share: str = option("nfs", "how guests get their shares: by NFS, or served by the node as the job's user",
                        choices=("nfs", "9p", "virtiofs"))
    vm_nfs_home: str = option(f"{_SERVER}/nfs/home", "export with <user>'s home; [username] is his name", kind="share")
    vm_nfs_ws: str = option(f"{_SERVER}/fast_storage/workspace", "export mounted at /workspace", kind="share")
    vm_nfs_opt: str = option(f"{_SERVER}/nfs/shared-opt", "export mounted at /opt", kind="share")
    vm_nfs_options: str = option("rw,hard,noatime,vers=4.2", "mount options of home and workspace", kind="mount")
    vm_nfs_home_options: str = option("", "mount options of home, empty for VM_NFS_OPTIONS", kind="mount")
    vm_nfs_ws_options: str = option("", "mount options of /workspace, empty for VM_NFS_OPTIONS", kind="mount")
    vm_nfs_opt_options: str = option("ro,hard,noatime,vers=4.2", "mount options of /opt", kind="mount")
    vm_share_ws: str = option("/workspace", "the node's directory for /workspace, empty for none", kind="dir")
    vm_share_ws_readonly: bool = option(False, "whether guests may only read it")
    vm_share_opt: str = option("/opt", "the node's directory for /opt, empty for none", kind="dir")
    vm_share_opt_readonly: bool = option(True, "whether guests may only read it")
    ws_dir: str = inert(
        "/workspace/.vtorque", "where images were copied to", "images are not copied any more", kind="path"
    )
    ramdisk_dir: str = option(
        "/ramdisk", "a RAM disk or a fast local disk: images and overlays of jobs with fs_type=ramdisk", kind="path"
    )
    ramdisk_limit: int = option(
        0, "most that images may take in RAMDISK_DIR, 0 for half of its file system", kind="size", unit="MiB"
    )
    image_cache_dir: str = option(
        "/var/lib/vtorque/images", "images that came from a URL, on a local disk", kind="path"
    )
    image_cache_limit: int = option(
        0, "most that images may take in IMAGE_CACHE_DIR, 0 for half of its file system", kind="size", unit="MiB"
    )

    hypervisor_type: str = option(
        "kvm", "accelerator of guests: kvm, or qemu (emulated)", choices=("kvm", "qemu")
    )
    libvirt_uri: str = option("qemu:///system", "libvirt connection of root's hooks", kind="uri")
    machine_type: str = option("q35", "machine type of guests", choices=("q35", "pc"))
    qemu_user: str = option("libvirt-qemu", "user and group that QEMU runs as", kind="user")
    bridge: str = option("br0", "bridge that guests are attached to", kind="interface")
    mac_prefix: str = option("5a", "first octets of guests' MAC addresses, 1 to 3, the fewer the safer", kind="mac")
    address_source: str = option(
        "neighbour", "where guests' addresses are learned: the kernel's neighbour table, or ARP_BIN (IPv4 only)",
        choices=("neighbour", "arp"),
    )
    arp_bin: str = option("/usr/sbin/arp", "the arp command, run with -an for ADDRESS_SOURCE: arp", kind="path")
    custom_ip_mapping: bool = option(False, "ask IP_TO_MAC_SCRIPT for addresses, not ADDRESS_SOURCE")
    ip_to_mac_script: str = option(
        "", "root's script: called with node, guests on it, number (from 1), it prints that guest's IP within 10 s",
        kind="path",
    )

    network_filter: bool = option(True, "drop what guests must not send or get, with nft")
    guest_net_allow: str = option(
        "", "what guests may reach all the same, NET or [NET6], with :PORT or :LOW-HIGH", kind="endpoints"
    )
    guest_net_deny: str = option("", "what guests may not reach either, in the same form", kind="endpoints")

    host_os_core_count: int = option(1, "cores of a node that guests do not get", unit="cores", low=0, high=4096)
    host_os_ram_mb: int = option(2048, "memory of a node that guests do not get", kind="size", unit="MiB")
    hugepages: bool = option(False, "guests' memory from the huge pages that the node has set aside")
    node_core_count: int = option(0, "cores of the largest node, 0 when unknown", unit="cores", low=0, high=65536)
    node_ram_mb: int = option(0, "memory of the largest node, 0 when unknown", kind="size", unit="MiB")
    pbs_exclusive_node_alloc: bool = option(
        True, "ask for nodes of one's own: Torque naccesspolicy=uniqueuser, Slurm --exclusive; OpenPBS is not asked"
    )
    kill_user_processes_after_job: bool = inert(
        True, "kill all processes of the user after a job", "only what the job itself started is ended"
    )

    timeout: int = option(120, "for a guest to boot and be proven", unit="seconds", low=1, high=86400)
    ssh_timeout: int = option(5, "for one attempt to connect to a guest", unit="seconds", low=1, high=600)
    guest_timeout: int = option(
        60, "of silence after which a guest is lost to its job", unit="seconds", low=5, high=3600
    )
    prologue_timeout: int = inert(
        600, "for the user's part of the prologue", "mom's $prologalarm is the limit", unit="seconds"
    )
    nfs_timeout: int = option(60, "for a guest to mount one share", unit="seconds", low=1, high=3600)
    undo_reserve: int = option(30, "of a hook's time kept for undoing", unit="seconds", low=1, high=3600)
    requeue_limit: int = option(
        3, "failed starts on a node until the user is told", unit="starts", low=1, high=100
    )
    node_failure_limit: int = option(
        3, "jobs in a row that a node fails until it takes no more with guests, 0 for never", unit="jobs",
        low=0, high=100,
    )

    name_server: str = option("", "addresses of guests' name servers, empty to leave it to DHCP", kind="addresses")
    domain: str = option("", "domain of guests' own names, empty for none", kind="domain")
    search_domain: str = option(
        "", "domains that guests search, with NAME_SERVER only; empty for DOMAIN", kind="domains"
    )
    ntp_server_1: str = option("", "time server of guests, empty to leave it to the image", kind="host")
    ntp_server_2: str = option("", "second time server of guests", kind="host")
    sw_packages_debian: tuple[str, ...] = option(
        (), f"packages that Debian guests install {_PACKAGES}", kind="list"
    )
    sw_packages_redhat: tuple[str, ...] = option(
        (), f"packages that RedHat guests install {_PACKAGES}", kind="list"
    )
    security_updates: bool = option(False, f"guests install all updates {_PACKAGES}")

    img_default: str = option("ubuntu.x86_64.img", "image when a job names none", kind="image")
    distro_default: str = inert(
        "debian", "distribution of IMG_DEFAULT", "the catalogue knows each image's",
        choices=("debian", "ubuntu", "redhat", "centos", "osv"),
    )
    arch_default: str = option("x86_64", "architecture of guests", choices=("x86_64",))
    vcpus_default: int = option(7, "vCPUs of a guest", unit="vCPUs", low=1, high=1024)
    vcpu_pinning_default: str = option(
        "true", "pin every vCPU to a core of its own", choices=("true", "false", "auto"), kind="switch"
    )
    ram_default: int = option(24576, "memory of a guest", kind="size", unit="MiB", low=64)
    vms_per_node_default: int = option(1, "guests on each node", unit="guests", low=1, high=256)
    disk_default: str = inert("", "persistent disk", "a disk belongs to one user: he names it in ~/.vtorquerc")
    filesystem_type_default: str = option(
        "sharedfs", "where overlays lie", choices=("sharedfs", "ramdisk")
    )
    vrdma_enabled_default: bool = option(True, "virtual RDMA unless a job says otherwise")
    unclot_enabled_default: bool = option(False, "UNCLOT unless a job says otherwise")
    unclot_shmem_default: int = option(1024, "shared memory of UNCLOT", kind="size", unit="MiB", low=1)
    iocm_enabled_default: bool = option(True, "IOcm unless a job says otherwise")
    iocm_min_cores_default: int = option(1, "cores of IOcm, at least", unit="cores", low=0, high=1024)
    iocm_max_cores_default: int = option(4, "cores of IOcm, at most", unit="cores", low=0, high=1024)
    max_vcpus: int = option(0, "most vCPUs a guest may have, 0 for no limit", unit="vCPUs", low=0, high=1024)
    max_ram: int = option(0, "most memory a guest may have, 0 for no limit", kind="size", unit="MiB")
    max_vms_per_node: int = option(0, "most guests on a node, 0 for no limit", unit="guests", low=0, high=256)
    max_disk_size: int = option(
        0, "most that disk_size= and a new disk= may ask for, 0 for no limit", kind="size", unit="MiB"
    )
    disk_allowed: bool = option(True, "whether jobs may bring a disk of their user's own, disk=")
    group_limits: tuple[str, ...] = option(
        (), f"limits of user groups, each \"GROUP {_LIMITED}\"", kind="limits"
    )
    image_limits: tuple[str, ...] = option(
        (), f"limits of images, each \"IMAGE groups=A,B {_LIMITED}\"", kind="limits",
    )
    min_uid: int = option(1000, "lowest uid that may have guests", low=1, high=2**32 - 2)

    parallel: bool = option(True, "start the guests of a node at the same time")
    parallel_guests: int = option(8, "most guests of a node that are started at the same time", low=1, high=64)
    allow_user_images: bool = inert(False, "images outside VM_IMG_DIR", "a user's image is never started")
    enable_dev_mode: bool = inert(False, "developers' switches", "root runs nothing of a user's")
    debug_default: bool = option(False, "verbose log of root's hooks")
    trace_default: bool = inert(False, "very verbose log", "DEBUG_DEFAULT logs everything there is")
    show_log_default: bool = inert(False, "follow a job's log", "vsub --wait follows a job")
    print_to_stdout: bool = inert(False, "log to standard output", "vsub prints what qsub prints")
    abort_on_error: bool = inert(True, "stop at errors", "every error stops")
    log_rotate: bool = inert(True, "rotate logs", "logrotate does it")
    log_file: str = inert("", "the log", "see LOG_DIR")
    measure_time: bool = inert(False, "log run times", "run times are always logged")

    iocm_enabled: bool = option(False, "whether jobs may ask for IOcm")
    iocm_min_cores: int = option(1, "fewest cores a job may give IOcm", unit="cores", low=0, high=1024)
    iocm_max_cores: int = option(12, "most cores a job may give IOcm", unit="cores", low=0, high=1024)
    iocm_nodes: str = inert(".*", "nodes with IOcm", _LATER, kind="hosts")
    vrdma_enabled: bool = option(False, "whether jobs may ask for virtual RDMA")
    vrdma_nodes: str = inert(".*", "nodes with virtual RDMA", _LATER, kind="hosts")
    unclot_enabled: bool = option(False, "whether jobs may ask for UNCLOT, in OSv guests")
    snap_monitoring_enabled: bool = inert(False, "Snap telemetry", "Snap is no longer maintained")
    snap_bin_dir: str = inert(
        "/usr/local/bin/", "Snap's commands", "Snap is no longer maintained", kind="path"
    )
    snap_tag_format: str = inert("snapTask-[username]-[jobid]", "Snap's tags", "Snap is no longer maintained")

    state_dir: str = option("/run/vtorque", "the record of running jobs, on tmpfs", kind="path")
    disk_dir: str = option("/var/lib/vtorque/disks", "guests' overlays, on a local disk", kind="path")
    log_dir: str = option("/var/log/vtorque", "the log of hooks and services", kind="path")
    audit_log: str = option(
        "file", "where a line goes for each of root's acts: LOG_DIR/audit.log, syslog (authpriv)",
        choices=("file", "syslog", "both", "none"),
    )
    accounting_dir: str = option(
        "", "the phases of every job, a file a day, empty for LOG_DIR/accounting", kind="path"
    )
    accounting_days: int = option(400, "that files of ACCOUNTING_DIR are kept", unit="days", low=1, high=36500)
    prometheus_file: str = option(
        "", "metrics of this node for the node exporter's textfile collector, a name in .prom, empty for none",
        kind="path",
    )
    template_dir: str = option("/etc/vtorque/templates-vm", "the site's own templates, first", kind="path")
    vm_scripts_dir: str = option("", "root's own scripts for every guest, empty for none", kind="path")

    def __init__(self, **values: Any) -> None:
        if unknown := values.keys() - _DEFAULTS.keys():
            raise TypeError(f"not an option: {min(unknown)}")
        vars(self).update(_DEFAULTS | values)

    @classmethod
    def told(cls, values: Mapping[str, Any]) -> "SiteConfig":
        """The site whose values went through JSON."""
        return cls(**{name: tuple(each) if isinstance(each, list) else each for name, each in values.items()})

    def but(self, **changes: Any) -> "SiteConfig":
        """The same site with other values."""
        return SiteConfig(**vars(self) | changes)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} cannot be changed")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SiteConfig) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))


ALIASES = {"VM_IMAGE_DIR": "VM_IMG_DIR", "IMAGE_POOL_DIR": "VM_IMG_DIR"}
"""Other names the manual uses for the same option."""

OPTIONS = {name.upper(): each for name, each in vars(SiteConfig).items() if isinstance(each, Option)}
"""Every option by its name in the file."""

_DEFAULTS = {each.name: each.default for each in OPTIONS.values()}
