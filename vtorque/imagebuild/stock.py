# SPDX-License-Identifier: Apache-2.0
"""A Debian root as the distribution's own cloud image lays it out: what ours is compared with.

Packages and settings are those of Debian 12's `genericcloud` (debian-cloud-images, package_config/CLOUD and
SYSTEM_BOOT); cloud-init, its sources and its four units are as their packages leave them. Two things are added,
without which no job runs in it: an NFS client and the directories to mount on.
"""

from pathlib import Path

import sh

from vtorque.imagebuild.debian import Recipe, forget

ROOT_UUID = "7a1d1c0e-4b53-4c55-9f0a-9d1c1f6a5e21"
"""Of the root file system, by which GRUB and the initramfs find it."""

_FSTAB = f"UUID={ROOT_UUID} / ext4 rw,discard,errors=remount-ro,x-systemd.growfs 0 1\n"

RECIPE = Recipe(
    suite="bookworm",
    distro="debian",
    description="Debian 12 as its own cloud image has it, and an NFS client",
    packages=(
        # What every root of Debian's has (its priority `important`), and SYSTEM_BOOT.
        "linux-image-cloud-amd64", "initramfs-tools", "init", "systemd-sysv", "udev", "dbus", "libpam-systemd",
        "polkitd", "systemd-resolved", "libnss-myhostname", "netplan.io", "systemd-timesyncd", "unattended-upgrades",
        "apparmor", "apt-utils", "cron", "logrotate", "e2fsprogs", "iproute2", "iptables", "iputils-ping", "kmod",
        "less", "nano", "netbase", "procps", "sudo", "tzdata", "vim-tiny", "whiptail", "zstd",
        # CLOUD.
        "cloud-init", "cloud-guest-utils", "cloud-initramfs-growroot", "openssh-server", "ssh-import-id",
        # What guests of a job need besides.
        "nfs-common",
    ),
    cmdline=f"root=UUID={ROOT_UUID} ro console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200 consoleblank=0",
    own_initrd=True,
)


def tune(root: Path) -> None:
    """Make a freshly installed root nobody's yet; nothing else."""
    (root / "etc/fstab").write_text(_FSTAB)
    (root / "etc/hostname").write_text("localhost\n")
    (root / "etc/machine-id").write_text("")
    for name in ("workspace", "opt", "home"):
        (root / name).mkdir(exist_ok=True)
    sh.chroot(str(root), "systemctl", "--quiet", "enable", "systemd-networkd.service")
    sh.chroot(str(root), "passwd", "--quiet", "--lock", "root")
    forget(root)
