# SPDX-License-Identifier: Apache-2.0
"""A Debian root that is a correct cloud-init guest and boots fast.

Most of a stock guest's boot is four Python interpreters, one for each stage of
cloud-init, and units that a job's guest has no use for. Here all stages run in
one interpreter, in their own order, before sshd lets anybody in.
"""

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import sh

from vtorque.announcement import CHANNEL

_FILES = {
    "etc/cloud/cloud.cfg.d/90_vtorque.cfg": """\
datasource_list: [ NoCloud ]
datasource: { NoCloud: { fs_label: cidata } }
network: { config: disabled }
manage_etc_hosts: false
ssh_genkeytypes: [ ed25519 ]
ssh_quiet_keygen: true
no_ssh_fingerprints: true
ssh: { emit_keys_to_console: false }
# Unless a user asks for one: making it takes longer than all the rest.
locale: false
cloud_init_modules: [ bootcmd, write-files, growpart, resizefs, set_hostname, users-groups, ssh, mounts ]
cloud_config_modules: [ locale, timezone, ntp, set-passwords, runcmd ]
cloud_final_modules: [ package-update-upgrade-install, write-files-deferred, scripts-user, final-message ]
""",
    "etc/systemd/network/20-dhcp.network": """\
[Match]
Name=en* eth*

[Network]
DHCP=ipv4
LinkLocalAddressing=no
IPv6AcceptRA=no

[DHCPv4]
ClientIdentifier=mac
""",
    "etc/systemd/system/vtorque-cloud-init.service": """\
[Unit]
Description=cloud-init, all stages in one process
DefaultDependencies=no
After=systemd-networkd.service systemd-remount-fs.service
Wants=systemd-networkd.service
Before=ssh.service systemd-user-sessions.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/vtorque-cloud-init
StandardOutput=journal+console

[Install]
WantedBy=multi-user.target
""",
    "etc/systemd/system/vtorque-ready.service": f"""\
[Unit]
Description=Tell the host that sshd listens
After=ssh.service
ConditionPathExists=/dev/virtio-ports/{CHANNEL}

[Service]
# As long as nobody listens on the host, the write waits; nothing waits for it.
Type=simple
ExecStart=/bin/sh -c 'echo ready >/dev/virtio-ports/{CHANNEL}'

[Install]
WantedBy=multi-user.target
""",
    "etc/systemd/system/ssh.service.d/10-vtorque.conf": """\
[Service]
# The test of its own configuration costs sshd a second start.
ExecStartPre=
""",
    "etc/systemd/system/systemd-udev-trigger.service.d/10-vtorque.conf": """\
[Service]
# Of devices that need no driver and no rule of udev's there are hundreds, and each costs a start of its rules.
ExecStart=
ExecStart=-udevadm trigger --type=devices --action=add --prioritized-subsystem=block,net \\
    --subsystem-nomatch=tty --subsystem-nomatch=vc --subsystem-nomatch=cpu --subsystem-nomatch=memory \\
    --subsystem-nomatch=workqueue --subsystem-nomatch=bdi --subsystem-nomatch=clocksource \\
    --subsystem-nomatch=clockevents --subsystem-nomatch=machinecheck --subsystem-nomatch=event_source
""",
    "etc/systemd/journald.conf.d/10-vtorque.conf": "[Journal]\nStorage=volatile\n",
    "etc/fstab": "/dev/vda1 / ext4 rw,noatime 0 0\n",
    "etc/resolv.conf": "",
    "etc/machine-id": "",
    "etc/hostname": "guest\n",
}
_CLOUD_INIT = """\
#!/usr/bin/python3 -sS
# All stages of cloud-init in one interpreter, each as its own unit would run it.
import os
import sys

sys.path.append("/usr/lib/python3/dist-packages")
import yaml

# Validating what root rendered and checked costs more than all modules together.
sys.modules["jsonschema"] = None
# The same language, read by libyaml: the user-data holds whole programs, and each stage reads it anew.
yaml.SafeLoader = yaml.CSafeLoader
os.environ.setdefault("TZ", ":/etc/localtime")

from cloudinit.cmd import main

for stage in (["init", "--local"], ["init"], ["modules", "--mode=config"], ["modules", "--mode=final"]):
    try:
        main.main(["cloud-init", *stage])
    except SystemExit as end:
        print("cloud-init", *stage, "exits with", end.code)
"""
# What a stock guest starts and a job's guest does not need.
_MASKED = (
    "apt-daily-upgrade.timer", "apt-daily.timer", "auth-rpcgss-module.service", "cloud-config.service",
    "cloud-final.service", "cloud-init-hotplugd.service", "cloud-init-hotplugd.socket",
    "cloud-init-local.service", "cloud-init.service", "cloud-init.target", "dbus.service",
    "dbus.socket", "dev-hugepages.mount", "dev-mqueue.mount", "dpkg-db-backup.timer",
    "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "getty.target", "getty@tty1.service",
    "kmod-static-nodes.service", "ldconfig.service", "modprobe@configfs.service",
    "modprobe@dm_mod.service", "modprobe@drm.service", "modprobe@efi_pstore.service",
    "modprobe@fuse.service", "modprobe@loop.service", "nfs-blkmap.service", "nfs-client.target",
    "proc-sys-fs-binfmt_misc.automount", "remote-fs.target", "rpc-gssd.service", "rpc-statd.service",
    "rpc-svcgssd.service", "rpc_pipefs.target", "rpcbind.service", "rpcbind.socket",
    "run-rpc_pipefs.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "systemd-ask-password-console.path", "systemd-ask-password-wall.path", "systemd-binfmt.service",
    "systemd-firstboot.service", "systemd-fsck-root.service",
    "systemd-hwdb-update.service", "systemd-journal-catalog-update.service",
    "systemd-journal-flush.service", "systemd-logind.service", "systemd-machine-id-commit.service",
    "systemd-modules-load.service", "systemd-networkd-wait-online.service", "systemd-pcrphase-sysinit.service",
    "systemd-pcrphase.service", "systemd-pstore.service", "systemd-quotacheck.service",
    "systemd-random-seed.service", "systemd-repart.service", "systemd-sysusers.service", "systemd-update-done.service",
    "systemd-update-utmp-runlevel.service", "systemd-update-utmp.service",
)
# Programs that systemd starts at every boot, to find out about what a job's guest does not have.
_GENERATORS = (
    "cloud-init-generator", "rpc-pipefs-generator", "systemd-cryptsetup-generator", "systemd-getty-generator",
    "systemd-gpt-auto-generator", "systemd-hibernate-resume-generator", "systemd-integritysetup-generator",
    "systemd-system-update-generator", "systemd-veritysetup-generator",
)
# Started by cloud-init's module ntp, when the site names servers.
_DISABLED = ("systemd-timesyncd.service",)
_ENABLED = {
    "multi-user.target.wants": ("systemd-networkd.service", "vtorque-cloud-init.service", "vtorque-ready.service"),
    "sockets.target.wants": ("systemd-networkd.socket",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What an image is made of; `more` are packages that somebody asked for beyond the recipe's own.

    With `own_initrd` the distribution makes an initramfs that knows all hardware; else ours knows the root disk.
    """

    suite: str
    distro: str
    description: str
    packages: tuple[str, ...]
    cmdline: str
    own_initrd: bool = False
    more: tuple[str, ...] = ()


RECIPE = Recipe(
    suite="bookworm",
    distro="debian",
    description="Debian 12 with cloud-init, OpenSSH and an NFS client",
    packages=(
        "linux-image-cloud-amd64", "systemd-sysv", "udev", "dbus", "cloud-init", "openssh-server",
        "openssh-client", "nfs-common", "iproute2", "iputils-ping", "netbase", "kmod", "procps",
        "ca-certificates", "less", "xauth", "locales", "tzdata", "cloud-guest-utils", "systemd-timesyncd",
    ),
    cmdline=(
        "root=/dev/vda1 rw console=ttyS0 quiet net.ifnames=0 random.trust_cpu=1 audit=0 "
        "cryptomgr.notests no_timer_check"
    ),
)


def bootstrap(recipe: Recipe, root: Path) -> None:
    """Install the packages into the new directory `root`, from the mirrors this machine uses itself."""
    words = [
        # What the kernel package goes by (its postinst.d/initramfs-tools).
        *(() if recipe.own_initrd else ("INITRD=No",)), "mmdebstrap", "--variant=minbase", "--mode=root",
        "--aptopt=APT::Install-Recommends \"false\"", "--aptopt=Acquire::Languages \"none\"",
        "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        f"--include={','.join(recipe.packages + recipe.more)}",
        recipe.suite, str(root),
    ]
    sh.env(*words)


def tune(root: Path) -> None:
    """Make a freshly installed root a guest image: nobody's yet, and quick to become a job's."""
    for name, text in _FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
    program = root / "usr/local/sbin/vtorque-cloud-init"
    program.write_text(_CLOUD_INIT)
    program.chmod(0o755)
    units = root / "etc/systemd/system"
    for unit in _MASKED:
        _link(units / unit, "/dev/null")
    for name in _GENERATORS:
        _link(root / "etc/systemd/system-generators" / name, "/dev/null")
    for target, wanted in _ENABLED.items():
        for unit in wanted:
            home = "/etc" if (units / unit).exists() else "/lib"
            _link(units / target / unit, f"{home}/systemd/system/{unit}")
    sh.chroot(str(root), "systemctl", "--quiet", "disable", *_DISABLED)
    _link(units / "default.target", "/lib/systemd/system/multi-user.target")
    for name in ("workspace", "opt", "home"):
        (root / name).mkdir(exist_ok=True)
    sh.chroot(str(root), "passwd", "--quiet", "--lock", "root")
    # Compiled once here rather than at every boot into an overlay that is thrown away.
    compileall = ("python3", "-m", "compileall", "-q", "/usr/lib/python3/dist-packages")
    sh.chroot(str(root), *compileall, _ok_code=[0, 1])
    forget(root)


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def forget(root: Path) -> None:
    """Leave nothing in the image that ties it to this machine or to this build."""
    for pattern in ("etc/ssh/ssh_host_*", "var/lib/dbus/machine-id", "var/log/*.log", "var/log/apt/*",
                    "var/cache/apt/*.bin", "var/lib/systemd/random-seed"):
        for path in root.glob(pattern):
            path.unlink()
    for name in ("var/lib/cloud", "var/lib/apt/lists", "tmp"):
        for path in (root / name).glob("*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
