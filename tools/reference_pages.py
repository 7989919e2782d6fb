"""Write docs/reference/ from the code: `python tools/reference_pages.py`."""  # noqa: INP001  (a script)

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import orjson

from batchrun.checkpoint import schema as tables
from batchrun.cli.main import COMMANDS, cli
from batchrun.errors import ExitCode
from batchrun.job import json_schema
from batchrun.table import DETAIL_TYPES

MADE = "<!-- made from the code by `python tools/reference_pages.py` -->\n"

DETAILS: Mapping[str, str] = {
    "status": "`ok` (also where the model failed and a person answered), `failed`, `pending` (to be asked, or asked "
    "again) or `skipped` (left out by `input.where`)",
    "error_code": "the API's code, 400 to 599, from the HTTP status or from an error inside a 200; null where the "
    "failure is local",
    "error_type": "the name in [the table of errors](errors.md); on every failed row, and on a pending one that had "
    "an attempt",
    "error_message": "the server's own words, at most 2,000 characters",
    "http_status": "the last reply's HTTP status",
    "attempts": "requests sent for this question, over all runs",
    "model": "the model that really answered",
    "provider": "the provider behind OpenRouter",
    "finish_reason": "why the model stopped",
    "prompt_tokens": "tokens of the prompt, as the server counted them",
    "completion_tokens": "tokens of the answer",
    "cached_tokens": "tokens of the prompt that were read from the provider's prompt cache",
    "cache_write_tokens": "tokens of the prompt that were written to the provider's prompt cache",
    "service_tier": "the tier that served the request, such as `flex` or `default`, where the server says it",
    "cost_usd": "all money for this question, failed attempts and repairs included, on the question's first row; empty "
    "where nobody knows what was billed",
    "latency_s": "seconds from sending to the whole reply, of the last attempt",
    "generation_id": "the server's id of the answer",
    "finished_at": "when the question was settled, UTC",
    "key": "the question's identity, 32 hexadecimal digits",
    "answer_raw": "what the model wrote, where the row is not ok",
    "reasoning": "what the model thought before its answer, where the server returns it; null for answers that came "
    "before the job named this detail",
    "citations": "the web pages that the answer cites, as the server's annotations name them: a list of structs `url`, "
    "`title`, `content`, `start_index`, `end_index` (JSON text in CSV); null as with `reasoning`",
    "corrected": "true where a person corrected the answer, false where one confirmed it, else null",
}


EXIT_CODES = {
    "DONE": ("everything that was asked for is done", "nothing"),
    "SOME_FAILED": ("finished, some rows failed", "read `error_type`; then `batchrun retry JOB`"),
    "USER": ("the command, the job file, the key or the input is wrong", "fix what the message names"),
    "STOPPED_BY_API": (
        "stopped by the API: credentials, credit, quota, an outage, or a rate limit where `limits.attempts` is 1",
        "correct what the last lines name, or wait until the time that they name; the same command resumes",
    ),
    "STOPPED_BY_LIMIT": (
        "stopped by a limit of the job: cost, failures, deadline",
        "the same command resumes; after `limits.max_failed`, or a cap below one question, correct or raise that first",
    ),
    "STORAGE": (
        "the disk, the checkpoint or a server of batchrun's own failed",
        "free space or fix the disk; the same command resumes",
    ),
    "WAITING": ("a provider's batch is not done yet", "the same command collects it later"),
    "BUG": ("an internal error", "report it with the output of `--debug`"),
    "BUSY": ("this job is already running", "nothing"),
    "SIGINT": ("interrupted by Ctrl-C", "the same command resumes"),
    "SIGTERM": ("interrupted by SIGTERM or a closed terminal", "the same command resumes"),
}
"""What each exit code means and what to do about it, by its name in errors.py."""


def pages() -> dict[str, str]:
    """Return every page by its file name."""
    return {
        "job.schema.json": orjson.dumps(json_schema(), option=orjson.OPT_INDENT_2).decode() + "\n",
        "job-file.md": "\n".join(_job_file()),
        "commands.md": "\n".join(_commands()),
        "columns.md": "\n".join(_columns()),
        "checkpoint.md": "\n".join(_checkpoint()),
    }


def _job_file() -> Iterator[str]:
    whole = json_schema()
    yield "# The job file\n"
    yield MADE
    yield "Relative paths are relative to the job file. `${VAR}` expands in paths, the endpoint, the model's name and"
    yield "headers; `$$` is a dollar. The JSON Schema for editors is [job.schema.json](job.schema.json).\n"
    yield from _table(whole, "", whole)


def _table(part: Mapping[str, Any], path: str, whole: Mapping[str, Any]) -> Iterator[str]:
    yield from ("| key | type | default | meaning |", "| --- | --- | --- | --- |")
    inner: list[tuple[str, Mapping[str, Any]]] = []
    for name, field in part["properties"].items():
        required = name in part.get("required", ())
        default = "**required**" if required else _default(field)
        yield f"| `{path}{name}` | {_type(field, whole)} | {default} | {_cell(field.get('description', ''))} |"
        inner += [(f"{path}{name}.", found) for found in _objects(field, whole)]
    yield ""
    for where, found in inner:
        yield f"## `{where.removesuffix('.')}`\n"
        yield _cell(found.get("description", "")) + "\n"
        yield from _table(found, where, whole)


