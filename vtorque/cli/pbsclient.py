# SPDX-License-Identifier: Apache-2.0
"""How the local engine's commands talk to it."""

import json
import socket
from pathlib import Path
from typing import Any

from vtorque import config
from vtorque.cli.prefix import PREFIX
from vtorque.mom.spool import Home

_UNREACHABLE = 111


class Answer(Exception):
    """The engine, or a client of it, says no."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def ask(order: dict[str, Any]) -> dict[str, Any]:
    """What the engine answers; Answer when it says no."""
    site = config.load(config.find(PREFIX), trusted_owner=None)
    path = Home(Path(site.torque_home)).socket
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError as error:
            raise Answer(_UNREACHABLE, f"cannot connect to the engine at {path}: {error.strerror}") from error
        connection.sendall(json.dumps(order).encode() + b"\n")
        with connection.makefile("rb") as lines:
            answer: dict[str, Any] = json.loads(lines.readline())
    if answer["status"] != 0:
        raise Answer(answer["status"], answer["error"])
    return answer


def jobs(name: str | None) -> list[dict[str, Any]]:
    """The job of that name, the elements of that array, or all jobs."""
    found: list[dict[str, Any]] = ask({"do": "stat", "job": name})["jobs"]
    return found
