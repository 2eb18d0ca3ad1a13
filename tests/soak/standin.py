# SPDX-License-Identifier: Apache-2.0
"""Takes the place of `scripts/hook`: the real hooks, over guests that live on when a hook is killed."""

from pathlib import Path


def main(root: Path, argv: list[str]) -> int:
    """Be `scripts/hook` of the installation in the world at `root`."""
    from tests.bench import standin
    from tests.fakes.durable import DurableHypervisor
    from vtorque.cli import assembly, pelog

    standin._stand_in(root)
    vars(assembly)["Libvirt"] = lambda uri: DurableHypervisor(root / "domains")
    return pelog.main(argv)
