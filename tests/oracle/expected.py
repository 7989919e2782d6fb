"""What is known to be wrong today: kind of fault -> why, and the issue that mends it.

A life that fails and holds such a kind is counted, not failed. An entry is deleted when its fix lands.
"""

from oracle.lives import Life
from oracle.server import KINDS

EXPECTED: dict[str, str] = {
    "!busy": "when a lone row that always gets 429 ends a run with exit 3 is not in the model yet",
    "weather outage": "how often few rows are probed in an outage is not in the model yet",
    "weather dead": "how often few rows are probed in an outage is not in the model yet",
    "weather lossy": "how often a lost reply is bought while nothing succeeds is not in the model yet",
}


def kinds(life: Life) -> set[str]:
    """Return the kinds of faults that a life may meet."""
    texts = {row[life.names[0]] for row in life.all_rows()}
    found = {f"!{kind}" for kind in KINDS if f"row !{kind}" in texts}
    found |= {f"weather {step.weather.kind}" for step in life.steps} | {step.what for step in life.steps}
    return found


def excused(life: Life, problem: str) -> list[str]:
    """Return the reasons for which a failure of this life is expected."""
    del problem  # no reason depends on the message now
    return [EXPECTED[kind] for kind in sorted(kinds(life) & EXPECTED.keys())]
