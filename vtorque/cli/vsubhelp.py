# SPDX-License-Identifier: Apache-2.0
"""What `vsub --help` says: how to use it, and what this site offers."""

from collections.abc import Iterator
from pathlib import Path

from vtorque import __version__, config, images, units, vmoptions
from vtorque.cli import vsub, wording
from vtorque.config import SiteConfig
from vtorque.errors import VtorqueError

SYNOPSIS = "vsub [qsub options] [-vm key=value[,key=value...]]... [script]"

EXAMPLES = """\
  vsub -vm img=debian-12.qcow2 job.sh             the image to boot, site defaults for the rest
  vsub -vm vcpus=4,ram=8G -l walltime=2:00:00 job.sh
  vsub -vm vms_per_node=2 -vm ram=1G job.sh       several -vm add up, the last of a key wins
  vsub -vm vcpus=auto -l nodes=1:ppn=8 job.sh     as many vCPUs as the job's cores leave
  echo hostname | vsub -vm img=debian-12.qcow2    a script on standard input
  vsub -I -vm img=debian-12.qcow2                 a shell in a guest
  vsub -t 1-10 -vm ram=2G job.sh                  a job array, each element with guests of its own
  vsub --wait -vm img=debian-12.qcow2 job.sh      follow the job, exit with its status
  vsub --explain -vm ram=2G job.sh                each value and where it comes from; submits nothing
  vsub --generate files -vm ram=2G job.sh         every file that would be made; submits nothing
"""

OPTIONS = {
    "-vm key=value,...": "what the job's guests are to be; makes it a job in guests",
    "--batch NAME": "torque, openpbs, slurm or local, for this call; without it the site's own",
    "--wait": "show a line for each phase, exit with the job's exit status",
    "--dry-run": "print the command that would submit, and the wrapper, submit nothing",
    "--explain": "print each value and where it comes from, submit nothing",
    "--generate DIR, -gf": "write all files of the job into DIR (vtorque-<script>), submit nothing",
    "--version": "print the version",
    "--help, -h alone": "print this; with anything else -h is qsub's hold",
}
"""vsub's own options, which qsub does not see."""

STATUSES = """\
exit status: qsub's own; 2 the command line or the request is wrong, 1 it could
not be submitted, 78 the site's configuration is wrong. A job that could not
run in a guest ends with 65 (refused), 69 (no guest), 70 (a bug), 76 (lost).
"""

_SHOWN_IMAGES = 20


def version() -> int:
    """Print the version."""
    vsub.show(f"vtorque {__version__}\n")
    return 0


def show(prefix: Path) -> int:
    """Print the help, with the images and limits of this site."""
    vsub.show("".join(_help(prefix)))
    return 0


def _help(prefix: Path) -> Iterator[str]:
    yield (
        f"usage: {SYNOPSIS}\n\n"
        "Submits a batch script that runs in virtual machines of its own. All options of\n"
        "qsub mean what they mean to qsub; without -vm, vsub is qsub.\n\n"
        f"{EXAMPLES}\nkeys of -vm:\n"
    )
    yield from (f"  {key:<16} {text}\n" for key, text in vmoptions.KEYS.items())
    yield (
        "\nA script may carry them as well: #PBS -vm vcpus=4 or, a comment to qsub, #VM vcpus=4.\n"
        f"Your own defaults: lines of key=value in ~/{vmoptions.USER_FILE}.\n\noptions of vsub:\n"
    )
    yield from (f"  {option:<20} {text}\n" for option, text in OPTIONS.items())
    try:
        yield from _site(config.load(config.find(prefix), trusted_owner=None))
    except VtorqueError as error:
        yield f"\nthis site: {error.one_line()}\n"
    yield f"\n{STATUSES}"


def _site(site: SiteConfig) -> Iterator[str]:
    yield (
        f"\nthis site: img={site.img_default},vcpus={site.vcpus_default},ram={units.size(site.ram_default)},"
        f"vms_per_node={site.vms_per_node_default} if not given\n"
    )
    yield from (f"  limit: {text}\n" for text in wording.limits(site))
    directory = Path(site.vm_img_dir)
    every = images.names(directory)
    for name in every[:_SHOWN_IMAGES]:
        try:
            about = images.find(directory, name).description
        except VtorqueError as error:
            about = error.one_line()
        yield f"  image: {name:<26} {about}\n"
    if len(every) > _SHOWN_IMAGES:
        yield f"  and {len(every) - _SHOWN_IMAGES} images more: vmgr show images\n"
