# SPDX-License-Identifier: Apache-2.0
"""What doctor says of an OpenPBS mom."""

from pathlib import Path

import pytest

from tests.builders import a_site
from vtorque import doctor_openpbs
from vtorque.doctor_checks import Finding, Level
from vtorque.options import SiteConfig

ROOT = Path(__file__).resolve().parents[2]
HOOK = ROOT / "contrib/openpbs/vtorque_hook.py"


@pytest.fixture
def site(tmp_path: Path) -> SiteConfig:
    (tmp_path / "mom_priv/hooks").mkdir(parents=True)
    return a_site(batch_system="openpbs", torque_home=str(tmp_path), timeout=120, undo_reserve=30)


def hooks(site: SiteConfig) -> Finding:
    (found,) = doctor_openpbs.hooks(site, ROOT / "scripts")
    return found


def hook_time(site: SiteConfig) -> Finding:
    (found,) = doctor_openpbs.hook_time(site)
    return found


def put(site: SiteConfig, name: str, text: str) -> None:
    (Path(site.torque_home) / "mom_priv" / name).write_text(text)


def test_a_home_that_is_not_moms_is_named(site: SiteConfig, tmp_path: Path) -> None:
    found = hooks(a_site(torque_home=str(tmp_path / "other")))
    assert found.level is Level.ERROR and "PBS_HOME" in found.hint


def test_without_a_hook_no_job_gets_guests(site: SiteConfig) -> None:
    assert hooks(site).level is Level.ERROR and "no hook vtorque" in hooks(site).text
    assert hooks(site).hint.startswith("vmgr install --system openpbs")
    put(site, "config", "")
    assert not list(doctor_openpbs.hook_time(site)), "$prologalarm is not the hook's time"


def test_the_hook_of_this_version_is_well(site: SiteConfig) -> None:
    put(site, "hooks/vtorque.PY", HOOK.read_text())
    assert hooks(site).level is Level.OK


def test_another_hook_is_to_be_imported_again(site: SiteConfig) -> None:
    put(site, "hooks/vtorque.PY", HOOK.read_text() + "\n")
    assert hooks(site).level is Level.WARNING and hooks(site).hint.endswith(f'default {HOOK}"')


def test_classic_scripts_are_looked_at_as_torques(site: SiteConfig, tmp_path: Path) -> None:
    (tmp_path / "mom_priv/prologue").symlink_to(tmp_path / "nowhere")
    dangling, missing = doctor_openpbs.hooks(site, ROOT / "scripts")
    assert missing.text.endswith("for success: epilogue")
    assert missing.hint == dangling.hint == "vmgr install --system openpbs --classic"


@pytest.mark.parametrize(
    ("settings", "level"),
    [("type=site\nalarm=165\n", Level.OK), ("alarm=164\n", Level.WARNING), ("type=site\n", Level.WARNING)],
)
def test_the_hook_needs_time_for_a_guest(site: SiteConfig, settings: str, level: Level) -> None:
    put(site, "hooks/vtorque.HK", settings)
    assert hook_time(site).level is level
    if level is Level.WARNING:
        assert hook_time(site).hint == 'qmgr -c "set hook vtorque alarm = 165"'


@pytest.mark.parametrize(("config", "level"), [("$prologalarm 300\n", Level.OK), ("", Level.WARNING)])
def test_classic_scripts_need_it_too(site: SiteConfig, config: str, level: Level) -> None:
    (Path(site.torque_home) / "mom_priv/prologue").symlink_to(ROOT / "scripts/prologue")
    put(site, "config", config)
    assert hook_time(site).level is level
