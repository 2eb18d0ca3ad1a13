# SPDX-License-Identifier: Apache-2.0
"""What commands, not hooks, ask libvirt for."""

from typing import Any

import libvirt

from vtorque.backends.hypervisor import Usage
from vtorque.backends.hypervisor.libvirt import Libvirt, ignoring, lookup
from vtorque.deadline import Deadline

_STATES = {
    libvirt.VIR_DOMAIN_PAUSED: "paused", libvirt.VIR_DOMAIN_PMSUSPENDED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "stopping", libvirt.VIR_DOMAIN_SHUTOFF: "stopped",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
}


class Inspector(Libvirt):
    """Domains as an administrator or the doctor looks at them."""

    def define(self, domain_xml: str, *, deadline: Deadline) -> None:
        """Make the domain known, not running. Defining the same one again is no error."""
        self._call("define a guest", lambda c: c.defineXML(domain_xml), deadline)

    def usage(self, name: str, *, deadline: Deadline) -> Usage | None:
        """What the domain does, its CPU time and its memory; None when there is no such domain."""

        def look(connection: Any) -> Usage | None:
            domain = lookup(connection, name)
            with ignoring(libvirt.VIR_ERR_NO_DOMAIN):
                if domain is not None:
                    state, _, kib, _, nanoseconds = domain.info()
                    known = _STATES.get(state, "running")
                    return Usage(state=known, cpu_seconds=nanoseconds / 1e9, memory_mib=kib >> 10)
            return None

        usage: Usage | None = self._call(f"look at guest {name}", look, deadline)
        return usage
