# SPDX-License-Identifier: Apache-2.0
"""The tiny server: takes jobs over a socket, runs them first come, first served, remembers them."""

import contextlib
import grp
import json
import os
import pwd
import selectors
import signal
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

from vtorque import files, proc
from vtorque.mom import arrays, nodes, wire
from vtorque.mom.bell import Bell
from vtorque.mom.life import hold_orders
from vtorque.mom.places import Places, Start
from vtorque.mom.rules import JOB_EXEC_FAIL2
from vtorque.mom.spool import Home, JobRecord

_REQUEST_LIMIT = 64 << 20
# Requests and lives that end are told of; nodes that come, go or are changed by hand are not.
_LONGEST_PAUSE_SECONDS = 1.0
_NO_SUCH_JOB, _NOT_YOURS, _BAD_NODES, _BAD_VALUE, _BAD_STATE = 153, 159, 190, 166, 170
_PRIVATE = frozenset(("variables", "home", "terminal"))


class Refused(Exception):
    """What a client asked for is not done: PBSE code and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Server:
    """One engine. Each job's life is a process of its own on its mother superior, made by `life_command`."""

    def __init__(self, home: Home, *, name: str, host: str, place: Places, life_command: Sequence[str]) -> None:
        self._home = home
        self._name = name
        self._host = host
        self._place = place
        self._command = tuple(life_command)
        self._lives: dict[str, proc.Child] = {}
        self._completed: set[str] = set()
        self._stop = False
        self._news = Bell()

    def serve(self, *, install: Callable[..., object]) -> None:
        """Until SIGTERM. `install` is signal.signal."""
        install(signal.SIGTERM, self._end)
        install(signal.SIGCHLD, lambda number, frame: self._news.ring())
        self._home.prepare()
        self._home.socket.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
            listener.bind(str(self._home.socket))
            # Anybody may ask; who asks is what the kernel says, never what the client says.
            self._home.socket.chmod(0o666)
            listener.listen(128)
            selector.register(listener, selectors.EVENT_READ)
            files.replace(self._home.pid_file, f"{os.getpid()}\n".encode(), mode=0o644)
            self._recover()
            selector.register(self._news, selectors.EVENT_READ)
            while not self._stop:
                for key, _ in selector.select(_LONGEST_PAUSE_SECONDS):
                    if key.fileobj is listener:
                        self._answer(listener)
                    else:
                        self._news.drain()
                self._advance()
        self._delete_all()
        for path in (self._home.socket, self._home.pid_file):
            path.unlink(missing_ok=True)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._stop = True
        self._news.ring()

    def _delete_all(self) -> None:
        """An engine that is stopped takes its jobs along, each through its own epilogue."""
        for life in self._lives.values():
            life.send_signal(signal.SIGTERM)
        for life in self._lives.values():
            life.wait()

    def _recover(self) -> None:
        for job in self._home.jobs():
            if job.state not in ("R", "E"):
                continue
            if self._place(job.hosts[0]).is_there:
                self._begin(job, "--recover")
            else:
                self._home.save(job, state="C", exit_status=JOB_EXEC_FAIL2, comment=f"{job.hosts[0]} is down")

    def _answer(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5.0)
            uid = wire.peer_uid(connection)
            with contextlib.suppress(OSError):
                try:
                    with connection.makefile("rb") as lines:
                        order = json.loads(lines.readline(_REQUEST_LIMIT))
                    answer = self._obey(order, uid)
                except Refused as refused:
                    answer = {"status": refused.status, "error": str(refused)}
                except (ValueError, KeyError, TypeError) as error:
                    answer = {"status": 1, "error": f"not a request: {error}"}
                connection.sendall(json.dumps(answer).encode() + b"\n")

    def _obey(self, order: dict[str, Any], uid: int) -> dict[str, Any]:
        match order["do"]:
            case "submit":
                return {"status": 0, "id": self._submit(order, uid)}
            case "stat":
                return {"status": 0, "jobs": [_public(job) for job in self._find(order.get("job"))]}
            case "delete":
                self._delete(order["job"], uid)
                return {"status": 0}
            case "release":
                self._release(order["job"], uid)
                return {"status": 0}
            case "rerun":
                self._rerun(order["job"], uid)
                return {"status": 0}
            case other:
                raise ValueError(other)

    def _submit(self, order: dict[str, Any], uid: int) -> str:
        array = arrays.parse(order["array"]) if order.get("array") else None
        if array and order.get("interactive"):
            raise Refused(1, "interactive job can not be job array")
        identity = self._home.next_id(self._name, array=array is not None)
        whole = self._record(order, uid, identity)
        number, _, server = identity.partition(".")
        for index in array.indices if array else ():
            # Torque gives an element everything of its array's, with its own number behind (job_clone).
            self._queue(order["script"], replace(
                whole, id=f"{number[:-1]}{index}].{server}", name=f"{whole.name}-{index}",
                output_path=f"{whole.output_path}-{index}", error_path=f"{whole.error_path}-{index}",
                array_index=index, slot_limit=array.limit if array else 0,
            ))
        if array is None:
            self._queue(order["script"], whole)
        return identity

    def _record(self, order: dict[str, Any], uid: int, identity: str) -> JobRecord:
        user = pwd.getpwuid(uid)
        directory, name = str(order["directory"]), str(order["name"])
        sequence = identity.partition(".")[0].removesuffix("[]")
        output, error = (
            _path(str(order[each]), directory, f"{name}.{each[0]}{sequence}") for each in ("output", "error")
        )
        job = JobRecord(
            id=identity, owner=user.pw_name, group=grp.getgrgid(user.pw_gid).gr_name, uid=uid,
            gid=user.pw_gid, groups=tuple(os.getgrouplist(user.pw_name, user.pw_gid)),
            home=user.pw_dir, login_shell=user.pw_shell or "/bin/sh", name=name, directory=directory,
            resources=order["resources"],
            variables={str(key): str(value) for key, value in order["variables"].items()},
            queue=order["queue"], account=order["account"], shell=order["shell"],
            arguments=order["arguments"], work_directory=order["work_directory"], join=order["join"],
            output_path=error if order["join"] == "eo" else output,
            error_path=output if order["join"] == "oe" else error,
            state="H" if order.get("hold") else "Q", interactive=bool(order.get("interactive")),
            terminal=str(order.get("terminal", "")), command=str(order.get("command", "")),
        )
        if self._choose(job, hosts := self._hosts()) is None:
            known = ", ".join(f"{host} np={slots}" for host, slots in hosts.items())
            raise Refused(_BAD_NODES, f"cannot locate feasible nodes: this engine has {known}")
        try:
            _ = job.walltime
        except ValueError as wrong:
            raise Refused(_BAD_VALUE, f"Illegal attribute or resource value: walltime: {wrong}") from None
        return job

    def _queue(self, text: str, job: JobRecord) -> None:
        script = self._home.queued_script(job.id)
        files.write_new(script, text.encode("latin-1"), mode=0o700)
        files.give(script, uid=job.uid, gid=job.gid)
        self._home.save(job)

    def _hosts(self) -> dict[str, int]:
        """Hosts and their slots: `server_priv/nodes`, else this machine with its processors."""
        file = self._home.path / "server_priv" / "nodes"
        return nodes.read(file, otherwise={self._host: os.cpu_count() or 1})

    @staticmethod
    def _choose(job: JobRecord, free: Mapping[str, int]) -> tuple[str, ...] | None:
        try:
            return nodes.choose(nodes.parse(str(job.resources.get("nodes", "1")), most=len(free)), free)
        except ValueError:
            return None

    def _find(self, job: str | None) -> list[JobRecord]:
        found = [each for each in self._home.jobs() if job is None or job in each.names]
        if job is not None and not found:
            raise Refused(_NO_SUCH_JOB, f"Unknown Job Id {job}")
        return found

    def _own(self, name: str, uid: int) -> list[JobRecord]:
        """The jobs of that name, which must be the user's."""
        jobs = self._find(name)
        if uid not in (0, jobs[0].uid):
            raise Refused(_NOT_YOURS, f"Unauthorized Request {name}")
        return jobs

    def _delete(self, name: str, uid: int) -> None:
        jobs = [job for job in self._own(name, uid) if job.state != "C"]
        if not jobs:
            raise Refused(_NO_SUCH_JOB, f"Request invalid for state of job {name}")
        for job in jobs:
            if job.id in self._lives:
                self._lives[job.id].send_signal(signal.SIGTERM)
            else:
                self._home.queued_script(job.id).unlink(missing_ok=True)
                self._home.save(job, state="C", exit_status=0, comment="deleted")

    def _release(self, name: str, uid: int) -> None:
        """Let held jobs go."""
        for job in self._own(name, uid):
            if job.state == "H":
                self._home.save(job, state="Q")

    def _rerun(self, name: str, uid: int) -> None:
        """Have running jobs ended and started anew; as in Torque that is for its managers (req_rerun.c)."""
        jobs = self._find(name)
        if uid != 0:
            raise Refused(_NOT_YOURS, f"Unauthorized Request {name}")
        running = [job for job in jobs if job.state == "R" and job.session and not job.interactive]
        if not running:
            raise Refused(_BAD_STATE, f"Request invalid for state of job {name}")
        for job in running:
            self._lives[job.id].send_signal(signal.SIGUSR1)

    def _advance(self) -> None:
        """Bury the dead, then start what fits, in the order of submission."""
        for name in [name for name, life in self._lives.items() if life.poll() is not None]:
            del self._lives[name]
        jobs = self._home.jobs(without=self._completed)
        self._completed.update(job.id for job in jobs if job.state == "C")
        running = [job for job in jobs if job.id in self._lives]
        used = Counter(host for job in running for host in job.hosts)
        free = {host: slots - used[host] for host, slots in self._hosts().items() if self._place(host).is_there}
        busy = Counter(job.array for job in running)
        for job in jobs:
            if job.state != "Q" or job.id in self._lives:
                continue
            # What its own array's limit keeps back keeps nobody else back.
            if job.slot_limit and busy[job.array] >= job.slot_limit:
                continue
            if (chosen := self._choose(job, free)) is None:
                return
            for host in chosen:
                free[host] -= 1
            busy[job.array] += 1
            self._start(self._home.save(job, hosts=chosen))

    def _start(self, job: JobRecord) -> None:
        """The mother superior gets the script; on the sisters there is none."""
        # It has been moved when the engine died right here.
        with contextlib.suppress(FileNotFoundError):
            self._home.queued_script(job.id).rename(self._place(job.hosts[0]).script(job.id))
        self._begin(job)

    def _begin(self, job: JobRecord, *more: str) -> None:
        root = proc.Identity(uid=0, gid=0, groups=(0,))
        command = Start(argv=[*self._command, job.id, *more], cwd=Path("/"), identity=root)
        start = self._place(job.hosts[0]).start(command)
        self._lives[job.id] = proc.spawn(
            start.argv, cwd=start.cwd, stdin=proc.DEVNULL, stdout=proc.DEVNULL, stderr=proc.DEVNULL,
            env=proc.CLEAN_ENV, umask=0o022, before_exec=hold_orders,
        )


def _public(job: JobRecord) -> dict[str, Any]:
    """What qstat shows to everybody."""
    return {key: value for key, value in asdict(job).items() if key not in _PRIVATE}


def _path(path: str, directory: str, name: str) -> str:
    """Where an output goes: into the directory when nothing is said, or a directory."""
    if not path:
        return f"{directory}/{name}"
    return f"{path}{name}" if path.endswith("/") else path
