"""Caps on spending: amounts are reserved before a request and settled after it, exactly.

A cap for a day must hold over SIGKILLs, which leave nobody to report the requests in flight. So a run spends only
money that it has leased: the most that it may have spent by then, committed to the checkpoint beforehand. A dead run's
lease counts as spent that day. To waste little of the cap, little is at risk: at most 3 % of the cap in the day's first
run, half of it after each kill, and 0.7 % in the end, so that ten kills waste a tenth of it.
"""

import math
from collections.abc import Callable
from typing import Protocol

from batchrun.api import Prices
from batchrun.checkpoint import Checkpoint
from batchrun.job import CostCap
from batchrun.money import ZERO, Pico, from_usd, show
from batchrun.prepare import Prepared, refuse_unbounded

LEASE_WAIT = 0.005
"""Seconds after which a request looks again whether its lease is committed."""

_PER_MILLE = 1_000
_STEP = 5
"""Thousandths of a day's cap that are leased ahead of need."""
_AT_RISK, _ALWAYS = 60, 7
"""Thousandths of a day's cap: half of the first, less what the day's dead runs lost, may be in flight; never less than
the second."""


class Lender(Protocol):
    """Commits leases; the checkpoint's writer."""

    @property
    def leased(self) -> int:
        """What this run may have spent by now, as it is committed."""

    def lease(self, amount: Pico) -> None:
        """Commit soon that this run may have spent this amount; a smaller one than before changes nothing."""


class Budget:
    """The caps of a run and of a day, in picodollars; None: without a cap.

    `spent` + `reserved` never exceeds a cap as long as no request costs more than its reservation: after one that does,
    more is reserved, and `warn` is called. `spent_today` is what earlier runs of this job may have spent since 00:00
    UTC, `lost_today` the part of it that is only known from leases of dead runs. Without a `lender` nothing has to be
    leased.
    """

    def __init__(
        self,
        cap_run: Pico | None = None,
        cap_day: Pico | None = None,
        spent_today: Pico = ZERO,
        *,
        lost_today: Pico = ZERO,
        lender: Lender | None = None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        of_run = math.inf if cap_run is None else cap_run
        of_day = math.inf if cap_day is None else cap_day - spent_today
        self._cap = max(0, min(of_run, of_day))
        self._spent = self._in_flight = self._held = 0
        self._percent, self._warn = 100, warn
        self._lender = None if cap_day is None else lender
        day = cap_day or 0
        self._step = day * _STEP // _PER_MILLE
        self._risk = max(day * _ALWAYS // _PER_MILLE, (day * _AT_RISK // _PER_MILLE - lost_today) // 2)

    @property
    def spent(self) -> Pico:
        """What this run is known to have spent."""
        return Pico(self._spent)

    @property
    def reserved(self) -> Pico:
        """What requests in flight may still cost, and what may have been billed."""
        return Pico(self._in_flight + self._held)

    @property
    def room(self) -> float:
        """What the caps still admit, in picodollars; infinity without a cap."""
        return self._cap - self._spent - self._in_flight - self._held

    def amount(self, estimate: Pico) -> Pico:
        """Return what to reserve for a request: its estimate, and more once a bill was higher than that."""
        return Pico(-(-estimate * self._percent // 100))

    def wait(self, amount: Pico) -> float:
        """Return the seconds until this amount may be reserved: 0 when it is leased, or when the cap will refuse it.

        Infinity where a request in flight must end first.
        """
        if self._lender is None or amount > self.room:
            return 0.0
        needed = self._spent + self._in_flight + self._held + amount
        if self._in_flight and self._in_flight + amount > self._risk:
            return math.inf
        # Ahead of need, so that requests seldom wait for a commit to reach the disk.
        if needed + self._step // 2 > self._lender.leased:
            ahead = min(needed + self._step, self._spent + self._held + self._risk, self._cap)
            self._lender.lease(Pico(max(needed, int(ahead))))
        return 0.0 if needed <= self._lender.leased else LEASE_WAIT

    def reserve(self, amount: Pico) -> bool:
        """Reserve a request's worst case; False, and nothing reserved, if a cap would not hold."""
        if amount > self.room:
            return False
        self._in_flight += amount
        return True

    def settle(self, reserved: Pico, spent: Pico, *, keep: bool = False, estimate: Pico = ZERO) -> None:
        """End a request: its cost is spent and its reservation freed; `keep` holds on to it, since it may be billed."""
        self._spent += spent
        self._in_flight -= reserved
        if spent > reserved and estimate:
            self._reserve_more(estimate, spent)
        if keep:
            # A lost reply has no cost that anybody reports, and may appear on the bill all the same.
            self._held += max(0, reserved - spent)

    def _reserve_more(self, estimate: Pico, billed: Pico) -> None:
        """Reserve so much from here on that this bill would have been covered, and report it.

        A decision model's hidden template may cost more than the estimate.
        """
        # By the estimate: reservations from before the last raise would raise it once more, for each request in flight.
        percent = -(-100 * billed // estimate)
        if percent <= self._percent:
            return
        self._percent = percent
        self._warn(
            f"a request cost {show(billed)}, more than the {show(estimate)} that was expected at most; from here on "
            f"{percent / 100:g} times the estimate is reserved, and requests in flight may pass the cap"
        )


def lowest_cap(cap: CostCap) -> Pico | None:
    """Return what one run may spend at most when nothing is spent yet; None without a cap."""
    return min((from_usd(amount) for amount in (cap.run, cap.day) if amount is not None), default=None)


def budget_of(
    prepared: Prepared,
    prices: Prices,
    checkpoint: Checkpoint,
    today: str,
    run_id: int,
    warn: Callable[[str], None] = lambda _: None,
) -> Budget:
    """Return the budget of a run on a UTC day; a cap that can't be kept is a UserError.

    What the run has spent in batches so far, and what open batches may cost, counts as spent.
    """
    refuse_unbounded(prepared, prices)
    cap, batches = prepared.job.limits.cap, checkpoint.batches
    cap_run = cap_day = None
    if cap.run is not None:
        cap_run = Pico(from_usd(cap.run) - checkpoint.spent(run_id=run_id) - batches.reserved(run_id=run_id))
    if cap.day is not None:
        cap_day = from_usd(cap.day)
    return Budget(
        cap_run,
        cap_day,
        Pico(checkpoint.spent(day=today) + checkpoint.leased(today) + batches.reserved(day=today)),
        lost_today=checkpoint.leased(today, dead=True),
        lender=checkpoint.writer,
        warn=warn,
    )
