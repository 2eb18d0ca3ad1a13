# SPDX-License-Identifier: Apache-2.0
"""Which of the site's own scripts a guest gets, and what follows from that. Pure."""

from collections.abc import Mapping

from vtorque.model import VmPlan


def of_rank(scripts: Mapping[str, str], rank: int) -> dict[str, str]:
    """Those that the guest of this rank gets."""
    return {name: text for name, text in scripts.items() if name.endswith(".parallel") == (rank != 0)}


def ends_cleanly(vm: VmPlan, scripts: Mapping[str, str]) -> bool:
    """Whether a guest with these scripts has something to write or to run before it is destroyed."""
    return vm.disk_socket is not None or any(name.startswith("epilogue") for name in scripts)
