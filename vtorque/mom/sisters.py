# SPDX-License-Identifier: Apache-2.0
"""What the sisters of a job do for it: each one thing after the other, all of them at once."""

from collections.abc import Callable

from vtorque.mom import rules
from vtorque.mom.hooks import Hook, HookRun
from vtorque.mom.places import Place, Places
from vtorque.mom.spool import Home, JobRecord

_JOIN = ("prologue.parallel", "prologue.user.parallel")
_END = ("epilogue.user.parallel", "epilogue.parallel")


class Order:
    """Hooks that a sister was told to run; their result is there when they are over."""

    def __init__(self, job: JobRecord, kinds: tuple[str, ...]) -> None:
        self.job = job
        self.kinds = list(kinds)
        self.joins = kinds == _JOIN
        self.result: int | None = None


class Sisters:
    """All of a job's, as its mother superior deals with them; `pause` is what she does while she waits."""

    def __init__(self, home: Home, job: JobRecord, *, place: Places, note: Callable[[HookRun], None]) -> None:
        self.have_joined = False
        self._all = [
            Sister(home, place(host), name=host, number=number, note=note)
            for number, host in enumerate(dict.fromkeys(job.hosts)) if number
        ]

    @property
    def are_busy(self) -> bool:
        """Whether one of them was told something that is not done."""
        return any(sister.is_busy for sister in self._all)

    def work(self) -> None:
        """Go on with what there is to do, and do not wait for anything."""
        for sister in self._all:
            sister.work()

    def join(self, job: JobRecord, *, pause: Callable[[], None]) -> bool:
        """Whether all have joined; nobody waits for the others when one has failed."""
        # Who is told to end it while she joins does so after her prologues.
        self.have_joined = True
        orders = [sister.join(job) for sister in self._all]
        while any(order.result is None for order in orders) and not any(order.result for order in orders):
            pause()
        if any(order.result for order in orders):
            self.have_joined = False
            return False
        return True

    def end(self, job: JobRecord, *, pause: Callable[[], None]) -> None:
        """Wait until all that have joined have ended it."""
        orders = [sister.end(job) for sister in self._all if self.have_joined]
        self.have_joined = False
        while any(order.result is None for order in orders):
            pause()

    def abort(self, job: JobRecord) -> None:
        """Have all forget it without an epilogue (mom_comm.c:3960-3984)."""
        self.have_joined = False
        for sister in self._all:
            sister.abort(job)


class Sister:
    """One sister of a job. Her hooks block her main loop, so orders wait for one another."""

    def __init__(
        self, home: Home, place: Place, *, name: str, number: int, note: Callable[[HookRun], None]
    ) -> None:
        self._home = home
        self._place = place
        self._name = name
        self._number = number
        self._note = note
        self._orders: list[Order] = []
        self._hook: Hook | None = None
        self._wanted: Order | None = None

    @property
    def is_busy(self) -> bool:
        """Whether she was told something that is not done."""
        return bool(self._orders)

    def join(self, job: JobRecord) -> Order:
        """Begin the job: prologues, of which the first that fails is the last; then she has the job."""
        self._wanted = self._tell(Order(job, _JOIN))
        return self._wanted

    def end(self, job: JobRecord) -> Order:
        """End the job: all epilogues, whatever becomes of each; then she has the job no more."""
        return self._tell(Order(job, _END))

    def abort(self, job: JobRecord) -> None:
        """Forget the job; a prologue that still runs goes on."""
        self._wanted = None
        self._forget(job)

    def work(self) -> None:
        """Go on with what there is to do, and do not wait for anything."""
        if self._hook is not None:
            if (result := self._hook.poll()) is None:
                return
            if self._hook.was_there:
                self._note(self._hook.record())
            self._hook = None
            self._ended(result)
        if self._orders and self._orders[0].kinds:
            order = self._orders[0]
            self._hook = Hook(
                self._home, order.kinds.pop(0), order.job,
                place=self._place, node_number=self._number, sister=self._name,
            )
            self._hook.start()

    def _tell(self, order: Order) -> Order:
        self._orders.append(order)
        return order

    def _ended(self, result: int) -> None:
        order = self._orders[0]
        if order.joins and result != rules.SUCCESS:
            order.kinds.clear()
        if order.kinds:
            return
        self._orders.pop(0)
        order.result = result if order.joins else rules.SUCCESS
        if not order.joins:
            self._forget(order.job)
        elif order is self._wanted and result == rules.SUCCESS:
            self._place.task(order.job.id).touch(mode=0o600)

    def _forget(self, job: JobRecord) -> None:
        self._place.task(job.id).unlink(missing_ok=True)
