# SPDX-License-Identifier: Apache-2.0
"""Where a guest's address may be learned. An address is a candidate until its key is proven."""

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from vtorque import files, proc
from vtorque.deadline import Deadline
from vtorque.errors import AddressError, CommandError, ConfigError, DeadlineExceeded
from vtorque.model import VmPlan
from vtorque.wakeups import Wakeup

_FAIR_SECONDS = 1.0
_EVERY_STATUS = range(-64, 256)


class AddressBook(Protocol):
    """A source of candidates for guests' addresses."""

    def candidates(self, vm: VmPlan) -> tuple[str, ...]:
        """Addresses that might be the guest's, likeliest first; AddressError when the source is broken."""
        ...

    def wait(self, seconds: float, *also: Wakeup) -> None:
        """Return when something may have changed, one of `also` has something to tell, or after `seconds`."""
        ...

    def close(self) -> None:
        """Give back what the book holds open."""
        ...


def usable(text: str) -> str:
    """The address as everybody writes it, or nothing when no guest can be reached there without a zone."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
        return ""
    special = address.is_link_local or address.is_multicast or address.is_unspecified or address.is_loopback
    return "" if special else str(address)


def ask(option: str, argv: Sequence[str | Path], *, deadline: Deadline) -> bytes:
    """What a program of the site's, named by `option`, prints.

    Raises ConfigError when others than root could have changed it, AddressError
    when it is not there, fails or does not end, and DeadlineExceeded when it
    never had the time to.
    """
    name = f"{option} {argv[0]}"
    given = deadline.remaining
    try:
        files.require_trusted(Path(argv[0]))
        done = proc.run(argv, deadline=deadline, statuses=_EVERY_STATUS)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error.brief}", hint=error.hint) from error
    except OSError as error:
        raise AddressError(f"{name}: {error.strerror}") from error
    except CommandError as error:
        raise AddressError(f"{option}: {error.brief}", hint="it has to be a program") from error
    except DeadlineExceeded as error:
        if given < _FAIR_SECONDS:
            raise
        raise AddressError(f"{name} did not end within {given:.0f} s", details=error.details) from error
    if done.status != 0:
        how = f"was killed by signal {-done.status}" if done.status < 0 else f"failed with exit status {done.status}"
        said = done.stderr.decode(errors="backslashreplace").strip() or "no message"
        raise AddressError(f"{name} {how}: {said.splitlines()[0][:200]}", details=said[:2000])
    return done.stdout
