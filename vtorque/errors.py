# SPDX-License-Identifier: Apache-2.0
"""Every failure the program knows: what happened, whose fault, what to do."""

from enum import Enum


class Blame(Enum):
    """Whose fault a failure is; only the batch backend turns it into a number."""

    USER = "user"
    NODE = "node"
    BUG = "bug"


class VtorqueError(Exception):
    """A failure in one line, with the details for the log and the way out.

    `brief` names the thing and the number, lower case, no full stop; it must
    make sense to somebody who sees nothing else. `details` is for the log
    only. `hint` says what to do.
    """

    blame = Blame.NODE

    def __init__(self, brief: str, *, details: str = "", hint: str = "") -> None:
        super().__init__(brief)
        self.brief = brief
        self.details = details
        self.hint = hint

    def one_line(self) -> str:
        """`brief`, and `hint` in brackets when there is one."""
        return f"{self.brief} ({self.hint})" if self.hint else self.brief


class RequestError(VtorqueError):
    """The user asked for something that is wrong or that the site refuses."""

    blame = Blame.USER


class ConfigError(VtorqueError):
    """The site's configuration is wrong or unsafe."""


class ImageError(VtorqueError):
    """An image in the catalogue is damaged, unsafe or unreadable."""


class CommandError(VtorqueError):
    """An external command failed."""


class DeadlineExceeded(VtorqueError):
    """Something did not happen in time."""


class HypervisorError(VtorqueError):
    """libvirt refused or failed."""


class AddressError(VtorqueError):
    """A guest has no address, or more than one."""


class TransportError(VtorqueError):
    """A guest cannot be talked to, or is not the one it should be."""


class WrongHostKey(TransportError):
    """Another machine than the one that was started answers at the address."""


class GuestError(VtorqueError):
    """A guest came up and reported that it cannot serve the job."""


class StateError(VtorqueError):
    """The node's own record of a job is unusable."""


class NodeBusy(VtorqueError):
    """The node has what a job needs, but other jobs hold it now."""


class NodeOut(VtorqueError):
    """The node takes no jobs with guests until an administrator brings it back."""


class GenerationClosed(VtorqueError):
    """The job was deleted or torn down while its guests were being started."""


class InternalError(VtorqueError):
    """Something that nobody foresaw."""

    blame = Blame.BUG


def printable(text: str) -> str:
    """Text of others in one line that does nothing to a terminal."""
    return "".join(each if each.isprintable() else "?" for each in " ".join(text.split()))


def known(error: Exception) -> VtorqueError:
    """What went wrong, as a failure that the program knows."""
    if isinstance(error, VtorqueError):
        return error
    if isinstance(error, OSError):
        # A record of root's, as far as it has a name.
        return StateError(f"{error.filename or 'a file of root'}: {error.strerror}")
    return InternalError(f"internal error: {error!r}")
