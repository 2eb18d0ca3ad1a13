# SPDX-License-Identifier: Apache-2.0
"""Programs of the site's own that tell of its guests' addresses."""

from collections.abc import Sequence
from pathlib import Path

from vtorque import files, proc
from vtorque.deadline import Deadline
from vtorque.errors import AddressError, CommandError, ConfigError, DeadlineExceeded

_FAIR_SECONDS = 1.0
_EVERY_STATUS = range(-64, 256)


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
