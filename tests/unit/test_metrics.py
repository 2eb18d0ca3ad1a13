# SPDX-License-Identifier: Apache-2.0
"""Metrics for Prometheus: counted right, valid by the exposition format, and nobody's name in them."""

import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest

from tests.builders import a_job, a_site
from tests.fakes.node import Here, a_monitor, a_node
from vtorque import audit, metrics, service
from vtorque.accounting import Journal
from vtorque.cli import assembly
from vtorque.cli.family import Family
from vtorque.deadline import Deadline
from vtorque.errors import AddressError, RequestError
from vtorque.model import Resource
from vtorque.netkeeper import NetKeeper
from vtorque.node import Node
from vtorque.state import JobState

# "Text-based format" of Prometheus's exposition formats, 0.0.4.
_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"'
_SAMPLE = re.compile(rf"({_NAME})(?:\{{((?:{_LABEL},?)*)\}})? (\S+)")
_COMMENT = re.compile(rf"# (?:HELP ({_NAME}) [^\n]+|TYPE ({_NAME}) (counter|gauge|histogram))")

Samples = dict[tuple[str, frozenset[str]], float]


def parse(text: str) -> Samples:
    """All samples, or AssertionError when Prometheus would refuse the text or misread it."""
    assert text.endswith("\n") and not text.endswith("\n\n")
    kinds: dict[str, str] = {}
    found: Samples = {}
    families: list[str] = []
    for line in text.splitlines():
        if comment := _COMMENT.fullmatch(line):
            if comment[3]:
                assert comment[2] not in kinds, f"two types of {comment[2]}"
                kinds[comment[2]] = comment[3]
            continue
        sample = _SAMPLE.fullmatch(line)
        assert sample, line
        name = sample[1]
        family = next((known for known in kinds if name in (known, *(f"{known}_{end}" for end in _ENDS))), None)
        assert family is not None, f"{name} has no type"
        assert (name == family) == (kinds[family] != "histogram"), name
        if not families or families[-1] != family:
            assert family not in families, f"the samples of {family} are not together"
            families.append(family)
        key = (name, frozenset(re.findall(_LABEL, sample[2] or "")))
        assert key not in found, f"{line} twice"
        found[key] = float(sample[3])
        assert kinds[family] != "counter" or (name.endswith("_total") and found[key] >= 0)
    _check_histograms(found, [name for name, kind in kinds.items() if kind == "histogram"])
    return found


_ENDS = ("bucket", "sum", "count")


def _check_histograms(found: Samples, names: list[str]) -> None:
    for name in names:
        series: dict[frozenset[str], dict[float, float]] = {}
        for (each, labels), value in found.items():
            if each == f"{name}_bucket":
                (bound,) = (label for label in labels if label.startswith("le="))
                series.setdefault(labels - {bound}, {})[float(bound[4:-1].replace("Inf", "inf"))] = value
        for rest, buckets in series.items():
            assert list(buckets) == sorted(buckets) and list(buckets.values()) == sorted(buckets.values())
            assert buckets[math.inf] == found[f"{name}_count", rest] and (f"{name}_sum", rest) in found


@pytest.mark.parametrize("text", [
    "a 1\n", "# TYPE a counter\na 1\n", "# TYPE a gauge\na{x=y} 1\n", "# TYPE a gauge\na 1", "# TYPE a gauge\na\n",
    '# TYPE a gauge\na{x="1"} 1\n# TYPE b gauge\nb 1\na{x="2"} 1\n', "# TYPE a gauge\na 1\na 2\n",
    '# TYPE a histogram\na_bucket{le="1.0"} 2\na_bucket{le="+Inf"} 1\na_sum 1\na_count 1\n',
    '# TYPE a histogram\na_bucket{le="+Inf"} 1\na_sum 1\na_count 2\n',
])
def test_the_parser_notices_what_prometheus_would_not_take(text: str) -> None:
    with pytest.raises((AssertionError, KeyError, ValueError)):
        parse(text)


def measured(root: Path, **site: Any) -> Node:
    return a_node(
        a_site(**{
            "state_dir": str(root / "run"), "image_cache_dir": str(root / "cache"), "ramdisk_dir": str(root / "none"),
            "prometheus_file": str(root / "vtorque.prom"), **site,
        }),
        journal=Journal(begun=0),
    )


def shown(root: Path) -> dict[str, float]:
    """Samples without labels, or with one."""
    return {
        f"{name}{''.join(sorted(labels))}": value
        for (name, labels), value in parse((root / "vtorque.prom").read_text()).items()
    }


def test_durations_are_counted_in_the_bucket_of_their_size_and_all_above() -> None:
    totals = metrics._read(Path("/nonexistent"))
    for seconds in (0.05, 0.06, 86400.0, 86401.0):
        metrics.count(totals, [], {"ready": seconds})
    found = parse(metrics.text(totals, {}))
    values = [found["vtorque_phase_seconds_bucket", frozenset(('phase="ready"', f'le="{bound}"'))]
              for bound in (*metrics.BUCKETS, "+Inf")]
    assert values == [1.0] + [2.0] * 12 + [3.0, 4.0]
    assert found["vtorque_phase_seconds_sum", frozenset(('phase="ready"',))] == 172801.11


