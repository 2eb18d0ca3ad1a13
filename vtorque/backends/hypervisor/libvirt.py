# SPDX-License-Identifier: Apache-2.0
"""Domains through libvirt's Python binding.

A call of the binding cannot be interrupted, so each runs in a thread of its
own that is abandoned at the deadline: a libvirtd that hangs must not hang a hook.
"""

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import libvirt

from vtorque.deadline import Deadline
from vtorque.errors import DeadlineExceeded, HypervisorError

_TAG = "{https://vtorque.org/xmlns/domain/1}vtorque"
_LOST = frozenset((libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_RPC,
                   libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_CONN))
_HINTS = (
    ("/dev/kvm", "HYPERVISOR_TYPE: qemu runs guests without KVM, slowly"),
    ("Cannot get interface MTU", "see BRIDGE in the configuration"),
    ("does not support virt type", "HYPERVISOR_TYPE: qemu runs guests without KVM, slowly"),
    ("Failed to connect socket", "is libvirtd running on this node?"),
    ("Permission denied", "QEMU_USER must be able to read the image and every directory above it"),
)
_UNDEFINE = libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
_STOPPED = frozenset((libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED))


class Libvirt:
    """One connection, opened when it is first needed and once more when it was lost."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._connection: Any = None
        self._lock = threading.Lock()
        # libvirt prints every error to stderr by itself, which is the job's.
        libvirt.registerErrorHandler(lambda context, error: None, None)

    def create(self, domain_xml: str, *, deadline: Deadline) -> None:
        """Start a transient domain; the same one that runs already is a success."""
        root = ElementTree.fromstring(domain_xml)
        name = root.findtext("name", "")

        def create(connection: Any) -> None:
            domain = lookup(connection, name)
            if domain is None or not domain.isActive() or domain.UUIDString() != root.findtext("uuid"):
                connection.createXML(domain_xml, 0)

        self._call(f"start guest {name}", create, deadline)

    def shutdown(self, name: str, *, deadline: Deadline) -> None:
        """Press the power button, once."""

        def press(connection: Any) -> None:
            domain = lookup(connection, name)
            with ignoring(libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
                if domain is not None:
                    # The power button: guests have no agent that it could ask.
                    domain.shutdown()

        self._call(f"shut down guest {name}", press, deadline)

    def destroy(self, name: str, *, deadline: Deadline) -> bool:
        """Stop and forget the domain, and see that it is gone; whether there was one."""

        def destroy(connection: Any) -> bool:
            domain = lookup(connection, name)
            if domain is None:
                return False
            with ignoring(libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
                domain.destroyFlags(0)
            with ignoring(libvirt.VIR_ERR_NO_DOMAIN):
                domain.undefineFlags(_UNDEFINE)
            if lookup(connection, name) is not None:
                raise HypervisorError(f"guest {name} is still there after it was destroyed")
            return True

        return bool(self._call(f"destroy guest {name}", destroy, deadline))

    def domains(self, *, deadline: Deadline) -> dict[str, str]:
        """Names of all domains with our tag, and the job each belongs to."""

        def tagged(connection: Any) -> dict[str, str]:
            found = {}
            for domain in connection.listAllDomains():
                with ignoring(libvirt.VIR_ERR_NO_DOMAIN):
                    tag = ElementTree.fromstring(domain.XMLDesc()).find(f"metadata/{_TAG}")
                    if tag is not None:
                        found[domain.name()] = tag.get("job", "")
            return found

        domains: dict[str, str] = self._call("list guests", tagged, deadline)
        return domains

    def is_running(self, name: str, *, deadline: Deadline) -> bool:
        """Whether the domain exists and has neither stopped nor crashed."""

        def running(connection: Any) -> bool:
            domain = lookup(connection, name)
            with ignoring(libvirt.VIR_ERR_NO_DOMAIN):
                return domain is not None and domain.state()[0] not in _STOPPED
            return False

        return bool(self._call(f"look at guest {name}", running, deadline))

    def close(self) -> None:
        """Drop the connection, without waiting for a daemon that may hang."""
        with self._lock:
            self._connection = None

    def _call(self, doing: str, act: Callable[[Any], Any], deadline: Deadline) -> Any:
        """Run `act` on the connection; when that was lost, once more on a new one.

        Every act looks up what it needs, so saying it twice is safe.
        """
        try:
            return _abandonable(lambda: act(self._open()), doing, deadline)
        except libvirt.libvirtError as error:
            if error.get_error_code() not in _LOST or self._is_alive(deadline):
                raise _failure(doing, error) from error
        self.close()
        try:
            return _abandonable(lambda: act(self._open()), doing, deadline)
        except libvirt.libvirtError as error:
            raise _failure(doing, error) from error

    def _open(self) -> Any:
        with self._lock:
            if self._connection is None:
                self._connection = libvirt.open(self._uri)
            return self._connection

    def _is_alive(self, deadline: Deadline) -> bool:
        connection = self._connection
        if connection is None:
            return False
        try:
            return bool(_abandonable(connection.isAlive, "reach libvirt", deadline))
        except libvirt.libvirtError:
            return False


def _abandonable(act: Callable[[], Any], doing: str, deadline: Deadline) -> Any:
    """The result of `act` in a thread of its own; DeadlineExceeded when it does not come in time."""
    answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((act(), None))
        except Exception as error:  # noqa: BLE001
            answers.put((None, error))

    seconds = deadline.require(doing)
    threading.Thread(target=work, daemon=True, name=doing).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise DeadlineExceeded(f"libvirt did not answer in time: {doing}") from None
    if error is not None:
        raise error
    return answer


def lookup(connection: Any, name: str) -> Any:
    with ignoring(libvirt.VIR_ERR_NO_DOMAIN):
        return connection.lookupByName(name)
    return None


class ignoring(contextlib.AbstractContextManager[None]):  # noqa: N801
    """Let the given libvirt error codes pass for success."""

    def __init__(self, *codes: int) -> None:
        self._codes = codes

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return isinstance(error, libvirt.libvirtError) and error.get_error_code() in self._codes


def _failure(doing: str, error: Any) -> HypervisorError:
    text = " ".join(str(error).split())
    hint = next((hint for sign, hint in _HINTS if sign in text), "")
    return HypervisorError(f"cannot {doing}: {text}", hint=hint)
