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
import struct
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vtorque import files, proc
from vtorque.mom.spool import Home, JobRecord

_REQUEST_LIMIT = 64 << 20
_TICK_SECONDS = 0.1
_CREDENTIALS = struct.Struct("=iii")
_NO_SUCH_JOB, _NOT_YOURS, _BAD_NODES = 153, 159, 190


class Refused(Exception):
    """What a client asked for is not done: PBSE code and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Server:
    """One engine. Each job's life is a process of its own, made by `life_command`."""

    def __init__(self, home: Home, *, name: str, host: str, life_command: Sequence[str]) -> None:
        self._home = home
        self._name = name
        self._host = host
        self._command = tuple(life_command)
        self._lives: dict[str, proc.Child] = {}
        self._stop = False

    def serve(self, *, install: Callable[..., object]) -> None:
        """Until SIGTERM. `install` is signal.signal."""
        install(signal.SIGTERM, lambda number, frame: setattr(self, "_stop", True))
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
            while not self._stop:
                if selector.select(_TICK_SECONDS):
                    self._answer(listener)
                self._advance()
        self._delete_all()
        for path in (self._home.socket, self._home.pid_file):
            path.unlink(missing_ok=True)

    def _delete_all(self) -> None:
        """An engine that is stopped takes its jobs along, each through its own epilogue."""
        for life in self._lives.values():
            life.send_signal(signal.SIGTERM)
        for life in self._lives.values():
            life.wait()

    def _recover(self) -> None:
        for job in self._home.jobs():
            if job.state in ("R", "E"):
                self._begin(job, "--recover")

    def _answer(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5.0)
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            _, uid, _ = _CREDENTIALS.unpack(peer)
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
            case other:
                raise ValueError(other)

    def _submit(self, order: dict[str, Any], uid: int) -> str:
        user = pwd.getpwuid(uid)
        hosts = self._hosts(str(order["resources"].get("nodes", "1")))
        identity = self._home.next_id(self._name)
        directory = str(order["directory"])
        name = str(order["name"])
        prefix = f"{directory}/{name}"
        sequence = identity.partition(".")[0]
        variables = {str(key): str(value) for key, value in order["variables"].items()}
        job = JobRecord(
            id=identity, owner=user.pw_name, group=grp.getgrgid(user.pw_gid).gr_name, uid=uid,
            gid=user.pw_gid, groups=tuple(os.getgrouplist(user.pw_name, user.pw_gid)),
            home=user.pw_dir, login_shell=user.pw_shell or "/bin/sh", name=name, directory=directory,
            hosts=hosts, resources=order["resources"], variables=variables,
            queue=order["queue"], account=order["account"], shell=order["shell"],
            arguments=order["arguments"], work_directory=order["work_directory"], join=order["join"],
            output_path=order["output"] or f"{prefix}.o{sequence}",
            error_path=order["error"] or f"{prefix}.e{sequence}",
        )
        script = self._home.script(job.id)
        files.write_new(script, order["script"].encode("latin-1"), mode=0o700)
        files.give(script, uid=uid, gid=user.pw_gid)
        self._home.save(job)
        return identity

    def _hosts(self, nodes: str) -> tuple[str, ...]:
        """One host for every slot; this machine is every node."""
        head, _, rest = nodes.partition(":")
        ppn = next((part[4:] for part in rest.split(":") if part.startswith("ppn=")), "1")
        if head not in ("1", self._host) or not ppn.isdecimal() or int(ppn) < 1:
            raise Refused(_BAD_NODES, f"cannot locate feasible nodes: this engine has one node, {self._host}")
        if int(ppn) > self._slots():
            raise Refused(_BAD_NODES, f"cannot locate feasible nodes: {self._host} has np={self._slots()}")
        return (self._host,) * int(ppn)

    def _slots(self) -> int:
        """np= of this machine in `server_priv/nodes`, else its processors."""
        with contextlib.suppress(OSError):
            for word in (self._home.path / "server_priv" / "nodes").read_text().split():
                if word.startswith("np=") and word[3:].isdecimal():
                    return int(word[3:])
        return os.cpu_count() or 1

    def _find(self, job: str | None) -> list[JobRecord]:
        found = [each for each in self._home.jobs() if job in (None, each.id, each.sequence)]
        if job is not None and not found:
            raise Refused(_NO_SUCH_JOB, f"Unknown Job Id {job}")
        return found

    def _delete(self, name: str, uid: int) -> None:
        job = self._find(name)[0]
        if uid not in (0, job.uid):
            raise Refused(_NOT_YOURS, f"Unauthorized Request {job.id}")
        if job.state == "Q" and job.id not in self._lives:
            self._home.script(job.id).unlink(missing_ok=True)
            self._home.save(job, state="C", exit_status=0, comment="deleted")
        elif job.id in self._lives:
            self._lives[job.id].send_signal(signal.SIGTERM)
        else:
            raise Refused(_NO_SUCH_JOB, f"Request invalid for state of job {job.id}")

    def _advance(self) -> None:
        """Bury the dead, then start what fits, in the order of submission."""
        ended = [name for name, life in self._lives.items() if life.poll() is not None]
        for name in ended:
            del self._lives[name]
        jobs = self._home.jobs()
        free = self._slots() - sum(job.slots for job in jobs if job.id in self._lives)
        for job in jobs:
            if job.state == "Q" and job.id not in self._lives:
                if job.slots > free:
                    return
                free -= job.slots
                self._begin(job)

    def _begin(self, job: JobRecord, *more: str) -> None:
        self._lives[job.id] = proc.spawn(
            [*self._command, job.id, *more],
            stdin=proc.DEVNULL, stdout=proc.DEVNULL, stderr=proc.DEVNULL,
            env=proc.CLEAN_ENV, cwd=Path("/"), umask=0o022,
        )


def _public(job: JobRecord) -> dict[str, Any]:
    """What qstat shows to everybody."""
    return {key: value for key, value in asdict(job).items() if key not in ("variables", "home")}
