# SPDX-License-Identifier: Apache-2.0
"""Guards and builders for all tests."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from os import umask

import hypothesis
import pytest

# A shared machine stands still now and then: hypothesis must not measure how long an example took.
hypothesis.settings.register_profile("vtorque", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("vtorque")


UMASK = 0o022


class ForbiddenError(BaseException):
    """A unit test reached for the world; no `except Exception` may swallow that."""


def pytest_configure(config: pytest.Config) -> None:
    # Whoever starts us in the background has it ignored, and so would all that we start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    umask(UMASK)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write the golden files anew")


# Before pytest-xdist looks at the groups.
@pytest.hookimpl(tryfirst=True)  # type: ignore[untyped-decorator]
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes (`pytest -n 2 --dist loadgroup`) one has the lab, and begins with it."""
    for item in items:
        is_e2e = item.get_closest_marker("e2e") is not None
        # Files of one subject may use the same place, like a home.
        subject = "_".join(item.path.stem.split("_")[:2])
        item.add_marker(pytest.mark.xdist_group("lab" if is_e2e else f"{item.path.parent.name} {subject}"))
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)


@pytest.fixture(autouse=True)
def _no_world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unit tests start no process and open no connection."""
    if "unit" in request.node.path.parts:

        def refuse(*args: object, **kwargs: object) -> None:
            raise ForbiddenError(f"a unit test must not do this: {args[:2]}")

        monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
        monkeypatch.setattr(os, "fork", refuse)
        monkeypatch.setattr(socket.socket, "connect", refuse)
    yield


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """A test that leaves us another umask would have those after it fail."""
    yield
    # Not by its name in `os`, which a test may have replaced.
    assert umask(UMASK) == UMASK
