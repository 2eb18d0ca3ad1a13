# SPDX-License-Identifier: Apache-2.0
"""How keys and values are written: the words that manual, help and messages share."""

from vtorque.optionforms import FORMS

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