def _default(field: Mapping[str, Any]) -> str:
    default = field.get("default")
    return "" if default is None or isinstance(default, dict) else f"`{str(default).lower()}`"


def _objects(field: Mapping[str, Any], whole: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "$ref" in field:
        found = whole["$defs"][field["$ref"].rpartition("/")[2]]
        if "properties" in found:
            yield found
    for choice in (*field.get("anyOf", ()), *(field[key] for key in ("items",) if isinstance(field.get(key), dict))):
        yield from _objects(choice, whole)


def _type(field: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    if "$ref" in field:
        return _type(whole["$defs"][field["$ref"].rpartition("/")[2]], whole)
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(choice, whole) for choice in field["anyOf"]))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}), whole)}"
    kinds = field.get("type", "anything")
    names = {"object": "mapping", "string": "text"}
    return " or ".join(names.get(kind, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _commands() -> Iterator[str]:
    yield "# Commands\n"
    yield MADE
    yield "```text"
    context = click.Context(cli, info_name="batchrun", **{**cli.context_settings, "terminal_width": 100})
    yield context.get_help()
    yield "```\n"
    for name in COMMANDS:
        command = cli.get_command(context, name)
        if command is not None:
            yield f"## batchrun {name}\n"
            yield "```text"
            yield click.Context(command, context, info_name=name).get_help()
            yield "```\n"
    yield "## Exit codes\n"
    yield from ("| code | meaning | what to do |", "| --- | --- | --- |")
    for name, code in vars(ExitCode).items():
        if isinstance(code, int):
            yield "| {} | {} | {} |".format(code, *EXIT_CODES[name])
    yield ""


def _columns() -> Iterator[str]:
    yield "# Columns of the output\n"
    yield MADE
    yield "The output has exactly the input's rows in the input's order: the kept input columns (`output.keep`) with"
    yield "their types, the answer's columns, then the details that `output.details` chooses. `output.prefix` is put"
    yield "before each new name. A decision model's column NAME is followed by NAME_prob, the answer's probability,"
    yield "and with the detail `probabilities` by NAME_probs, a struct of all labels; `output.review_below` adds"
    yield "`needs_review`: true where any probability of the row is below it, false where a person reviewed the row,"
    yield "and null if a probability is missing and no other is low. A row without an answer has nulls in the answer's"
    yield "columns.\n"
    yield from ("| detail | type | meaning |", "| --- | --- | --- |")
    for name, dtype in DETAIL_TYPES.items():
        yield f"| `{name}` | {str(dtype).split('(')[0]} | {DETAILS[name]} |"
    yield ""
    yield from _texts()


TEXTS = (
    ("text, enum, categorical", "as it is; a number in JSON Lines and JSON as the file writes it (2.50)"),
    ("integer", "its digits"),
    ("float", "the shortest digits that mean this number: 0.1; a 32-bit float as 2.7"),
    ("decimal", "its digits with all places: 1.50"),
    ("boolean", "true or false"),
    ("date, time", "2024-12-31, 23:59:59"),
    ("datetime", "2024-12-31 23:59:59, with its offset where it has one"),
    ("duration", "ISO 8601: P1DT2H; not inside lists and structs"),
    ("list, struct, map", "JSON"),
    ("calendar interval (DuckDB)", "no prompt and no output can hold it; `cast(d as varchar)` can be held"),
    ("binary", "its text, if all values of the column are UTF-8; otherwise no prompt can use the column"),
    ("null", "an error of the row, unless the template has a default"),
)


def _texts() -> Iterator[str]:
    yield "## How a cell becomes text in a prompt\n"
    yield 'How a row is rendered depends on that row alone. An empty cell of a CSV file and `""` are null. A column'
    yield "of a JSON Lines or JSON file gets the narrowest type that holds all of its values; text holds mixed ones."
    yield "A column without any value is text in the output, and any type in `input.where`. Where one of several files"
    yield "has a column without any value, the other files decide its type."
    yield "A cell of an Excel workbook has its own type, whatever the other cells of its column are: a whole number is"
    yield "3, a moment at midnight is 2024-12-31, a time without a day is 23:59:59, a time span is 30:05:00. A cell"
    yield "with an error or an empty text is null. Rows without any cell are passed over.\n"
    yield from ("| type | text in a prompt |", "| --- | --- |")
    for name, text in TEXTS:
        yield f"| {name} | {text} |"
    yield ""


def _checkpoint() -> Iterator[str]:
    yield "# The checkpoint's tables\n"
    yield MADE
    yield "The checkpoint is one SQLite file, `.batchrun/NAME.sqlite` beside the job file. Its tables are public: money"
    yield "is in picodollars (10⁻¹² USD), times are Unix seconds, a position is a row's number in the input from 0."
    yield "Read it with any tool, also during a run; only batchrun writes to it.\n"
    yield "```sh"
    yield "sqlite-utils rows jobs/.batchrun/reviews.sqlite results --limit 3"
    yield "datasette jobs/.batchrun/reviews.sqlite"
    yield "```\n"
    yield "```sql"
    yield from (f"{statement.strip()};" for statement in tables.TABLES)
    yield "```\n"


if __name__ == "__main__":
    folder = Path(__file__).parents[1] / "docs" / "reference"
    folder.mkdir(exist_ok=True)
    for file_name, text in pages().items():
        (folder / file_name).write_text(text, encoding="utf-8")
