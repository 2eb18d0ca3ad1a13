# SPDX-License-Identifier: Apache-2.0
"""The whole life of a job under strace, and what it shows of root: run as `python3 -m tests.contract.footprint OUT`.

In the bench's world: the real hooks, guard and job wrapper over guests that cost nothing. With
`--weakened` the installation does everything that must not happen.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench import trace, world
from tests.bench.measure import Command
from tests.bench.world import JOB, UID, World
from vtorque.backends.transport import keys
from vtorque.deadline import Deadline

NAMESPACES = ("/usr/bin/unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
_SECONDS = 60.0
_SSH = f"{22:04X}"
# What takes a path, and what does something to a file behind a descriptor that strace names.
_CALLS = "%file,fchmod,fchown,fstat,ftruncate,getdents64,setresuid,setuid,fork,vfork,clone,clone3"
_BECOMES = re.compile(r"set(?:res)?uid\((?P<uid>[0-9]+)", re.ASCII)
_FORK = re.compile(r"(?:clone3?|v?fork)\(.* = (?P<pid>[0-9]+)$", re.ASCII)
_PROGRAM = re.compile(r'execve\("(?P<path>[^"]+)".* = 0$', re.ASCII)
_MADE = re.compile(r'"(?P<path>/(?:tmp|var/tmp|dev/shm)/[^"]+)"', re.ASCII)
_BEFORE = "from tests.bench import standin\n"
_TRACER = """\
import atexit, contextlib, inspect, os, threading
seen = set()
def note(frame, event, argument):
    code = frame.f_code
    # What is no function, a module or a class, was only loaded.
    ours = code.co_filename.startswith({prefix!r} + "/vtorque/")
    if ours and code.co_flags & inspect.CO_OPTIMIZED and os.geteuid() == 0:
        seen.add((code.co_filename, code.co_name))
threading.setprofile(note)
sys.setprofile(note)
def tell():
    with contextlib.suppress(PermissionError), open({root!r} + "/ran." + str(os.getpid()), "w") as file:
        file.write("\\n".join(map("|".join, seen)))
def end(status, leave=os._exit):
    # So ends a child that was forked; one that has become the user cannot tell, and has nothing to.
    tell()
    leave(status)
