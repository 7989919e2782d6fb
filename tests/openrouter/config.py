"""The settings of a simulator: seed, latency, faults, limits, credit; changeable while it runs."""

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from typing import Any

from openrouter import cases


@dataclass(frozen=True, slots=True)
class Config:
    """How the simulator behaves. The same seed gives the same answers and the same faults.

    `latency`: seconds a generation takes, fixed or drawn between two bounds. `faults`: case names (see cases.py) and
    their rates between 0 and 1; a bare name is drawn again for each attempt, `503:2` fails the first two attempts of
    the questions it hits, `503:always` all of theirs. `require_key`: the only key accepted; without it every key is
    but those that contain "wrong". Limits are None where there is none: `requests_per_minute` (fixed windows of
    `minute` seconds), `day_quota` (until 00:00 UTC), `hidden_concurrency` (more generations at once bring 429).
    `credit` and `in_flight_budget`: USD; a request holds its worst case while it runs. `prices`: USD a token as
    decimal strings, (prompt, completion) by model. `retry_after`: the wait in seconds that replies ask for. `slow`:
    how many seconds the slow cases take. `keep_requests`: how many requests are recorded whole. `schedule`: (seconds
    since the first request, changes) in order, for limits and faults that change in mid-run. `prompt_cache_life`:
    seconds that a prompt cache keeps what nobody uses; `providers`: how many serve each model that has such a cache.

    Raises ValueError for what can't be.
    """

    seed: int = 0
    latency: float | tuple[float, float] = 0.0
    faults: Mapping[str, float] = field(default_factory=dict)
    require_key: str | None = None
    requests_per_minute: int | None = None
    minute: float = 60.0
    day_quota: int | None = None
    hidden_concurrency: int | None = None
    credit: Decimal | None = None
    in_flight_budget: Decimal | None = None
    prices: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    retry_after: float = 1.0
    slow: float = 7.0
    keep_requests: int = 0
    schedule: tuple[tuple[float, Mapping[str, Any]], ...] = ()
    prompt_cache_life: float = 300.0
    providers: int = 3

    def __post_init__(self) -> None:
        low, high = self.bounds
        if not 0 <= low <= high:
            raise ValueError(f"latency {self.latency} must be seconds, the lower bound first")
        for name, rate in self.faults.items():
            cases.find(name)
            if not 0 <= rate <= 1:
                raise ValueError(f"the rate of fault {name} must be between 0 and 1, not {rate}")
        if sum(self.faults.values()) > 1 + 1e-9:
            raise ValueError("the rates of all faults together must not be above 1")
        if any(first > then for (first, _), (then, _) in pairwise(self.schedule)):
            raise ValueError("schedule must be in the order of its times")
        for _, changes in self.schedule:
            self.changed({**changes, "schedule": ()})

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest latency, in seconds."""
        return self.latency if isinstance(self.latency, tuple) else (self.latency, self.latency)

    def changed(self, changes: Mapping[str, Any]) -> "Config":
        """Return this with fields changed, as they come from JSON. Raises ValueError that names what is wrong."""
        unknown = sorted(set(changes) - {each.name for each in fields(self)})
        if unknown:
            raise ValueError(f"the simulator has no setting {', '.join(unknown)}")
        return replace(self, **{name: _typed(name, value) for name, value in changes.items()})


def _seconds(value: Any) -> float | tuple[float, float]:  # noqa: ANN401  (JSON)
    if isinstance(value, list | tuple):
        low, high = value
        return float(low), float(high)
    return float(value)


def _usd(value: Any) -> Decimal:  # noqa: ANN401  (JSON)
    return Decimal(str(value))


def _prices(value: Any) -> dict[str, tuple[str, str]]:  # noqa: ANN401  (JSON)
    return {str(model): (str(_usd(prompt)), str(_usd(completion))) for model, (prompt, completion) in value.items()}


_FROM_JSON: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        ("seed", "requests_per_minute", "day_quota", "hidden_concurrency", "keep_requests", "providers"), operator.index
    ),
    **dict.fromkeys(("minute", "retry_after", "slow", "prompt_cache_life"), float),
    **dict.fromkeys(("credit", "in_flight_budget"), _usd),
    "latency": _seconds,
    "require_key": str,
    "prices": _prices,
    "faults": lambda value: {str(case): float(rate) for case, rate in value.items()},
    "schedule": lambda value: tuple((float(after), dict(changes)) for after, changes in value),
}
_OPTIONAL = {"require_key", "requests_per_minute", "day_quota", "hidden_concurrency", "credit", "in_flight_budget"}


def _typed(name: str, value: Any) -> Any:  # noqa: ANN401  (JSON)
    """Return a field's value as its type, from JSON's. Raises ValueError."""
    if value is None and name in _OPTIONAL:
        return None
    try:
        return _FROM_JSON[name](value)
    except (TypeError, ValueError, AttributeError, InvalidOperation) as error:
        raise ValueError(f"the simulator's setting {name} can't be {value!r}") from error


def parse_latency(text: str) -> float | tuple[float, float]:
    """Read `0.5` or `0.2..0.8`, in seconds. Raises ValueError."""
    low, dots, high = text.partition("..")
    try:
        return (float(low), float(high)) if dots else float(low)
    except ValueError:
        raise ValueError(f"latency {text!r} must be seconds such as 0.5, or a range such as 0.2..0.8") from None


def parse_faults(texts: Iterable[str]) -> dict[str, float]:
    """Read rates such as `429=0.02` or `503:2=0.01`. Raises ValueError."""
    faults = {}
    for text in texts:
        name, _, rate = text.rpartition("=")
        try:
            faults[name] = float(rate)
        except ValueError:
            raise ValueError(f"fault {text!r} must be a case and its rate, such as 429=0.02") from None
        cases.find(name)
    return faults
