"""`batchrun preview`: the exact requests, how many there are, what they will cost; nothing is sent or written."""

from pathlib import Path

import orjson
import pytest
from command_line import JOB, Command, command, files, job, openrouter, simulator
from simulator_server import Running

from batchrun.forecast.likely import likely_seconds
from batchrun.job import Limits

__all__ = ["command", "job", "openrouter", "simulator"]

pytestmark = pytest.mark.usefixtures("openrouter")


def line(out: str, start: str) -> str:
    """Return the line that begins so."""
    return next(found for found in out.splitlines() if found.startswith(start))


def test_the_request_is_the_one_that_is_sent(command: Command, job: Path, openrouter: Running) -> None:
    """Roles, texts and every other field of the first request are those of the body that the server then gets."""
    shown = command("preview", str(job), "-n", "1").out
    openrouter.change(keep_requests=10)
    assert command("run", str(job), "--limit", "1", "--quiet").code in {0, 1}
    body = orjson.loads(openrouter.counters.recorded[0].body)
    for message in body.pop("messages"):
        assert f"  {message['role']}:\n    {message['content']}\n" in shown
    for name, value in body.items():
        assert f"  {name}: {orjson.dumps(value).decode()}\n" in shown


def test_nothing_is_asked_and_nothing_is_written(
    command: Command, job: Path, openrouter: Running, tmp_path: Path
) -> None:
    """Before the first run and after it, a preview leaves no file and asks no model."""
    before = files(tmp_path)
    assert command("preview", str(job)).code == 0
    assert files(tmp_path) == before
    command("run", str(job), "--quiet")
    before, asked = files(tmp_path), openrouter.counters.requests
    assert command("preview", str(job)).code == 0
    assert files(tmp_path) == before
    assert openrouter.counters.requests == asked


def test_rows_are_counted_as_a_run_would_ask_them(command: Command, job: Path) -> None:
    """Equal questions count once, rows without a question not at all; what is answered is no longer to ask."""
    out = command("preview", str(job)).out
    assert "4 rows: 1 could not be rendered, 3 to ask; 2 requests (equal questions are asked once)\n" in out
    assert "  template_error: 1 row could not be rendered, first row 4: " in out
    command("run", str(job), "--limit", "1", "--quiet")
    assert "4 rows: 2 answered, 1 could not be rendered, 1 to ask; 1 request\n" in command("preview", str(job)).out
    command("run", str(job), "--quiet")
    assert "Nothing to do: no row is left to ask." in command("preview", str(job)).out


def test_rows_of_json_that_lack_fields_are_known_again(command: Command, job: Path) -> None:
    """Answered rows whose objects lack fields are answered in a preview, too, where the prompt shows the whole row."""
    (job.parent / "rows.jsonl").write_text('{"id": 1, "text": "a", "x": 5}\n{"id": 2, "text": "b"}\n{"text": "c"}\n')
    job.write_text(JOB.replace("rows.csv", "rows.jsonl").replace("{{ text }}", "{{ row | tojson }}"))
    command("run", str(job), "--quiet")
    assert "3 rows: 3 answered, 0 to ask; 0 requests\n" in command("preview", str(job)).out


def test_an_edited_prompt_and_an_appended_row_are_counted_before_the_run(command: Command, job: Path) -> None:
    """The checkpoint's answers count by content: a new row is one request, a new wording is all, the old one none."""
    command("run", str(job), "--quiet")
    with (job.parent / "rows.csv").open("a") as file:
        file.write("5,new\n")
    assert "1 to ask; 1 request" in command("preview", str(job)).out
    job.write_text(JOB.replace("Review:", "Text:"))
    assert "5 rows: 1 could not be rendered, 4 to ask; 3 requests" in command("preview", str(job)).out
    job.write_text(JOB)
    assert "1 to ask; 1 request" in command("preview", str(job)).out


def test_without_dedupe_each_row_is_a_request(command: Command, job: Path) -> None:
    """dedupe: false makes as many requests as rows, and answers are kept by number."""
    job.write_text(JOB + "dedupe: false\n")
    assert "3 to ask; 3 requests\n" in command("preview", str(job)).out
    command("run", str(job), "--limit", "2", "--quiet")
    assert "2 answered, 1 could not be rendered, 1 to ask; 1 request" in command("preview", str(job)).out


@pytest.mark.parametrize(("row", "text"), [(1, "Review: fine"), (2, "Review: bad")])
def test_one_row_is_shown_by_its_number_from_1(command: Command, job: Path, row: int, text: str) -> None:
    """--row N shows the N-th row of the input, and no other request."""
    out = command("preview", str(job), "--row", str(row)).out
    assert out.startswith(f"row {row}\n")
    assert f"    {text}\n" in out
    assert out.count("  user:\n") == 1
    assert f"row {row} is to be asked" in out


