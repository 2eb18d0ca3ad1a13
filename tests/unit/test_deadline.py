# SPDX-License-Identifier: Apache-2.0
"""One clock, which only the test moves."""

import pytest

from vtorque.deadline import Deadline
from vtorque.errors import DeadlineExceeded


class Clock:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def deadline(clock: Clock, seconds: float) -> Deadline:
    return Deadline(seconds, clock=clock, sleep=clock.sleep)


def test_what_remains_never_falls_below_zero(clock: Clock) -> None:
    limit = deadline(clock, 10)
    clock.now += 4
    assert limit.remaining == 6 and not limit.expired
    clock.now += 7
    assert limit.remaining == 0 and limit.expired


def test_a_part_of_a_deadline_cannot_outlast_it(clock: Clock) -> None:
    limit = deadline(clock, 10)
    assert limit.within(3).remaining == 3
    assert limit.within(30).remaining == 10
    clock.now += 9
    assert limit.within(3).remaining == 1


def test_a_reserve_is_taken_off_the_end(clock: Clock) -> None:
    assert deadline(clock, 100).reserve(30).remaining == 70
    assert deadline(clock, 20).reserve(30).expired


def test_requiring_time_gives_it_or_says_what_there_was_none_for(clock: Clock) -> None:
    limit = deadline(clock, 5)
    assert limit.require("boot the guest") == 5
    clock.now += 5
    with pytest.raises(DeadlineExceeded, match="out of time: boot the guest"):
        limit.require("boot the guest")


def test_a_pause_ends_at_the_deadline(clock: Clock) -> None:
    deadline(clock, 2).pause(10)
    assert clock.pauses == [2]


def test_ticks_come_at_once_then_ever_slower_and_end_with_an_error(clock: Clock) -> None:
    ticks = 0
    with pytest.raises(DeadlineExceeded, match="wait for it"):
        for _ in deadline(clock, 10).ticks(doing="wait for it", first=0.5, longest=2):
            ticks += 1
    assert clock.pauses[:5] == [0.5, 0.75, 1.125, 1.6875, 2]
    assert max(clock.pauses) == 2
    assert clock.now == 1010
    assert ticks == len(clock.pauses) + 1


def test_an_expired_deadline_still_allows_one_look(clock: Clock) -> None:
    ticks = deadline(clock, 0).ticks(doing="look")
    next(ticks)
    with pytest.raises(DeadlineExceeded):
        next(ticks)
