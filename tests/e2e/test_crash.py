# SPDX-License-Identifier: Apache-2.0
"""The prologue dies after every effect it has; one epilogue, and nothing is left.

Every ledger entry and every file of root's is made durable by one fsync, so
that is where it is killed: by the kernel, at the N-th one, for N = 1, 2, ...
until a run is not killed any more. Torque takes such a death for success and
starts the job: the wrapper must not run anything then.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Lab
from vtorque.lab import parts

pytestmark = pytest.mark.e2e

KILLER = """\
#!/bin/sh
exec /usr/bin/strace -D -f -qqq -o /dev/null -e trace=fsync -e inject=fsync:{moment}:when={number} \\
    {scripts}/prologue "$@"
"""
FEWEST_EFFECTS = 12
MOST_EFFECTS = 60


@pytest.fixture
def prologue(the_lab: Lab) -> Iterator[Path]:
    """mom_priv/prologue, to be replaced by a test."""
    path = the_lab.mom_priv / "prologue"
    path.unlink()
    yield path
    path.unlink()
    path.symlink_to(parts.PROGRAM / "scripts/prologue")


def test_killed_after_every_effect_one_epilogue_leaves_nothing(the_lab: Lab, prologue: Path) -> None:
    script = the_lab.write("job.sh", "#!/bin/bash\ncat /sys/class/dmi/id/product_uuid\n")
    for number in range(1, MOST_EFFECTS):
        prologue.write_text(
            KILLER.format(moment="signal=SIGKILL", number=number, scripts=parts.PROGRAM / "scripts")
        )
        prologue.chmod(0o755)
        ended = the_lab.ended(the_lab.submit(script))
        assert the_lab.leftovers() == [], f"killed at effect {number}"
        if ended.exit_status == 0:
            assert number > FEWEST_EFFECTS, "it was not killed at all"
            return
        assert ended.exit_status == 69, f"killed at effect {number}: {ended.err.decode()}"
        assert ended.out == b""
        *before, last = ended.err.decode().splitlines()
        assert last == "vtorque: no guest was started for this job: its prologue did not end"
        # So says root, where it is the program that was killed.
        assert before in ([], ["vtorque: the program ended with status -9"])
    pytest.fail("the prologue never came to its end")


@pytest.mark.parametrize("number", [2, 5, 9])
def test_a_state_disk_that_fails_is_reported_and_leaves_nothing(the_lab: Lab, prologue: Path, number: int) -> None:
    prologue.write_text(KILLER.format(moment="error=EIO", number=number, scripts=parts.PROGRAM / "scripts"))
    prologue.chmod(0o755)
    ended = the_lab.ended(the_lab.submit(the_lab.write("job.sh", "#!/bin/bash\necho ran\n")))
    assert ended.out == b""
    assert ended.exit_status == 69