def test_a_rows_state_is_reported(command: Command, job: Path) -> None:
    """A row that is answered, left out, or can't be asked says so."""
    command("run", str(job), "--quiet")
    assert "row 1 is answered" in command("preview", str(job), "--row", "1").out
    assert command("preview", str(job), "--row", "4").out.startswith("row 4 could not be rendered (template_error): ")
    job.write_text(JOB.replace("path: rows.csv", "path: rows.csv\n  where: id = '1'"))
    assert "row 2 is filtered out by input.where" in command("preview", str(job), "--row", "2").out


def test_a_row_beyond_the_end_is_a_mistake(command: Command, job: Path) -> None:
    """--row 5 of four rows ends with one line and exit 2."""
    ended = command("preview", str(job), "--row", "5")
    assert (ended.code, ended.err) == (2, "error: --row 5: the input has fewer rows\n")


def test_text_of_a_row_is_escaped(command: Command, job: Path) -> None:
    """Escape and bidi characters of a cell reach the terminal as escapes; its lines stay below their role."""
    (job.parent / "rows.csv").write_text('id,text\n1,"a\x1b[2J\u202e\nsystem: b"\n')
    out = command("preview", str(job)).out
    assert "    Review: a\\x1b[2J\\u202e\n    system: b\n" in out


def test_an_image_is_shown_as_its_path(command: Command, job: Path) -> None:
    """A preview shows where an image lies, not its bytes; the cost has no upper bound and that is said."""
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\10\6\0\0\0\x1f\x15\xc4\x89"
    (job.parent / "x.png").write_bytes(png)
    parts = '"{{ text }}"}, {image: "x.png"}]}]\n'
    job.write_text(JOB.replace("  system: You label.\n", "").replace(
        'user: "Review: {{ text }}"\n', "messages: [{role: user, content: [{text: " + parts))  # fmt: skip
    out = command("preview", str(job)).out
    assert "    fine\n    [image] x.png\n" in out
    assert "no upper bound (an image in the prompt)" in out


def test_the_worst_case_holds(command: Command, job: Path, openrouter: Running) -> None:
    """What the server bills for all rows is at most the worst case that was named."""
    text = line(command("preview", str(job)).out, "cost:")
    worst = float(text.split("at most $")[1].split()[0])
    command("run", str(job), "--quiet")
    assert 0 < openrouter.counters.billed_pico / 1e12 <= worst


def test_an_estimate_follows_the_jobs_own_answers(command: Command, job: Path, openrouter: Running) -> None:
    """After some answers likely tokens are within a tenth of what the rest then uses."""
    rows = "".join(f"{number},word {number} and another\n" for number in range(200))
    (job.parent / "rows.csv").write_text(f"id,text\n{rows}")
    command("run", str(job), "--limit", "50", "--quiet")
    before = openrouter.counters.prompt_tokens
    tokens = line(command("preview", str(job)).out, "tokens:")
    command("run", str(job), "--quiet")
    prompts = int(tokens.split()[2].replace(",", ""))
    assert prompts == pytest.approx(openrouter.counters.prompt_tokens - before, rel=0.1)


def test_an_unknown_price_is_reported(command: Command, job: Path) -> None:
    """Where no list has the model's price, the cost says so and how to set one."""
    job.write_text(JOB.replace("gpt-4o-mini", "gpt-9"))
    assert 'cost: unknown: no price is known for "openai/gpt-9"; set model.price' in command("preview", str(job)).out


def test_a_large_input_is_extrapolated_from_a_sample(
    command: Command, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more rows than a sample holds, rows are exact, and distinct questions and tokens are near the truth."""
    monkeypatch.setattr("batchrun.forecast.survey.SAMPLE", 500)
    rows = "".join(f"{number},word {number % 600}\n" for number in range(12_000))
    (job.parent / "rows.csv").write_text(f"id,text\n{rows}")
    out = command("preview", str(job)).out
    assert out.startswith("row 1\n")
    assert "\nrow 2\n" in out
    assert "12,000 rows: about 12,000 to ask; about " in out
    questions = int(line(out, "12,000 rows").split("; about ")[1].split()[0].replace(",", ""))
    assert questions == pytest.approx(600, rel=0.1)
    unique = "".join(f"{number},word {number}\n" for number in range(12_000))
    (job.parent / "rows.csv").write_text(f"id,text\n{unique}")
    assert "about 12,000 requests" in command("preview", str(job)).out


def test_the_time_is_that_of_the_real_concurrency(command: Command, job: Path) -> None:
    """The local model answers 4 requests at once, whatever the job's ceiling; `auto` elsewhere is a lower bound."""
    assert "time: at least " in command("preview", str(job)).out
    out = command("preview", str(job), "--endpoint", "local").out
    assert line(out, "time:").endswith("(4 in flight)")


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        (Limits(concurrency=10), 200.0),
        (Limits(concurrency=10, requests_per_minute=60), 1_000.0),
        (Limits(concurrency=10, requests_per_minute=60, tokens_per_minute=1_000), 6_000.0),
    ],
)
def test_the_slowest_limit_makes_the_time(limits: Limits, seconds: float) -> None:
    """A thousand requests of 2 s take as long as concurrency, requests or tokens a minute allow."""
    assert likely_seconds(1_000, 100_000, 2.0, limits, 10) == seconds


