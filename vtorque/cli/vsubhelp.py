# SPDX-License-Identifier: Apache-2.0
"""What `vsub --help` says: how to use it, and what this site offers."""

import sys
from pathlib import Path

from vtorque import __version__, config, images, limits, units, vmoptions
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
    sys.stdout.write(f"vtorque {__version__}\n")
    return 0


def show(prefix: Path) -> int:
    """Print the help, with the images and limits of this site."""
    sys.stdout.write(f"usage: {SYNOPSIS}\n\n")
    sys.stdout.write(
        "Submits a batch script that runs in virtual machines of its own. All options of\n"
        "qsub mean what they mean to qsub; without -vm, vsub is qsub.\n\n"
    )
    sys.stdout.write(f"{EXAMPLES}\nkeys of -vm:\n")
    sys.stdout.writelines(f"  {key:<16} {text}\n" for key, text in vmoptions.KEYS.items())
    sys.stdout.write(
        "\nA script may carry them as well: #PBS -vm vcpus=4 or, a comment to qsub, #VM vcpus=4.\n"
        f"Your own defaults: lines of key=value in ~/{vmoptions.USER_FILE}.\n\noptions of vsub:\n"
    )
    sys.stdout.writelines(f"  {option:<20} {text}\n" for option, text in OPTIONS.items())
    try:
        _site(config.load(config.find(prefix), trusted_owner=None))
    except VtorqueError as error:
        sys.stdout.write(f"\nthis site: {error.one_line()}\n")
    sys.stdout.write(f"\n{STATUSES}")
    return 0


def _site(site: SiteConfig) -> None:
    sys.stdout.write(
        f"\nthis site: img={site.img_default},vcpus={site.vcpus_default},ram={units.size(site.ram_default)},"
        f"vms_per_node={site.vms_per_node_default} if not given\n"
    )
    sys.stdout.writelines(f"  limit: {text}\n" for text in limits.described(site))
    directory = Path(site.vm_img_dir)
    for name in images.names(directory)[:_SHOWN_IMAGES]:
        sys.stdout.write(f"  image: {name:<26} {images.find(directory, name).description}\n")
