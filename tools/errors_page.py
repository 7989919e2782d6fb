"""Write docs/reference/errors.md from the table of codes: `python tools/errors_page.py`."""  # noqa: INP001  (a script)

from pathlib import Path

from batchrun.api.codes import TABLE, Action, Count, Ending

LOCAL = {"template_error", "request_too_large", "image_error", "file_error", "schema_mismatch"}

HEAD = """\
# How a row can end

<!-- made from batchrun/api/codes.py by `python tools/errors_page.py` -->

The names are the values of the output's column `error_type`. The code is the one that the API usually sends. The column
`error_code` holds the code that came, as the HTTP status or inside a 200; it is empty where the failure is local.

- **Now** says what the run does: retry (how often), close the gate for all requests for a while, fail the row, or stop
  the run. After a stop all rows that are not done stay pending, and the same command resumes with them.
- **Next run** says whether the next run asks a failed row again by itself. `batchrun retry JOB` asks the others.
- **Slows** marks what lowers the number of requests in flight with `limits.concurrency: auto`.
- **May be billed** marks attempts whose cost nobody reported: what was reserved for them stays reserved under a cap. So
  does a 504 or 524 in a job with `model.price`: the model behind the gateway may have answered.

While other questions are open, one row alone stops no run. A run stops, or waits for more than a minute, only after
three different questions are refused (two, if nothing has succeeded yet). The last of them is sent alone, after the
others were refused. If a request that was sent later succeeds, the refused question is asked again, after a long wait
when all others are settled. After its third refusal its row fails as `refused_alone`, after a long wait at the end as
`rate_limited`.

Rate limits cost no attempt. A wait that the server asks for is kept. A wait of more than an hour stops the run. After
`limits.breaker` equal failures in a row that blame nobody (unknown below), without any success between them, requests
go one at a time; 15 more such failures stop the run, and these rows stay pending. A lost reply that may be billed is
asked for once more, and a third time only where no other question has succeeded meanwhile.

Failures of the server (a web page, 5xx, lost or broken replies, no connection) fail no row before another question has
succeeded after them. Without that they are an [outage](../explanation/reliability.md#outages): ten different questions
that failed in a row, or all that are open. If fewer than ten questions are open, the run waits 45 seconds for the
server (30 if a failure may be billed). Then these rows fail; the next run asks them again, after all others.
"""

COLUMNS = ("error_type", "code", "what it means", "what to do", "blames", "now", "next run", "slows", "may be billed")


def errors_page() -> str:
    """Return the whole page."""
    answered = [ending for ending in TABLE.values() if ending.name not in LOCAL]
    local = [ending for ending in TABLE.values() if ending.name in LOCAL]
    return "\n".join(
        (
            HEAD,
            "## Reported by the server or the network\n",
            *_table(answered),
            "\n## Found by batchrun\n",
            *_table(local),
            "",
        )
    )


def _table(endings: list[Ending]) -> list[str]:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    return lines + ["| " + " | ".join(_cells(ending)) + " |" for ending in endings]


def _cells(ending: Ending) -> list[str]:
    now = ending.action.value
    if ending.count is not Count.NONE:
        then = f", then {ending.exhausted.value}" if ending.count is not Count.TIME else ""
        now = f"{now} ({ending.count.value}){then}" if ending.action is not Action.CONFIRM else now
    return [
        f"`{ending.name}`",
        str(ending.code or ""),
        ending.means,
        ending.do.replace("|", "\\|"),
        ending.blames.value,
        now,
        "asks again" if ending.again else "",
        "yes" if ending.slows else "",
        "yes" if ending.maybe_billed else "",
    ]


if __name__ == "__main__":
    (Path(__file__).parents[1] / "docs" / "reference" / "errors.md").write_text(errors_page(), encoding="utf-8")
