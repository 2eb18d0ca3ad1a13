# SPDX-License-Identifier: Apache-2.0
"""Install, run a job, uninstall: run as `python3 -m tests.contract.installed SYSTEM OUT` in namespaces of its own.

In the bench's world, whose guests cost nothing, `vmgr install` links the real hooks into `/` of a mount
namespace. The job goes through them as its batch system calls them. OUT says what was there before and after.
"""

import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench import world
from tests.bench.world import JOB, UID, USER, World
from tests.builders import KEY, a_request
from vtorque import guestnames, request
from vtorque.model import job_id
from vtorque.mom.life import Life, Timing
from vtorque.mom.spool import Home, JobRecord

NAMESPACES = ("/usr/bin/unshare", "--mount", "--propagation", "private", "--net", "--pid", "--fork", "--kill-child",
              "--mount-proc")
SLURM_JOB = "7"
SITES_HOOK = '#!/bin/sh\necho "$0 $1" >>{log}\n'
WRAPPER = '#!/bin/sh\nexec {prefix}/scripts/jobrun {request_id} "$@"\n'
PBS_HOOK = """\
import sys
sys.dont_write_bytecode = True
from pathlib import Path
sys.path[:0] = [{prefix!r}, {repository!r}]
from tests.bench import standin
from vtorque.cli import pbshook
standin.stand_in(Path({root!r}), vars(pbshook), "_program")
sys.exit(pbshook.main())
"""
# What a job is meant to leave: what it wrote, what was logged, and where its and the mom's records were. Its guests
# share /etc/hosts with their node here.
OF_JOBS = ("job.o7", "job.e7", "log", "run", "disks", "images", "domains", "sites", "home", "out",
           "torque/mom_priv/jobs", "torque/mom_priv/loop.n1", "torque/server_priv")
Digest = dict[str, list[object]]


