# SPDX-License-Identifier: Apache-2.0
"""A real Open MPI over the guests of a job: nothing but `mpirun`, as a user would write it."""

import pytest

from tests.e2e.conftest import Lab
from vtorque import guestnames

pytestmark = pytest.mark.e2e

# Only a guest itself knows its number, and only MPI carries it to the others.
NUMBER = 8
PROGRAM = f"""\
from ctypes import CDLL, RTLD_GLOBAL, byref, c_char, c_int, c_long
from pathlib import Path

mpi = CDLL("libmpi.so.40", mode=RTLD_GLOBAL)
world, number, total = (byref(c_char.in_dll(mpi, f"ompi_mpi_{{name}}")) for name in ("comm_world", "long", "op_sum"))
uuid = Path("/sys/class/dmi/id/product_uuid").read_text().strip()
rank, size, mine, of_all = c_int(), c_int(), c_long(int(uuid[:{NUMBER}], 16)), c_long()
mpi.MPI_Init(None, None)
mpi.MPI_Comm_rank(world, byref(rank))
mpi.MPI_Comm_size(world, byref(size))
mpi.MPI_Allreduce(byref(mine), byref(of_all), 1, number, total, world)
mpi.MPI_Finalize()
print(rank.value, size.value, uuid, of_all.value)
"""


def test_mpirun_starts_ranks_in_both_guests_and_they_exchange_messages(the_lab: Lab, debian_image: str) -> None:
    the_lab.write("sum.py", PROGRAM)
    ended = the_lab.run("#!/bin/bash\nmpirun python3 sum.py\n", vm=f"img={debian_image},vms_per_node=2")
    uuids = [str(guestnames.guest_uuid(ended.id, rank)) for rank in range(2)]
    total = sum(int(uuid[:NUMBER], 16) for uuid in uuids)
    assert ended.exit_status == 0, ended.err
    assert sorted(ended.out.decode().splitlines()) == [f"{rank} 2 {uuid} {total}" for rank, uuid in enumerate(uuids)]
    assert ended.err == b""
