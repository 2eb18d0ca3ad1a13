# SPDX-License-Identifier: Apache-2.0
"""The tiny guest: for tests that need many guests, or fast ones. Not a product.

A Debian kernel and an initramfs; its disk is empty. It boots in seconds
without KVM and reads the seeds that real guests read.
"""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import sh

from vtorque import images
from vtorque.errors import ImageError, RequestError
from vtorque.imagebuild import kernel
from vtorque.model import Image

NAME = "tiny.qcow2"
KERNEL = "linux-image-cloud-amd64"
# Debian's kernel for clouds has no 9p.
NAME_9P = "tiny-9p.qcow2"
KERNEL_9P = "linux-image-amd64"
HERE = Path(__file__).parent
SOURCES = ("init.sh", "seed.awk", "systemctl.sh", "tiny.py")
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "isofs", "nfsv4", "virtiofs", "button", "evdev",
           "virtio_console", "pvpanic-mmio")
MODULES_9P = ("9p", "9pnet_virtio")
APPLETS = """
sh ash awk cat chmod chown cp cut date dd df echo env grep head hostname id insmod ip kill ln ls mkdir mknod mktemp
mount mv nproc od ping ps pwd rm sed setsid sleep sort stat stty sync tail tee test timeout touch tr tty true umount
uname uniq uptime wc whoami
""".split()  # noqa: SIM905
PROGRAMS = ("/usr/sbin/sshd", "/usr/bin/ssh", "/usr/sbin/mkfs.ext4")
CMDLINE = "console=ttyS0 quiet net.ifnames=0 random.trust_cpu=1 audit=0 cryptomgr.notests no_timer_check"

UDHCPC = """\
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/${mask:-24}" dev "$interface"
[ -z "$router" ] || ip route add default via "${router%% *}"
"""
# busybox leaves out what mount.nfs4 adds by itself.
MOUNT = """\
#!/bin/sh
[ "$2" = nfs4 ] || exec busybox mount "$@"
own=$(ip -4 -o addr show dev eth0 | awk '{ sub("/.*", "", $4); print $4 }')
exec busybox mount -t nfs4 -o "$4,addr=${5%%:*},clientaddr=$own" "$5" "$6"
"""
ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/bin/false\n",
    "shadow": "root:*:19000:0:99999:7:::\nsshd:*:19000:0:99999:7:::\n",
    "group": "root:x:0:\nnogroup:x:65534:\n",
    "udhcpc": UDHCPC,
    # sshd forwards windows only when it can call one; nobody here looks at a cookie.
    "xauth": "#!/bin/sh\n",
    "ssh/ssh_config": "Include /etc/ssh/ssh_config.d/*.conf\n",
    "ssh/sshd_config": "XAuthLocation /etc/xauth\nInclude /etc/ssh/sshd_config.d/*.conf\nUsePAM no\n",
}


def build(directory: Path) -> Image:
    """Put the tiny guest into the catalogue at `directory`, unless this very one is there."""
    return _built(directory, NAME, KERNEL, MODULES)


def build_9p(directory: Path) -> Image:
    """The tiny guest with a kernel that knows 9p."""
    return _built(directory, NAME_9P, KERNEL_9P, (*MODULES, *MODULES_9P))


def _built(directory: Path, name: str, package: str, modules: Sequence[str]) -> Image:
    sources = b"".join((HERE / name).read_bytes() for name in SOURCES)
    description = f"tiny guest of the tests, {hashlib.sha256(sources).hexdigest()[:16]}"
    try:
        present = images.find(directory, name)
    except (ImageError, RequestError):
        pass
    else:
        if present.description == description:
            return present
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tiny-", dir=directory) as scratch:
        entry = {"name": name, "distro": "debian", "arch": "x86_64", "description": description}
        return _build(directory, Path(scratch), entry, package, modules)


def _build(
    directory: Path, scratch: Path, entry: dict[str, str], package: str, modules: Sequence[str]
) -> Image:
    root = scratch / "kernel"
    sh.Command("apt-get")("update", "-qq")
    depends = str(sh.Command("apt-cache")("depends", package))
    newest = re.search(r"Depends: (linux-image-[0-9]\S+)", depends)
    assert newest is not None, "no kernel package is known"
    sh.Command("apt-get")("download", "-q", newest[1], _cwd=str(scratch), _err=lambda line: None)
    sh.Command("dpkg-deb")("-x", str(next(scratch.glob("*.deb"))), str(root))
    version = kernel.version(root)
    disk = scratch / entry["name"]
    vmlinux, initrd = disk.with_suffix(".vmlinux"), disk.with_suffix(".initrd")
    kernel.extract(root / "boot" / f"vmlinuz-{version}", vmlinux)
    tree = scratch / "tree"
    _populate(tree)
    kernel.copy_modules(root, version, modules, tree / "modules")
    kernel.archive(tree, initrd)
    sh.Command("qemu-img")("create", "-q", "-f", "qcow2", str(disk), "1M")
    entry |= {"kernel": vmlinux.name, "initrd": initrd.name, "cmdline": CMDLINE}
    return images.publish(directory, entry, {path.name: path for path in (disk, vmlinux, initrd)})


def _populate(tree: Path) -> None:
    for name in ("bin", "sbin", "dev", "proc", "sys", "run/sshd", "tmp", "root", "home", "modules", "etc/ssh",
                 "usr/bin", "usr/sbin", "usr/local/sbin", "var/spool", "var/empty", "lib64"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    (tree / "tmp").chmod(0o1777)
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    shutil.copy("/bin/bash-static", tree / "bin/bash")
    for applet in (*APPLETS, "udhcpc"):
        (tree / "bin" / applet).symlink_to("busybox")
    for program in PROGRAMS:
        shutil.copy(program, tree / program.lstrip("/"))
        for library in re.findall(r"(/lib\S+)", str(sh.ldd(program))):
            target = tree / library.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, target)
    for name, text in ETC.items():
        (tree / "etc" / name).write_text(text)
    for name in ("udhcpc", "xauth"):
        (tree / "etc" / name).chmod(0o755)
    (tree / "usr/local/sbin/mount").write_text(MOUNT)
    shutil.copy(HERE / "systemctl.sh", tree / "usr/local/sbin/systemctl")
    for name in ("mount", "systemctl"):
        (tree / "usr/local/sbin" / name).chmod(0o755)
    shutil.copy(HERE / "seed.awk", tree / "etc/seed.awk")
    shutil.copy(HERE / "init.sh", tree / "init")
    (tree / "init").chmod(0o755)
