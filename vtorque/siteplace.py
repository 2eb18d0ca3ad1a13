# SPDX-License-Identifier: Apache-2.0
"""Where the site's configuration is, for those who can wait for nothing else to be loaded."""

import os
import stat


def places(prefix: str, root: str = "/") -> tuple[str, str]:
    """Where it may be: with the program at `prefix`, else with the system below `root`."""
    return f"{prefix}/etc/vtorque.yaml", os.path.join(root, "etc/vtorque/vtorque.yaml")


def look(prefix: str, root: str = "/") -> str:
    """Where it is, or nothing; OSError when it is not ours to see."""
    for path in places(prefix, root):
        try:
            if stat.S_ISREG(os.stat(path).st_mode):
                return path
        except (FileNotFoundError, NotADirectoryError):
            pass
    return ""