def test_what_processes_have_noted_adds_up_over_their_files(tmp_path: Path) -> None:
    for error in (AddressError("a"), AddressError("b"), RequestError("c")):
        node = measured(tmp_path)
        node.journal.begin(a_job())
        node.journal.failed(error)
        metrics.publish(node)
    node.journal.note("swept")
    node.journal.note("lost")
    metrics.publish(node)
    metrics.publish(node)
    found = shown(tmp_path)
    assert found['vtorque_failures_totalblame="node"class="AddressError"'] == 2
    assert found['vtorque_failures_totalblame="user"class="RequestError"'] == 1
    assert (found["vtorque_orphans_swept_total"], found["vtorque_guests_lost_total"]) == (1, 1)
    assert found['vtorque_phase_seconds_countphase="begun"'] == 3
    assert (tmp_path / "vtorque.prom").stat().st_mode & 0o777 == 0o644


def test_a_failure_is_the_first_of_a_series_that_was_there_before(tmp_path: Path) -> None:
    metrics.publish(measured(tmp_path))
    found = shown(tmp_path)
    kinds = {name for name in found if name.startswith("vtorque_failures_total")}
    assert {found[name] for name in kinds} == {0}
    for kind, blame in (("AddressError", "node"), ("RequestError", "user"), ("InternalError", "bug"),
                        ("NodeFailed", "node")):
        assert f'vtorque_failures_totalblame="{blame}"class="{kind}"' in kinds


def test_a_node_that_has_taken_itself_out_says_so(tmp_path: Path) -> None:
    node = measured(tmp_path, disk_dir=str(tmp_path / "disks"))
    for change, value in ((lambda: None, 0), (lambda: service.take_out(node.site, "no disk"), 1),
                          (lambda: service.bring_back(node.site), 0)):
        change()
        metrics.publish(node)
        assert shown(tmp_path)["vtorque_node_out"] == value


def test_no_job_and_no_user_is_named(tmp_path: Path) -> None:
    node = measured(tmp_path)
    node.journal.begin(a_job(id="secretjob", user="secretuser"))
    node.journal.note("planned", facts={"image": "secretimage"})
    node.journal.failed(RequestError("secret reason"))
    metrics.publish(node)
    assert "secret" not in (tmp_path / "vtorque.prom").read_text()
    assert "secret" not in (tmp_path / "run/node/metrics.json").read_text()


def test_guests_and_caches_are_counted_as_they_are(tmp_path: Path) -> None:
    node = measured(tmp_path)
    for key, guests in (("7.srv", 2), ("8.srv", 1)):
        record = JobState(tmp_path / "run", key)
        record.create()
        for rank in range(guests):
            with record.taking(Resource(kind="domain", name=f"{key}_{rank}"), deadline=Deadline(5)):
                pass
        with record.taking(Resource(kind="file", name=f"/{key}"), deadline=Deadline(5)):
            pass
    record.given_back(Resource(kind="domain", name="8.srv_0"))
    (tmp_path / "cache").mkdir()
    image = tmp_path / "cache" / f"{'0' * 64}.qcow2"
    image.write_bytes(b"x" * 8192)
    metrics.publish(node)
    found = shown(tmp_path)
    assert found["vtorque_guests_running"] == 2
    assert found['vtorque_cache_bytescache="disk"'] == image.stat().st_blocks * 512
    assert found['vtorque_cache_bytescache="ramdisk"'] == 0


def test_a_ledger_that_is_damaged_hides_only_its_own_guests(tmp_path: Path) -> None:
    record = JobState(tmp_path / "run", "7.srv")
    record.create()
    (record.path / "ledger").write_text("damaged\n")
    metrics.publish(measured(tmp_path))
    assert shown(tmp_path)["vtorque_guests_running"] == 0


def test_without_the_option_nothing_is_written(tmp_path: Path) -> None:
    metrics.publish(measured(tmp_path, prometheus_file=""))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_one_line_in_the_log_and_no_count_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = measured(tmp_path, prometheus_file=str(tmp_path / "none/vtorque.prom"))
    node.journal.begin(a_job())
    metrics.publish(node)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    metrics.publish(measured(tmp_path))
    assert shown(tmp_path)['vtorque_phase_seconds_countphase="begun"'] == 1


def test_totals_that_are_damaged_fail_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run/node").mkdir(parents=True)
    (tmp_path / "run/node/metrics.json").write_text('{"schema": 1, "phases": 7}')
    node = measured(tmp_path)
    node.journal.begin(a_job())
    metrics.publish(node)
    assert "no metrics in" in caplog.text


@pytest.mark.parametrize("kept", [b"", b"[]", b"7", b"{", b'{"schema": 99}', b"\xff"])
def test_totals_that_are_none_begin_anew(tmp_path: Path, kept: bytes) -> None:
    (tmp_path / "run/node").mkdir(parents=True)
    (tmp_path / "run/node/metrics.json").write_bytes(kept)
    metrics.publish(measured(tmp_path))
    assert shown(tmp_path)["vtorque_orphans_swept_total"] == 0
    assert json.loads((tmp_path / "run/node/metrics.json").read_text())["schema"] == 1


def test_what_a_process_noted_is_shown_when_it_is_done_with_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root is in the same process here, and would be told what it writes.
    monkeypatch.setattr(audit, "forward", lambda tell: None)
    site = a_site(
        prometheus_file=str(tmp_path / "vtorque.prom"), state_dir=str(tmp_path / "run"), qemu_user="root",
        accounting_dir=str(tmp_path / "accounting"), bridge="lo",
    )
    others: Any = {"root": Here(a_monitor(site)), "network": Here(NetKeeper(lambda: site))}
    with assembly.node(site, Family(**others, speaker=None, planner=None, clerk=None)) as node:
        node.journal.begin(a_job())
        assert not (tmp_path / "vtorque.prom").exists()
    assert "vtorque_guests_running 0" in (tmp_path / "vtorque.prom").read_text()
