# SPDX-License-Identifier: Apache-2.0
"""A job that another version began: an older one's is torn down, a newer one's as far as it is understood.

`tests/frozen/state-1` is a state directory as the first version left it, which wrote no schemas.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.builders import a_job, a_shape, a_site
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.node import a_node
from tests.unit.test_teardown import soon, started
from vtorque import admission, observe, run
from vtorque.errors import RequestError, StateError
from vtorque.model import JobId, Resource
from vtorque.run import NotStarted
from vtorque.state import SCHEMA, JobState, attempt
from vtorque.submit import JobFile
from vtorque.teardown import release

FROZEN = Path(__file__).resolve().parents[1] / "frozen" / "state-1"
NEWER = '["back", "schema", "2"]\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The first version's state, with its guest's files below a directory of ours, and this boot's id."""
    path = tmp_path / "state"
    shutil.copytree(FROZEN, path)
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    for name in ("ledger", "ready"):
        file = path / "jobs/7.srv" / name
        text = file.read_text().replace("/frozen/disks", str(tmp_path / "disks"))
        text = text.replace("/frozen/seeds", str(path / "seeds"))
        if name == "ready":
            text = json.dumps({**json.loads(text), "boot_id": boot_id})
        file.write_text(text)
    for name in ("disks/7.srv/7.srv_1of1.qcow2", "disks/7.srv/7.srv_1of1.console", "state/seeds/7.srv_1of1.iso"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return path


@pytest.fixture
def hypervisor() -> FakeHypervisor:
    found = FakeHypervisor()
    started(found, "7.srv_1of1")
    return found


def add(root: Path, *lines: str) -> None:
    with (root / "jobs/7.srv/ledger").open("a") as ledger:
        ledger.writelines(lines)


def end(root: Path, hypervisor: FakeHypervisor) -> None:
    site = a_site(state_dir=str(root), disk_dir=str(root.parent / "disks"), ramdisk_dir=str(root.parent / "none"))
    release(JobState(root, "7.srv"), a_node(site, hypervisor=hypervisor), deadline=soon())


def nothing_is_left(root: Path, hypervisor: FakeHypervisor) -> bool:
    return not [*root.parent.glob("disks/*"), *root.glob("seeds/*")] and not hypervisor.domains(deadline=soon())


def test_a_job_that_the_first_version_began_is_torn_down_whole(root: Path, hypervisor: FakeHypervisor) -> None:
    end(root, hypervisor)
    assert nothing_is_left(root, hypervisor)
    assert not list((root / "jobs").iterdir()) and not list((root / "admission").iterdir())


def test_the_first_versions_records_are_read(root: Path) -> None:
    (job,) = observe.all_jobs(root, owner=root.stat().st_uid)
    assert (job.id, job.user, job.ready is not None) == ("7.srv", "ann", True)
    assert run.proven(root / "jobs/7.srv", "7.srv", owner=root.stat().st_uid).vcpus == 2
    assert attempt(root, a_job(id=JobId("8.srv"))) == 3
    assert attempt(root, a_job(id=JobId("8.srv"))) == 4


def test_what_is_written_now_says_its_schema_and_the_first_version_reads_past_it(tmp_path: Path) -> None:
    record = JobState(tmp_path, "7.srv")
    record.create()
    record.save_plan({"vms": []})
    attempt(tmp_path, a_job())
    # That version knew three verbs, and "back" of what was never taken changed nothing.
    schema, *others = map(json.loads, (record.path / "ledger").read_text().splitlines())
    assert schema == ["back", "schema", str(SCHEMA)] and {verb for verb, _, _ in others} == {"back"}
    for path in (record.path / "plan.json", *(tmp_path / "attempts").iterdir()):
        assert json.loads(path.read_text())["schema"] == SCHEMA
    assert record.held() == []


def test_nothing_is_begun_for_a_job_of_a_newer_version(root: Path) -> None:
    add(root, NEWER)
    record = JobState(root, "7.srv")
    with pytest.raises(StateError, match=r"job 7\.srv was begun by a newer version of vtorque") as caught, \
            record.taking(Resource(kind="file", name="/x"), deadline=soon()):
        pytest.fail("it was begun")
    assert caught.value.hint == f"it wrote schema 2, this one knows {SCHEMA}"


def test_a_newer_versions_job_is_torn_down_when_all_of_it_is_understood(
    root: Path, hypervisor: FakeHypervisor
) -> None:
    add(root, NEWER)
    end(root, hypervisor)
    assert nothing_is_left(root, hypervisor) and not list((root / "jobs").iterdir())


@pytest.mark.parametrize(
    "line", ['["lease", "7"]\n', '{"take": "moon"}\n', "binary\n", '["took", "file", "/x"]\n', "5\n"]
)
def test_of_a_newer_versions_job_all_that_is_understood_is_given_back_and_the_rest_named(
    root: Path, hypervisor: FakeHypervisor, line: str
) -> None:
    add(root, NEWER, line)
    for _ in range(2):
        with pytest.raises(StateError, match="1 lines of its ledger are a newer version's"):
            end(root, hypervisor)
        assert nothing_is_left(root, hypervisor)
    assert (root / "jobs/7.srv/ledger").exists()


def test_a_kind_of_a_newer_version_stays_in_the_ledger_and_all_else_is_given_back(
    root: Path, hypervisor: FakeHypervisor
) -> None:
    add(root, NEWER, '["take", "lease", "10.0.0.5"]\n')
    with pytest.raises(StateError, match=r"could not give back lease 10\.0\.0\.5"):
        end(root, hypervisor)
    assert nothing_is_left(root, hypervisor)


def test_a_line_of_our_own_that_is_damaged_is_named(root: Path) -> None:
    add(root, '["take", "file"]\n')
    with pytest.raises(StateError, match=r"the ledger of job 7\.srv is damaged"):
        JobState(root, "7.srv").held()


def test_a_newer_marker_promise_plan_and_job_file_are_refused_with_both_numbers(root: Path) -> None:
    owner = root.stat().st_uid
    for path in (root / "jobs/7.srv/ready", root / "jobs/7.srv/plan.json", root / "admission/7.srv.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 2}))
    with pytest.raises(StateError, match="with schema 2") as caught:
        run.proven(root / "jobs/7.srv", "7.srv", owner=owner)
    assert "this one knows 1" in caught.value.hint and not isinstance(caught.value, NotStarted)
    with pytest.raises(StateError, match="with schema 2") as caught:
        admission.reserve(root, "8.srv", a_shape(), lambda shape: pytest.fail("planned"), deadline=soon())
    assert "this one knows 1" in caught.value.hint
    (job,) = observe.all_jobs(root, owner=owner)
    assert job.plan == {}


def test_a_job_file_is_read_without_a_schema_and_refused_with_a_newer_one() -> None:
    kinds: dict[str, Any] = {"exported": (), "x11": False, "elements": 1}
    about = JobFile(**{name: kinds.get(name, "x") for name in JobFile._fields})
    data = json.loads(about.text())
    assert data.pop("schema") == 1
    assert JobFile.parse(json.dumps(data).encode()) == JobFile.parse(about.text()) == about
    with pytest.raises(RequestError, match="with schema 2"):
        JobFile.parse(json.dumps({**data, "schema": 2}).encode())
    for nothing in (b"", bytes(64), about.text()[:-1]):
        with pytest.raises(RequestError, match="damaged"):
            JobFile.parse(nothing)