def main(system: str, out: Path) -> None:
    """Everything; and then one mode is changed, which has to be seen."""
    world.IMAGE_MIB = 1
    for place in ("/var/lib", "/usr/local/share"):
        subprocess.run(["/usr/bin/mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place], check=True)
    with world.world() as here:
        _prepare(here, system)
        before = _digest(here.root)
        _vmgr(here, "install", "--system", system)
        installed = _digest(here.root)
        said = SYSTEMS[system](here)
        _vmgr(here, "uninstall")
        after = _digest(here.root)
        (here.mom_priv / "epilogue").chmod(0o700)
        told = {"before": before, "installed": installed, "after": after, "weakened": _digest(here.root), "said": said,
                "domains": here.domains(), "sites": (here.root / "sites").read_text().splitlines()}
        out.write_text(json.dumps(told))


def _prepare(here: World, system: str) -> None:
    for path in here.mom_priv.iterdir():
        if path.is_symlink():
            path.unlink()
    Home(here.root / "torque").prepare()
    (here.root / "sites").touch()
    for name in ("prologue", "epilogue"):
        world._write(here.mom_priv / name, SITES_HOOK.format(log=here.root / "sites"), mode=0o755)
        world._write(Path(f"/etc/slurm/{name[:-2]}"), SITES_HOOK.format(log=here.root / "sites"), mode=0o755)
    world._write(Path("/etc/slurm/slurm.conf"), "ClusterName=x\nProlog=/etc/slurm/prolog\nEpilog=/etc/slurm/epilog\n")
    for name in ("contrib", "doc/man"):
        subprocess.run(["/usr/bin/cp", "-r", "--parents", name, here.prefix], cwd=world.REPOSITORY, check=True)
    settings = here.prefix / "etc/vtorque.yaml"
    settings.write_text(settings.read_text().replace("BATCH_SYSTEM: torque", f"BATCH_SYSTEM: {system}"))
    world._write(here.prefix / "scripts/pbs-hook", PBS_HOOK.format(
        prefix=str(here.prefix), repository=str(world.REPOSITORY), root=str(here.root)))
    if system == "slurm":
        world._write(here.root / "guests/127.0.1.1", f"ready {guestnames.guest_uuid(job_id(SLURM_JOB), 0)}\n")
    here.job_directory()


def _vmgr(here: World, *words: str) -> None:
    done = subprocess.run([sys.executable, "-I", here.prefix / "scripts/vmgr", *words],
                          capture_output=True, text=True, check=False, env=here.environ)
    assert done.returncode == 0, done.stderr


def _request() -> str:
    return request.encode(a_request(image="a.qcow2", vcpus=1, memory_mib=64, vms_per_node=1, public_key=KEY))


def _torque(here: World) -> str:
    """A whole life under the engine's mom."""
    mom = Home(here.root / "torque")
    script = mom.script(JOB)
    script.write_text(WRAPPER.format(prefix=here.prefix, request_id=a_request().request_id))
    script.chmod(0o700)
    os.chown(script, UID, UID)
    job = JobRecord(
        id=JOB, owner=USER, group=USER, uid=UID, gid=UID, groups=(UID,), home=str(here.home), login_shell="/bin/sh",
        name="job", directory=str(here.home), hosts=("n1",), resources={"nodes": "1", "other": _request()},
        output_path=str(here.home / "job.o7"), error_path=str(here.home / "job.e7"),
    )
    ended = Life(mom, mom.save(job), timing=Timing(kill_delay=0.2)).run()
    said = [(here.home / f"job.{letter}7").read_text() for letter in "oe"]
    return f"{ended.exit_status} {said[0]}{said[1]}"


def _slurm(here: World) -> str:
    """slurmd's calls, by what its configuration would name after the installation."""
    environ = {
        "SLURM_JOB_ID": SLURM_JOB, "SLURM_JOBID": SLURM_JOB, "SLURM_JOB_UID": str(UID), "SLURM_JOB_GID": str(UID),
        "SLURM_JOB_USER": USER, "SLURM_NODELIST": "n1", "SLURMD_NODENAME": "n1", "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_COMMENT": _request(), "SLURM_JOB_CPUS_PER_NODE": "1", "SLURM_CONF": "/etc/slurm/slurm.conf",
        "SLURM_JOB_RESTART_COUNT": "0", "SLURM_CLUSTER_NAME": "x",
    }

    def call(hook: str, **more: str) -> None:
        done = subprocess.run([f"/etc/slurm/vtorque/{hook}"], env=environ | more, check=False,
                              capture_output=True, text=True, stdin=subprocess.DEVNULL, start_new_session=True)
        assert done.returncode == 0, done.stderr

    call("prolog", SLURM_SCRIPT_CONTEXT="prolog_slurmd")
    said = _wrapper(here, {"SLURM_JOB_ID": SLURM_JOB, "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1",
                           "SLURM_NODELIST": "n1", "SLURM_NODEID": "0", "SLURMD_NODENAME": "n1"})
    call("epilog", SLURM_SCRIPT_CONTEXT="epilog_slurmd", SLURM_JOB_EXIT_CODE="0", SLURM_JOB_EXIT_CODE2="0:0")
    return said


def _openpbs(here: World) -> str:
    """The events of a job on one node, under what stands in for pbs_python."""
    hooks = here.mom_priv / "hooks/tmp"
    hooks.mkdir(parents=True)
    job = {"id": JOB, "user": USER, "resources": {"ncpus": 1, "site": _request()}, "exec_host": "n1/0",
           "exec_vnode": "(n1:ncpus=1)", "mother_superior": True, "exit_status": 0}

    def event(name: str) -> None:
        done = subprocess.run(
            [sys.executable, "-I", world.REPOSITORY / "tests/fakes/pbs_python.py",
             here.prefix / "contrib/openpbs/vtorque_hook.py"],
            input=json.dumps({"event": name, "node": "n1", "job": job}), capture_output=True, text=True, check=True,
            cwd=hooks, env={"PATH": "/bin:/usr/bin", "PBS_HOOK_CONFIG_FILE": "/etc/vtorque/openpbs-hook.json"},
        )
        outcome = json.loads(done.stdout)
        assert outcome["accepted"] and not outcome["log"], (outcome, done.stderr)

    (here.mom_priv.parent / "mom_priv/hooks/vtorque.HK").write_text("alarm=60\n")
    event("execjob_begin")
    event("execjob_launch")
    said = _wrapper(here, {"PBS_JOBID": JOB})
    event("execjob_end")
    for path in (here.mom_priv / "hooks/vtorque.HK", hooks, hooks.parent):
        path.unlink() if path.is_file() else path.rmdir()
    return said


def _wrapper(here: World, environ: dict[str, str]) -> str:
    """What the batch system runs as the user."""
    script = WRAPPER.format(prefix=here.prefix, request_id=a_request().request_id).splitlines()[1]
    done = subprocess.run(["/bin/sh", "-c", script], env=here.environ | environ, cwd=here.home, user=UID, group=UID,
                          extra_groups=[], capture_output=True, text=True, check=False)
    return f"{done.returncode} {done.stdout}{done.stderr}"


def _digest(root: Path) -> Digest:
    """All of every file and link that an installation could touch, but for what a job is meant to leave."""
    places = (root, Path("/etc"), Path("/usr/local/share"), Path("/var/lib/vtorque"))
    return dict(each for place in places for each in _digests(place, root))


def _digests(place: Path, root: Path) -> Iterator[tuple[str, list[object]]]:
    # The first hook makes the cache of images, where the configuration names no other.
    left = {str(root / name) for name in OF_JOBS} | {str(root / "etc"), "/etc/hosts", "/var/lib/vtorque/images"}
    for directory, folders, names in os.walk(place):
        folders[:] = [each for each in folders if f"{directory}/{each}" not in left and each != "__pycache__"]
        for path in (Path(directory, each) for each in (*folders, *names)):
            about = path.lstat()
            what: list[object] = [stat.filemode(about.st_mode), about.st_uid, about.st_gid]
            if str(path) in left:
                continue
            if path.is_symlink():
                what += [about.st_mtime_ns, str(path.readlink())]
            elif path.is_file():
                what += [about.st_mtime_ns, about.st_nlink, hashlib.sha256(path.read_bytes()).hexdigest()]
            yield str(path), what


SYSTEMS: dict[str, Callable[[World], str]] = {"torque": _torque, "slurm": _slurm, "openpbs": _openpbs}

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