os._exit = end
atexit.register(tell)
"""
_WEAKER = (
    ("become.py", "        _become(identity, keeps)\n", ""),
    # It is to live long enough to tell.
    ("cli/rooted.py", "            _let_go(clerk[0])\n", "            pass\n"),
    ("monitor.py", "about.st_uid != self._program.uid", "False"),
    ("boot.py", "    with (\n        logs.about(job=plan.job.id, guest=vm.name),\n        _made(", """\
    log.info("%s", host.private)
    from vtorque import files, proc
    proc.run(["/bin/true", host.private], deadline=Deadline(60), env={"KEY": host.private})
    files.replace(Path("/tmp/vtorque.weakened"), b"", mode=0o600)
    files.forget(Path("/tmp/vtorque.weakened"))
    files.write_new(Path(node.site.state_dir, "left" + vm.name), host.private.encode(), mode=0o644)
    with (
        logs.about(job=plan.job.id, guest=vm.name),
        _made("""),
)


def main(out: Path, *, weakened: bool) -> None:
    world._SSHD = world._SSHD.replace("{root}/key.pub", "{root}/key.pub {root}/users.pub")
    world.IMAGE_MIB = 1
    with world.world() as here:
        _prepare(here, weakened=weakened)
        out.write_text(json.dumps(_life(here)))


def _prepare(here: World, *, weakened: bool) -> None:
    """The job's own key is not that of its guests here, so that each can be told from the other."""
    guest = here.root / "guest"
    told = f'*run-job*) echo "$SSH_CONNECTION" >>{here.home}/connections\n'
    guest.write_text(guest.read_text().replace("*run-job*)", told))
    hook = here.prefix / "scripts/hook"
    tracer = _TRACER.format(prefix=str(here.prefix), root=str(here.root))
    hook.write_text(hook.read_text().replace(_BEFORE, tracer + _BEFORE))
    here.job_directory()
    key = keys.make()
    (here.root / "users.pub").write_text(key.public)
    (path,) = here.home.glob(".vtorque/*/key")
    path.write_text(key.private)
    for name, what, instead in _WEAKER if weakened else ():
        module = here.prefix / "vtorque" / name
        text = module.read_text()
        assert text.count(what) == 1, f"{name} has changed"
        module.write_text(text.replace(what, instead))


def _life(here: World) -> dict[str, object]:
    secret = (here.root / "key").read_text().splitlines()[2].encode()
    logs = [here.root / f"strace.{number}" for number in range(3)]
    prologue = _start(here.hook("prologue", guests=2), logs[0])
    for _ in Deadline(_SECONDS).ticks(doing="waiting for the ready marker"):
        if prologue.poll() is not None or (here.root / "run/jobs" / JOB / "ready").exists():
            break
    held, ports = _holding(here, secret), _connected()
    wrapper = _start(here.wrapper(), logs[1]).wait(_SECONDS)
    epilogue = _start(here.hook("epilogue"), logs[2]).wait(_SECONDS)
    # strace ends with the last of what it follows: the guard.
    statuses = (prologue.wait(_SECONDS), wrapper, epilogue)
    users = (0, UID, 0)
    ran = [line.split("|") for path in here.root.glob("ran.*") for line in path.read_text().splitlines()]
    return {
        "statuses": statuses,
        "in_home": [line for log, user in zip(logs, users, strict=True) for line in _roots_in(log, here.home, user)],
        "executed": [line for log in logs for line in log.read_text().splitlines()
                     if "execve(" in line and secret.decode() in line],
        "programs": sorted({path for log, user in zip(logs, users, strict=True) for path in _programs(log, user)}),
        "in_public": [line for log in logs for _, line in _calls(log) if "O_CREAT" in line and _MADE.search(line)],
        "calls": sum(len(log.read_text().splitlines()) for log in logs),
        "before": ports, "jobs": [line.split() for line in (here.home / "connections").read_text().splitlines()],
        "held": held, "left": _holding(here, secret),
        "ran": sorted({(str(Path(file).relative_to(here.prefix / "vtorque")), name) for file, name in ran}),
        "audit": (here.root / "log/audit.log").read_text().splitlines(),
        "guests": here.domains(),
    }


def _connected() -> list[str]:
    """Our ends of the connections to guests, by the tables of the kernel: proc_pid_net(5)."""
    for _ in Deadline(_SECONDS).ticks(doing="waiting for the connection that is kept"):
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        if ports := [str(int(own[-4:], 16)) for _, own, to, state, *_ in lines if (to[-4:], state) == (_SSH, "01")]:
            break
    return ports


def _start(command: Command, log: Path) -> "subprocess.Popen[bytes]":
    log.touch()
    log.chmod(0o666)
    options = ["-f", "--seccomp-bpf", "-y", "-v", "-qq", "-s", "65536", "-e", f"trace={_CALLS}", "-e", "signal=none"]
    argv = ["/usr/bin/strace", *options, "-o", str(log), *map(str, command.argv)]
    return subprocess.Popen(
        argv, env=command.env, user=command.user, group=command.user, extra_groups=(), cwd="/",
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )


def _roots_in(log: Path, home: Path, user: int) -> Iterator[str]:
    """Calls of processes that are root with anything below the home in them."""
    for uid, text in _calls(log, user):
        if not text.startswith("execve(") and str(home) in text and uid == 0:
            yield text[:200]


def _programs(log: Path, user: int) -> Iterator[str]:
    """What root starts."""
    for uid, text in _calls(log, user):
        if uid == 0 and (match := _PROGRAM.match(text)):
            yield match["path"]


def _calls(log: Path, user: int = 0) -> Iterator[tuple[int, str]]:
    """All calls, with who makes them."""
    users: dict[str, int] = {}
    for pid, text in trace._whole(log.read_text().splitlines()):
        if match := _FORK.match(text):
            # The child may have become somebody else before its parent was told that there is one.
            users.setdefault(match["pid"], users.get(pid, user))
        elif match := _BECOMES.match(text):
            users[pid] = int(match["uid"])
        else:
            yield users.get(pid, user), text


def _holding(here: World, secret: bytes) -> dict[str, str]:
    """Files with the guests' key in them, and their modes; those of the bench itself left out."""
    own = (here.root / "key", *here.root.glob("strace.*"), *here.root.glob("images/*"))
    files = [path for path in here.root.rglob("*") if path.is_file() and not path.is_symlink() and path not in own]
    return {
        str(path.relative_to(here.root)): f"{path.stat().st_mode & 0o777:o}"
        for path in files if secret in path.read_bytes()
    }


if __name__ == "__main__":
    if "--inside" not in sys.argv:
        again = [sys.executable, "-m", "tests.contract.footprint", *sys.argv[1:], "--inside"]
        os.execv(NAMESPACES[0], [*NAMESPACES, *again])
    main(Path(sys.argv[1]), weakened="--weakened" in sys.argv)
