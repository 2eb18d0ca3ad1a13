# SPDX-License-Identifier: Apache-2.0
"""One point in time, made once at the edge and handed to all that may block."""

import time
from collections.abc import Callable, Iterator

from vtorque import wakeups
from vtorque.errors import DeadlineExceeded
from vtorque.wakeups import Wakeup


class Deadline:
    """A point on the monotonic clock; a stepped wall clock does not move it."""

    def __init__(
        self,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[..., object] = wakeups.wait,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._end = clock() + seconds

    @property
    def remaining(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self._end - self._clock())

    @property
    def expired(self) -> bool:
        return self.remaining == 0.0

    def since(self, moment: float) -> "Deadline":
        """The same, had it been made then, at a moment of the monotonic clock."""
        return Deadline(self.remaining - (time.monotonic() - moment))

    def within(self, seconds: float) -> "Deadline":
        """The earlier of this deadline and `seconds` from now."""
        return self._in(min(self.remaining, seconds))

    def reserve(self, seconds: float) -> "Deadline":
        """A deadline that leaves `seconds` of this one for undoing."""
        return self._in(max(0.0, self.remaining - seconds))

    def require(self, doing: str) -> float:
        """Seconds left to do `doing`; raises DeadlineExceeded when there are none."""
        if self.expired:
            raise DeadlineExceeded(f"out of time: {doing}")
        return self.remaining

    def pause(self, seconds: float, *until: Wakeup) -> None:
        """Sleep, but not beyond the deadline, nor when one of `until` has something to tell."""
        self._sleep(min(seconds, self.remaining), *until)

    def ticks(self, *, doing: str, first: float = 0.005, longest: float = 0.5) -> Iterator[None]:
        """Yield now, then after growing pauses (seconds), until time is up.

        For the places where nothing announces itself and polling is the only
        way. Raises DeadlineExceeded naming `doing` when time is up.
        """
        for pause in growing(first=first, longest=longest):
            yield
            self.require(doing)
            self.pause(pause)

    def _in(self, seconds: float) -> "Deadline":
        return Deadline(seconds, clock=self._clock, sleep=self._sleep)


def growing(*, first: float = 0.005, longest: float) -> Iterator[float]:
    """Pauses (seconds) between looks at something that does not announce itself, for ever."""
    while True:
        yield first
        first = min(first * 1.5, longest)
