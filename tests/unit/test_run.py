# SPDX-License-Identifier: Apache-2.0
"""The wrapper's side: no marker, no run; and what goes along into the guest."""

import json
import os
import shlex
from pathlib import Path

import pytest

from tests.builders import KEY, a_plan, a_request
from vtorque import markers, published, run
from vtorque.backends.batch import front
from vtorque.errors import HypervisorError, RequestError, StateError
from vtorque.model import Guest
from vtorque.run import ExitStatus, NotStarted

ME = os.getuid()


def marker(job: str = "7.srv") -> dict[str, object]:
    plan = a_plan()
    peer = published.peer(Guest(vm=plan.vms[0], address="10.0.0.9", host_key=KEY))
    return {**markers.ready_marker(plan, [peer]), "job": job}


def put(path: Path, data: object) -> None:
    path.write_text(json.dumps(data))


def test_with_the_marker_the_job_knows_its_guest(tmp_path: Path) -> None:
    put(tmp_path / "ready", marker())
    guests = run.proven(tmp_path, "7.srv", owner=ME)
    assert guests.peers == (published.peer(Guest(vm=a_plan().vms[0], address="10.0.0.9", host_key=KEY)),)
    assert guests.environment["PBS_NODEFILE"] == "/var/spool/torque/aux/7.srv"
    assert guests.environment["PBS_NP"] == "2"


def test_without_a_marker_nothing_runs(tmp_path: Path) -> None:
    with pytest.raises(NotStarted, match="its prologue did not end") as refusal:
        run.proven(tmp_path, "7.srv", owner=ME)
    assert int(refusal.value.status) == 69


def test_the_reason_of_a_failure_is_the_users_to_read(tmp_path: Path) -> None:
    put(tmp_path / "failed", markers.failure_marker(RequestError("too much", hint="ask for less")))
    with pytest.raises(NotStarted, match=r"too much \(ask for less\)") as refusal:
        run.proven(tmp_path, "7.srv", owner=ME)
    assert int(refusal.value.status) == 65
    put(tmp_path / "failed", markers.failure_marker(HypervisorError("no")))
    with pytest.raises(NotStarted) as refusal:
        run.proven(tmp_path, "7.srv", owner=ME)
    assert refusal.value.status == ExitStatus.NO_GUEST


@pytest.mark.parametrize("change", [{"job": "8.srv"}, {"boot_id": "another boot"}])
def test_a_marker_of_another_job_or_boot_is_not_believed(tmp_path: Path, change: dict[str, str]) -> None:
    put(tmp_path / "ready", marker() | change)
    with pytest.raises(NotStarted):
        run.proven(tmp_path, "7.srv", owner=ME)


@pytest.mark.skipif(ME != 0, reason="only root can leave another's marker")
def test_a_marker_that_is_neither_roots_nor_the_programs_is_not_believed(tmp_path: Path) -> None:
    put(tmp_path / "ready", marker())
    for owner in (0, 8001):
        os.chown(tmp_path / "ready", owner, -1)
        assert run.proven(tmp_path, "7.srv", owner=8001).vcpus == 2
    os.chown(tmp_path / "ready", 8002, -1)
    with pytest.raises(StateError, match="belongs to uid 8002, not 8001"):
        run.proven(tmp_path, "7.srv", owner=8001)


def test_a_link_to_a_marker_is_not_believed(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", marker())
    (tmp_path / "ready").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError):
        run.proven(tmp_path, "7.srv", owner=ME)


def test_the_environment_is_the_batch_systems_and_what_the_user_sends(tmp_path: Path) -> None:
    put(tmp_path / "ready", marker())
    guest = run.proven(tmp_path, "7.srv", owner=ME)
    environ = {
        "PBS_JOBID": "7.srv", "PBS_NP": "99", "HOME": "/x", "DISPLAY": ":0", "MINE": "1", "OTHER": "2",
        "ENVIRONMENT": "BATCH",
    }
    sent = run.job_environment(environ, front.Torque().job_environment(environ), {"MINE", "ABSENT", "DISPLAY"}, guest)
    assert sent["PBS_JOBID"] == "7.srv" and sent["MINE"] == "1" and sent["ENVIRONMENT"] == "BATCH"
    assert sent["PBS_NP"] == "2", "the guest's own count wins"
    assert not {"HOME", "OTHER", "ABSENT", "DISPLAY"} & set(sent)


def test_the_order_counts_its_own_bytes_and_quotes_everything() -> None:
    values = {"A": "x y'\"\n$(id)`", "B": "caf\udce9", "BASH_FUNC_x%%": "() { :; }", "": "no"}
    text = run.order(environment=values, directory="/a b", shell="/bin/bash", command=["/s", "it's"], files={})
    size, _, rest = text.partition(b"\n")
    assert int(size) == len(rest)
    assert b"caf\xe9" in rest
    assert b"BASH_FUNC" not in rest
    assert rest.count(b"export ") == 2


def test_guests_are_told_of_one_another(tmp_path: Path) -> None:
    plan = a_plan(request=a_request(vms_per_node=2, vcpus=2))
    peers = [published.peer(Guest(vm=vm, address=f"10.0.0.{vm.rank + 1}", host_key=f"{KEY} root")) for vm in plan.vms]
    put(tmp_path / "ready", markers.ready_marker(plan, peers))
    files = run.furnishing(run.proven(tmp_path, "7.srv", owner=ME), "the key\n")
    assert files["/etc/hosts"].splitlines()[2:] == ["10.0.0.1 vn1-1", "10.0.0.2 vn1-2"]
    assert files["/var/spool/torque/aux/7.srv"] == "vn1-1\nvn1-1\nvn1-2\nvn1-2\n"
    assert files["/run/vtorque-job/known_hosts"].splitlines()[1] == f"vn1-2,10.0.0.2 {KEY}"
    text = run.order(environment={}, directory="/", shell="/bin/sh", command=[], files={"/a b": "it's\n"})
    assert shlex.split(text.partition(b"\n")[2].decode())[:3] == ["printf", "%s", "it's\n"]
