# SPDX-License-Identifier: Apache-2.0
"""What an OpenPBS mom has of our hook, and how much time she gives it."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from vtorque import doctor_checks as checks
from vtorque.config import SiteConfig
from vtorque.doctor_checks import Finding, error, ok, warning
from vtorque.model import PelogKind

HOOK = "vtorque"
"""What the hook is called, and mom's copy of it and of its settings with it: HOOK.PY, HOOK.HK."""

_DEFAULT_ALARM_SECONDS = 30
# What the hook keeps for itself, and its command.
_MARGIN_SECONDS = 15
_LIMIT = 1 << 20
_INSTALL = "vmgr install --system openpbs"
_CLASSIC = (PelogKind.PROLOGUE, PelogKind.EPILOGUE)
_IMPORT = 'qmgr -c "import hook vtorque application/x-python default {}"'


def hooks(site: SiteConfig, scripts: Path) -> Iterator[Finding]:
    """Mom has our hook, in this version, or at least our classic scripts."""
    mom_priv = Path(site.torque_home) / "mom_priv"
    ours = scripts.parent / "contrib" / "openpbs" / "vtorque_hook.py"
    copy = mom_priv / "hooks" / f"{HOOK}.PY"
    hint = _IMPORT.format(ours)
    if not mom_priv.is_dir():
        yield error("hooks", f"there is no {mom_priv}", "set TORQUE_HOME to PBS_HOME of /etc/pbs.conf")
    elif not copy.is_file():
        if _is_classic(mom_priv):
            yield from checks.hooks(mom_priv, scripts, install=f"{_INSTALL} --classic", kinds=_CLASSIC)
        else:
            yield error("hooks", f"mom has no hook {HOOK}, so no job gets guests", f"{_INSTALL}, also on the server")
    elif _read(copy) != _read(ours):
        yield warning("hooks", f"mom's hook {HOOK} is not that of this version", hint)
    else:
        yield ok("hooks", f"mom has the hook {HOOK} of this version")


def hook_time(site: SiteConfig) -> Iterator[Finding]:
    """Mom lets the hook run for as long as a guest may take to boot, and to be undone."""
    mom_priv = Path(site.torque_home) / "mom_priv"
    settings = mom_priv / "hooks" / f"{HOOK}.HK"
    if not settings.is_file():
        # Before there is a hook there is no time of its own, and $prologalarm would not be it.
        if _is_classic(mom_priv):
            yield from checks.hook_time(site, mom_priv)
        return
    alarms = re.findall(r"^alarm=([0-9]{1,6})$", _read(settings), re.MULTILINE | re.ASCII)
    has = int(alarms[-1]) if alarms else _DEFAULT_ALARM_SECONDS
    needs = site.timeout + site.undo_reserve
    text = f"mom kills the hook after {has} s, TIMEOUT and UNDO_RESERVE are {needs} s together"
    if has >= needs + _MARGIN_SECONDS:
        yield ok("time", text)
    else:
        yield warning("time", text, f'qmgr -c "set hook {HOOK} alarm = {needs + _MARGIN_SECONDS}"')


def _is_classic(mom_priv: Path) -> bool:
    """Whether mom runs our scripts as her own prologue and epilogue."""
    return any((mom_priv / kind).is_symlink() for kind in _CLASSIC)


def _read(path: Path) -> str:
    with contextlib.suppress(OSError), path.open(errors="replace") as file:
        return file.read(_LIMIT)
    return ""
