"""Exact amounts of money: whole picodollars (10⁻¹² USD), because a token can cost less than 10⁻⁷.

64 bits hold nine million dollars.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal, InvalidOperation
from enum import StrEnum
from typing import NewType

Pico = NewType("Pico", int)
"""An amount in picodollars."""

PER_USD = 10**12
ZERO = Pico(0)


def from_usd(usd: Decimal | float | str) -> Pico:
    """Return the amount for dollars, rounded up to a whole picodollar; floats are taken as printed."""
    exact = usd if isinstance(usd, Decimal) else Decimal(str(usd))
    return Pico(int((exact * PER_USD).to_integral_value(rounding=ROUND_CEILING)))


def positive_usd(written: object) -> Decimal:
    """Return a positive amount in USD, which may be written as `$5`. Raises ValueError with the reason."""
    try:
        amount = Decimal(str(written).removeprefix("$"))
    except InvalidOperation:
        raise ValueError(f"{written!r} is not an amount in USD, such as 2.50") from None
    if not amount.is_finite() or amount <= 0:
        raise ValueError(f"{written!r} is not a positive amount in USD")
    return amount


def to_usd(amount: int) -> Decimal:
    """Return dollars, exactly."""
    return Decimal(amount) / PER_USD


def show(amount: int, rounding: str = ROUND_HALF_EVEN) -> str:
    """Return dollars for people: two significant digits below a cent, cents above a dollar."""
    usd = to_usd(amount)
    if usd == 0:
        return "$0"
    digits = 2 if abs(usd) >= 1 else max(4, 1 - usd.adjusted())
    return f"${usd.quantize(Decimal(1).scaleb(-digits), rounding):,f}"


class CostKind(StrEnum):
    """What an amount means: money that was charged, money of a simulator, or nothing where nobody reports a cost."""

    CHARGED = "charged"
    SIMULATED = "simulated"
    UNKNOWN = "unknown"


def cost(amount: int, kind: str) -> str:
    """Return a cost for people; where nobody reports costs, nothing says $0. What is reported counts all the same."""
    if kind == CostKind.UNKNOWN and not amount:
        return "cost unknown"
    return f"{show(amount)} simulated" if kind == CostKind.SIMULATED else show(amount)


@dataclass(frozen=True, slots=True)
class Price:
    """What one model costs: picodollars per token, and per request.

    `cache_read` and `cache_write` are for tokens of a prompt that are read from the provider's prompt cache, or written
    to it; None where they are not known: such tokens then cost as much as others.
    """

    prompt: Pico
    completion: Pico
    request: Pico = ZERO
    cache_read: Pico | None = None
    cache_write: Pico | None = None

    def cost(self, prompt_tokens: int, completion_tokens: int, read: int = 0, written: int = 0) -> Pico:
        """Return the cost of one request; `read` and `written` are those of its prompt tokens that a cache served."""
        amount = self.prompt * prompt_tokens + self.completion * completion_tokens + self.request
        if self.cache_read is not None:
            amount += (self.cache_read - self.prompt) * min(read, prompt_tokens)
        if self.cache_write is not None:
            amount += (self.cache_write - self.prompt) * min(written, prompt_tokens)
        # A server that counts more cached tokens than prompt tokens must not earn money.
        return Pico(max(0, amount))


def apportion(amount: Pico, weights: Sequence[int]) -> list[Pico]:
    """Divide an amount in proportion to weights, of which one is above 0; the parts add up to it exactly.

    What rounding down leaves goes to the largest remainders, one picodollar each.
    """
    total = sum(weights)
    # In whole picodollars: with floats the rows of a batch would not add up to its bill.
    parts = [amount * weight // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda index: -(amount * weights[index] % total))
    for index in by_remainder[: amount - sum(parts)]:
        parts[index] += 1
    return [Pico(part) for part in parts]
