"""What is known to be wrong today: kind of fault -> why, and the issue that mends it.

A life that fails and holds such a kind is counted, not failed. An entry is deleted when its fix lands.
"""

from oracle.lives import Life
from oracle.server import KINDS

EXPECTED: dict[str, str] = {
    "!busy": "one row that always gets 429 holds the run for 15 minutes (18)",
    "weather outage": "an outage fails rows (18)",
    "weather dead": "an outage fails rows (18)",
    "numbers of JSONL in the prompt": "how a JSONL number is rendered depends on other rows (16.2)",
    "boolean in the prompt": "a boolean is rendered as True, not by the table (16.2)",
    "single in the prompt": "a Float32 is rendered as 2.700000047683716 (16.2)",
    "list in the prompt": "a list is rendered as a Python repr (16.2)",
    '"" in CSV': 'a quoted empty cell is the empty text, not null (16.2, "Leaves")',
    "mixed JSONL": "a JSONL number in a column of texts is not as written (16.2)",
    "empty lists": "a list column that is null in a whole row group can not be written (found by the oracle)",
}


def kinds(life: Life) -> set[str]:
    """Return the kinds of faults that a life may meet."""
    texts = {row[life.names[0]] for row in life.all_rows()}
    found = {f"!{kind}" for kind in KINDS if f"row !{kind}" in texts}
    found |= {f"weather {step.weather.kind}" for step in life.steps} | {step.what for step in life.steps}
    if life.template == 2:  # the one that prints the extra column
        found.add(f"{life.extra} in the prompt")
        if life.format == "jsonl" and life.extra == "number":
            found.add("numbers of JSONL in the prompt")
    if life.format in {"csv", "tsv"} and "" in texts:
        found.add('"" in CSV')
    if life.extra == "mixed":
        found.add("mixed JSONL")
    if life.combination["answer"] == "loose" and life.combination["output"] in {"parquet", "arrow"}:
        found.add("empty lists")
    return found


def excused(life: Life, problem: str) -> list[str]:
    """Return the reasons for which a failure of this life is expected."""
    found = kinds(life)
    if "(Null) to (Field" not in problem:
        found.discard("empty lists")
    return [EXPECTED[kind] for kind in sorted(found & EXPECTED.keys())]
