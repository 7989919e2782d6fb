"""May this be spent: amounts are reserved before a request and settled after it, exactly."""

from collections.abc import Iterable

from batchrun.job import Job
from batchrun.money import ZERO, Pico, Price

MESSAGE_TOKENS = 16
"""Tokens that a chat template may add to one message."""

_BOUND_PLUGINS = frozenset({"response-healing", "context-compression", "moderation"})
_BOUND_TIERS = frozenset({"auto", "default", "flex"})


class Budget:
    """The caps of a run and of a day, in picodollars; None is no cap.

    `spent` + `reserved` never exceeds a cap as long as nothing costs more than what was reserved for it.
    `spent_today` is what earlier runs of this job spent since 00:00 UTC.
    """

    def __init__(self, cap_run: Pico | None = None, cap_day: Pico | None = None, spent_today: Pico = ZERO) -> None:
        rest_of_day = None if cap_day is None else max(0, cap_day - spent_today)
        caps = [cap for cap in (cap_run, rest_of_day) if cap is not None]
        self._cap = min(caps) if caps else None
        self._spent = self._reserved = 0

    @property
    def spent(self) -> Pico:
        """What this run is known to have spent."""
        return Pico(self._spent)

    @property
    def reserved(self) -> Pico:
        """What requests in flight may still cost, and what may have been billed."""
        return Pico(self._reserved)

    def reserve(self, amount: Pico) -> bool:
        """Reserve a request's worst case; False, and nothing reserved, if a cap would not hold."""
        if self._cap is not None and self._spent + self._reserved + amount > self._cap:
            return False
        self._reserved += amount
        return True

    def settle(self, reserved: Pico, spent: Pico, *, keep: bool = False) -> None:
        """End a request: its cost is spent and its reservation freed; `keep` holds on to it, since it may be billed."""
        self._spent += spent
        self._reserved -= min(reserved, spent) if keep else reserved


def worst_case(prompt_bytes: int, messages: int, max_tokens: int, prices: Iterable[Price]) -> Pico:
    """Give the most that a request of text can cost, in picodollars, at the dearest of the prices (at least one).

    `prompt_bytes` are the UTF-8 bytes of all that the model reads: no tokenizer makes more tokens than bytes.
    """
    prompt_tokens = prompt_bytes + MESSAGE_TOKENS * messages
    return max(price.cost(prompt_tokens, max_tokens) for price in prices)


def unbounded(job: Job) -> tuple[str, ...]:
    """Name what can make a request cost more than its worst case by bytes; a cap then needs model.max_request_usd."""
    params = job.model.params
    named = [
        "an image in prompt.messages"
        for turn in job.prompt.turns
        if not isinstance(turn.content, str) and any(part.image is not None for part in turn.content)
    ][:1]
    plugins = params.get("plugins")
    for plugin in plugins if isinstance(plugins, list | tuple) else ():
        name = plugin.get("id") if isinstance(plugin, dict) else plugin
        if name not in _BOUND_PLUGINS:
            named.append(f"the plugin {name}")
    tools = params.get("tools")
    for tool in tools if isinstance(tools, list | tuple) else ():
        if isinstance(tool, dict) and tool.get("type", "function") != "function":
            named.append(f"the tool {tool['type']}")
    named += [
        f"params.{name}" for name in ("web_search_options", "audio", "prediction") if params.get(name) is not None
    ]
    if params.get("modalities") not in (None, ["text"], ("text",)):
        named.append("params.modalities")
    if params.get("service_tier") and params["service_tier"] not in _BOUND_TIERS:
        named.append(f"params.service_tier: {params['service_tier']}")
    models = (job.model.name or "", *job.model.fallbacks)
    return (*named, *(f"the model variant {name}" for name in models if name.endswith((":online", ":nitro"))))