LONG = "A late parcel is bad, a nice colour is good. "


def cached_job(job: Path, model: str, system: str, user: str, more: str = "") -> None:
    """Write the job with another prompt and model; `more` goes below `model`."""
    prompt = orjson.dumps({"system": system, "user": user}).decode()
    text = JOB.replace('prompt:\n  system: You label.\n  user: "Review: {{ text }}"\n', f"prompt: {prompt}\n")
    job.write_text(text.replace("openai/gpt-4o-mini\n", f"{model}\n  params: {{max_tokens: 10}}\n{more}"))


def test_the_prompt_cache_is_priced(command: Command, job: Path) -> None:
    """What is constant, from how many tokens the model caches it, and the likely price with the cache and without."""
    rows = "".join(f"{number},text {number}\n" for number in range(100))
    (job.parent / "rows.csv").write_text(f"id,text\n{rows}")
    cached_job(job, "anthropic/claude-sonnet-4.5", LONG * 267, "Review: {{ text }}")
    out = command("preview", str(job)).out
    begin = "prompt cache: all requests begin with the same text, about"
    assert line(out, begin).startswith(
        f"{begin} 3,004 tokens; anthropic/claude-sonnet-4.5 caches it from 1,024 tokens on"
    )
    # 100 requests of 3,055 tokens and 20 for the answer at $3 and $15; of each but one 3,004 are read at $0.3
    assert line(out, "cost: ").startswith("cost: likely $0.1345 with the prompt cache, $0.9352 without it, at most $")
    assert f"{begin} 3,004" in command("check", str(job)).out.replace("ok       ", "")
    cached_job(job, "anthropic/claude-sonnet-4.5", LONG * 267, "Review: {{ text }}", "  prompt_cache: false\n")
    out = command("preview", str(job)).out
    assert line(out, begin).endswith("3,004 tokens; it is not used (model.prompt_cache)")
    assert line(out, "cost: ").startswith("cost: likely $0.9352, at most $")


def test_what_could_be_cached_is_named(command: Command, job: Path) -> None:
    """Where a model caches only what is marked, rules in the text of the row are to be moved; short ones are short."""
    cached_job(job, "anthropic/claude-sonnet-4.5", LONG * 20, LONG * 200 + "Review: {{ text }}")
    found = line(command("preview", str(job)).out, "prompt cache: ")
    assert "about 225 tokens; anthropic/claude-sonnet-4.5 caches it from 1,024 tokens on; the next text" in found
    assert found.endswith("begins with 2,252 more: move them into prompt.system to have them cached")
    cached_job(job, "openai/gpt-4.1", LONG * 20, LONG * 200 + "Review: {{ text }}")
    assert "about 2,477 tokens; openai/gpt-4.1 caches it from" in line(
        command("preview", str(job)).out, "prompt cache: "
    )
    cached_job(job, "openai/gpt-4.1", "You label.", LONG * 60 + "Review: {{ text }}")
    assert line(command("preview", str(job)).out, "prompt cache: ").endswith("caches it from 1,024 tokens on")
    cached_job(job, "meta-llama/llama-3.2-1b-instruct", LONG * 200, "Review: {{ text }}")
    assert "not known to have one" in line(command("preview", str(job)).out, "prompt cache: ")


def test_the_flex_tier_is_priced(command: Command, job: Path) -> None:
    """The likely price of the tier that was asked for is named; the cap counts the full price."""
    job.write_text(JOB.replace("gpt-4o-mini", "gpt-5-mini\n  params: {service_tier: flex, max_tokens: 10}"))
    out = command("preview", str(job)).out
    assert line(out, "cost: ").startswith("cost: likely $0.000073, at most $")
    assert line(out, "service tier: ").startswith("service tier: flex costs half at most providers, likely $0.000036;")
