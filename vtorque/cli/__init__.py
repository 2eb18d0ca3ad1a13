# SPDX-License-Identifier: Apache-2.0
"""Commands: argv, environment, exit status; nothing else."""

import os
import sys

_TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))


def where() -> str:
    """Where scripts and templates lie: in the tree that this file is part of, or where setup.py put them."""
    if os.path.isfile(f"{_TREE}/templates/job-wrapper.sh"):
        return _TREE
    import sysconfig  # which a tree has no need of

    return f"{sysconfig.get_path('data')}/share/vtorque"


def leave(status: int) -> None:
    """End this process at once: what the interpreter would clear away before goes with it, a tenth of a short run.

    Nothing may be left to do at exit. Output that nobody takes makes a success a failure.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            status = status or 1
    os._exit(status)
