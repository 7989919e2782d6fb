"""Decision models in whole jobs: typed labels with probabilities, one key for one question, exact books."""

import sqlite3
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from command_line import Command, command
from job_running import Ran, run, write_job
from openrouter.decisions import BUILD, MODEL, deciding
from simulator_server import running

from batchrun.errors import JobFileError, UserError
from batchrun.job import RunOptions
from batchrun.prepare.children import simulator
from batchrun.runner.progress import Ui

__all__ = ["command"]

COLUMNS: dict[str, Any] = {
    "team": {"values": {"payments": "Checkout or billing", "account": "Login", "none": None}, "description": "Whose?"},
    "is_bug": {"type": "boolean", "description": "Is it a defect?"},
    "urgency": {"values": ["low", "soon", "now"], "ordered": True},
}
ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["payments are broken now", "my account, low", "something else", "broken again, soon"]
SYSTEMONE, ALPHA, LIST = "/v1/systemone", "/api/alpha/decisions", "/v1/decisions"


def decide(
    folder: Path,
    url: str,
    *,
    rows: int | list[str] = TEXTS,
    mode: str = "decision",
    ui: Ui | None = None,
    **sections: Any,  # noqa: ANN401  (JSON)
) -> Ran:
    answer = {"columns": COLUMNS, "mode": mode} | sections.pop("answer", {})
    sections = {"prompt": {"user": "{{ text }}"}, "model": MODEL} | sections
    return run(write_job(folder, url, rows=rows, answer=answer, **sections), ui=ui)


class Heard(Ui):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def keys(folder: Path) -> list[bytes]:
    with sqlite3.connect(folder / ".batchrun" / "job.sqlite") as database:
        return [key for (key,) in database.execute("SELECT key FROM rows ORDER BY position")]


def columns_of(ran: Ran) -> dict[str, list[Any]]:
    names = [name for column in COLUMNS for name in (column, f"{column}_prob")]
    return {name: ran.column(name) for name in names}


@pytest.mark.parametrize(
    ("path", "base"), [(SYSTEMONE, "/v1"), (LIST, LIST), (ALPHA, "/api/v1"), ("/api/v1/systemone", "/api/v1")]
)
def test_each_form_of_the_wire_gives_the_same_answers(tmp_path: Path, path: str, base: str) -> None:
    """A map of questions, OpenRouter's address after a 404 and OpenAI's list give equal labels and probabilities."""
    with deciding(path) as server:
        ran = decide(tmp_path, server.url + base, prompt={"user": None, "state": {"body": "{{ text }}"}})
        assert ran.summary.exit_code == 0, ran.summary.reason
        assert len(server.books.bodies) == len(TEXTS)
    found = columns_of(ran)
    assert found["team"][:2] == ["payments", "account"]
    assert found["is_bug"] == [True, False, False, True]
    assert found["is_bug_prob"] == [0.93] * 4
    assert [found["urgency"][at] for at in (0, 1, 3)] == ["now", "low", "soon"]
    assert all(0.5 < value <= 1 for value in found["team_prob"][:2])
    assert ran.output is not None
    assert ran.output.schema["team"] == pl.Enum(["payments", "account", "none"])


def test_the_request_is_what_the_contract_says(tmp_path: Path) -> None:
    """The system prompt stands before each description, a column without one is asked by its name, nothing is added."""
    with deciding(SYSTEMONE) as server:
        decide(tmp_path, f"{server.url}/v1", rows=["x"], prompt={"system": "Sort mails.", "user": "{{ text }}"})
    assert server.books.bodies == [
        {
            "model": MODEL,
            "state": "x",
            "questions": {
                "team": {
                    "type": "choice",
                    "instructions": "Sort mails.\n\nWhose?",
                    "criteria": {"payments": "Checkout or billing", "account": "Login", "none": None},
                },
                "is_bug": {"type": "noul", "instructions": "Sort mails.\n\nIs it a defect?"},
                "urgency": {
                    "type": "score",
                    "instructions": "Sort mails.\n\nurgency",
                    "criteria": ["low", "soon", "now"],
                },
            },
        }
    ]


def test_an_empty_text_is_not_decided_on(tmp_path: Path) -> None:
    """A model would answer it, with probabilities."""
    with deciding(SYSTEMONE) as server:
        ran = decide(tmp_path, f"{server.url}/v1", rows=["x", "", " "])
        assert len(server.books.bodies) == 1
    assert ran.column("error_type") == [None, "template_error", "template_error"]


def test_probabilities_reviews_and_the_build_are_written(tmp_path: Path) -> None:
    """The detail `probabilities` has those of all labels, adding up to 1; needs_review marks a low one; null: none."""
    output = {"review_below": 0.6, "details": ["status", "model", "probabilities", "cost_usd"]}
    with deciding(SYSTEMONE) as server:
        ran = decide(tmp_path, f"{server.url}/v1", output=output)
    for name in COLUMNS:
        for label, best, all_of_them in zip(
            ran.column(name), ran.column(f"{name}_prob"), ran.column(f"{name}_probs"), strict=True
        ):
            assert sum(all_of_them.values()) == pytest.approx(1, abs=1e-5)
            assert all_of_them[str(label).lower()] == best
    low = [min(row) < 0.6 for row in zip(*(ran.column(f"{name}_prob") for name in COLUMNS), strict=True)]
    assert ran.column("needs_review") == low
    assert set(low) == {True, False}
    assert ran.column("model") == [BUILD] * 4
    with deciding(SYSTEMONE, bare=True) as server:
        ran = decide(tmp_path, f"{server.url}/v1", output=output, answer={"columns": {"team": COLUMNS["team"]}})
    assert ran.column("team")[0] == "payments"
    assert ran.column("team_prob") == ran.column("team_probs") == ran.column("needs_review") == [None] * 4


def test_a_chat_model_gives_the_same_answer_columns(tmp_path: Path) -> None:
    """The same file with another mode has the same answer columns and types, no probabilities, and one warning."""
    heard, prompt = Heard(), {"user": None, "state": {"a": "{{ text }}", "b": "x"}}
    output = {"review_below": 0.6, "details": ["status", "probabilities"]}
    with running() as simulator:
        chat = decide(tmp_path, simulator.url, mode="schema", ui=heard, prompt=prompt, output=output, model="sim/good")
    with deciding(SYSTEMONE) as server:
        made = decide(tmp_path, f"{server.url}/v1", prompt=prompt, output=output, checkpoint="other.sqlite")
    assert chat.output is not None
    assert made.output is not None
    assert {name: made.output.schema[name] for name in chat.output.columns} == dict(chat.output.schema)
    assert set(made.output.columns) - set(chat.output.columns) == {
        f"{name}_{end}" for name in COLUMNS for end in ("prob", "probs")
    }
    assert chat.column("needs_review") == [None] * 4
    assert len([text for text in heard.warnings if "probabilities" in text]) == 1


def test_a_setting_turns_the_file_into_a_chat_job(tmp_path: Path) -> None:
    """`--set answer.mode=schema` with a chat model writes an output of its own with the same answer columns."""
    with deciding(SYSTEMONE) as server, running() as simulator:
        made = decide(tmp_path, f"{server.url}/v1", output={"details": ["status"]})
        flags = RunOptions(
            settings=("answer.mode=schema",),
            endpoint=simulator.url,
            api_key_env="KEY",
            model="sim/good",
        )
        chat = run(tmp_path / "job.yaml", flags)
    assert made.output is not None
    assert chat.output is not None
    assert chat.summary.exit_code == 0
    assert [name for name in made.output.columns if not name.endswith("_prob")] == chat.output.columns
    assert chat.summary.output != made.summary.output


def test_a_run_that_stops_resumes_and_another_build_is_reported(tmp_path: Path) -> None:
    """A cap stops the run; the next one asks the rest alone, and says that another build answered."""
    heard, limits, model = (
        Heard(),
        {"max_cost_usd": 0.0005, "concurrency": 1},
        {"name": MODEL, "params": {"user": "me"}},
    )
    with deciding("/api/v1/systemone") as server:
        stopped = decide(tmp_path, f"{server.url}/api/v1", rows=20, limits=limits, model=model)
        assert stopped.summary.exit_code == 4
        assert 0 < stopped.summary.ok < 20
        assert server.books.bodies[0]["user"] == "me"
        server.books.build = "maker/judge-1-20261201"
        ended = decide(tmp_path, f"{server.url}/api/v1", rows=20, model=model, ui=heard)
        assert ended.summary.exit_code == 0
        assert len(server.books.bodies) == 20
        assert Decimal(ended.summary.cost_total_usd) == server.books.charged
    assert set(ended.column("model")) == {BUILD, "maker/judge-1-20261201"}
    assert len([text for text in heard.warnings if "different builds" in text]) == 1


def test_the_local_decision_model_labels_reviews(tmp_path: Path) -> None:
    """jobs/triage.yaml works as it is, on real weights: probabilities, rows to look at, most labels right."""
    pytest.importorskip("sparrow_decider")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "sample_data").mkdir()
    lines = (ROOT / "sample_data" / "reviews.csv").read_text().splitlines(keepends=True)[:31]
    (tmp_path / "sample_data" / "reviews.csv").write_text("".join(lines))
    job = tmp_path / "jobs" / "triage.yaml"
    job.write_text((ROOT / "jobs" / "triage.yaml").read_text().replace("triage.csv", "triage.parquet"))
    ran = run(job)
    assert ran.summary.exit_code == 0, ran.summary.reason
    assert ran.summary.cost_usd == 0
    right = [gold == label for gold, label in zip(ran.column("gold"), ran.column("sentiment"), strict=True)]
    assert sum(right) > 20
    assert set(ran.column("needs_review")) >= {True, False}
    with pytest.raises(UserError, match="sparrow-decider is a decision model"):
        run(job, RunOptions(settings=("answer.mode=schema",), yes=True))


def test_the_order_of_options_is_part_of_the_question(tmp_path: Path) -> None:
    """Reversed options, other descriptions, another kind or another model are other questions; limits are not."""
    forms: list[dict[str, Any]] = [
        {"values": ["a", "b"]},
        {"values": ["b", "a"]},
        {"values": {"a": "x", "b": None}},
        {"values": ["a", "b"], "ordered": True},
        {"values": ["a", "b"], "description": "Which?"},
        {"values": ["a", "b"]},
    ]
    found = []
    with deciding(SYSTEMONE) as server:
        for number, form in enumerate(forms):
            folder = tmp_path / str(number)
            folder.mkdir()
            limits = {"max_cost_usd": 1} if number == 5 else {}
            model = {"price": {"prompt": 0.042, "completion": 0}}
            decide(folder, f"{server.url}/v1", rows=["a"], answer={"columns": {"c": form}}, limits=limits, model=model)
            found += keys(folder)
    assert len(set(found)) == 5
    assert found[0] == found[5]


def test_what_a_decision_model_can_not_do_is_a_mistake_with_its_place(tmp_path: Path) -> None:
    """Numbers, texts, lists, nulls, too many options, schemas, repairs, messages and foreign params are refused."""
    many = [f"l{number}" for number in range(256)]
    columns = {
        "number": "integer", "text": "string", "list": ["string"], "null": "boolean?", "stars": [1, 2],
        "many": {"values": many}, "levels": {"values": many[:11], "ordered": True}, "one": {"values": ["a"]},
        "ok": "boolean", "ok_prob": "boolean",
    }  # fmt: skip
    asked = 'labels are texts: write {values: [1, 2]}|the probabilities of "ok" are called ok_prob|remove the null'
    asked += "|not integer|not text|not list|2 to 255 values, not 256|2 to 10 ordered values, not 11|values, not 1"
    around: dict[str, Any] = {
        "answer": {"repairs": 2},
        "model": {"params": {"temperature": 0}, "fallbacks": ["a/b"]},
        "prompt": {"user": "{{ text }}", "state": {"a": "{{ text }}"}},
    }
    more = "remove answer.repairs|takes no temperature|remove model.fallbacks|prompt has user as well as state"
    for sections, words in (({"answer": {"columns": columns}}, asked), (around, more)):
        with pytest.raises(JobFileError) as caught:
            decide(tmp_path, "http://127.0.0.1:9/api/v1", **sections)
        text = str(caught.value)
        assert [one for one in words.split("|") if one not in text] == []
        assert all(line.split(":")[1].isdigit() for line in text.split("\n"))


CHAT_ONLY = {"error": {"code": 501, "message": "This model is not a decision model", "type": "not_supported_error"}}
LOCATED = {"detail": [{"loc": ["body", "questions", "team", "criteria"], "msg": "Field required", "type": "missing"}]}


@pytest.mark.parametrize(
    ("status", "reply", "error"),
    [
        (501, CHAT_ONLY, "answer.mode: schema for a chat model"),
        (422, LOCATED, "Field required"),
        (422, {"detail": {"error_type": "x", "message": "state is bad"}}, "state is bad"),
        (400, {"error": {"code": 400, "message": "too many options (53)", "type": "invalid_request_error"}}, "(53)"),
        (401, {"error": {"code": 401, "message": "No auth"}}, "No auth"),
    ],
)
def test_errors_of_all_servers_stop_or_fail_by_the_one_table(
    tmp_path: Path, status: int, reply: dict[str, Any], error: str
) -> None:
    """A chat model, a refused question, a wrong key: the run stops with the server's words and what to change."""
    with deciding(SYSTEMONE, fault=lambda _: (status, reply)) as server:
        ran = decide(tmp_path, f"{server.url}/v1")
    assert ran.summary.exit_code != 0
    assert error in f"{ran.summary.reason} {ran.summary.advice} {ran.column('error_message')}"
    assert ran.column("team") == [None] * 4


def test_a_decision_model_asked_as_a_chat_model_stops_the_run(tmp_path: Path) -> None:
    """Two refusals of different rows are enough, and the key to change is named."""
    message = f"{MODEL} is a decisions model and cannot be used with the chat/completions endpoint."
    with deciding(
        "/api/v1/chat/completions", fault=lambda _: (400, {"error": {"message": message, "code": 400}})
    ) as server:
        ran = decide(tmp_path, f"{server.url}/api/v1", mode="schema")
    assert (ran.summary.exit_code, ran.summary.requests, ran.summary.pending) == (3, 2, 4)
    assert "set answer.mode: decision" in str(ran.summary.advice)


@pytest.mark.parametrize(
    "answers",
    [
        {"team": {"type": "choice", "choice": "nobody"}, "is_bug": {"noul": 0.5}, "urgency": {"score": 1}},
        {"team": {"type": "choice", "choice": "none"}, "is_bug": {"noul": 2}, "urgency": {"score": 1}},
        {"team": {"type": "choice", "choice": "none"}, "is_bug": {"noul": 0.5}, "urgency": {"score": 3}},
        {"team": {"type": "choice", "choice": "none"}, "is_bug": {"noul": 0.5}},
        {"team": {"type": "box", "left": 1}, "is_bug": {"noul": 0.5}, "urgency": {"score": 1}},
    ],
)
def test_answers_that_fit_no_question_fail_the_row(tmp_path: Path, answers: dict[str, Any]) -> None:
    """A label that was not offered or an answer that is missing is never written; the raw answers are kept."""
    with deciding(SYSTEMONE, fault=lambda _: (200, {"answers": answers, "usage": {"input_tokens": 9}})) as server:
        ran = decide(tmp_path, f"{server.url}/v1", rows=["x"])
    assert ran.column("error_type") == ["schema_mismatch"]
    assert ran.column("attempts") == [1]
    assert '"team"' in ran.column("answer_raw")[0]


def test_levels_without_probabilities_come_from_the_score(tmp_path: Path) -> None:
    """round(score) is the level then, and of equally probable levels the lower one is taken."""
    even = {"urgency": {"type": "score", "score": 2.0, "probabilities": {"0": 0.2, "1": 0.4, "2": 0.4}}}
    for answers, level in ((even, "soon"), ({"urgency": {"type": "score", "score": 1.6}}, "now")):
        (tmp_path / level).mkdir()
        reply = {"answers": answers}
        with deciding(SYSTEMONE, fault=partial(lambda found, _: (200, found), reply)) as server:
            columns = {"urgency": COLUMNS["urgency"]}
            ran = decide(tmp_path / level, f"{server.url}/v1", rows=["x"], answer={"columns": columns})
        assert ran.column("urgency") == [level]


def test_a_refused_question_is_a_refused_row(tmp_path: Path) -> None:
    """OpenAI's model may decline one question of several."""
    answers = [{"type": "refusal", "name": "team"}]
    with deciding(LIST, fault=lambda _: (200, {"answers": answers})) as server:
        ran = decide(tmp_path, server.url + LIST, rows=["x"])
    assert ran.column("error_type") == ["refused"]


def test_a_bill_above_the_estimate_raises_it_and_is_reported(tmp_path: Path) -> None:
    """The first request goes alone; its bill is more than the reserve, which is raised, reported and holds the cap."""
    heard = Heard()
    answers = {"is_bug": {"type": "noul", "noul": 0.9}}
    columns = {"is_bug": COLUMNS["is_bug"]}

    def dear(_: object) -> tuple[int, dict[str, Any]]:
        return 200, {"answers": answers, "usage": {"input_tokens": 100_000, "output_tokens": 0, "cost": 0.0042}}

    with deciding("/api/v1/systemone", fault=dear) as server:
        limits = {"max_cost_usd": 0.05, "concurrency": 4}
        ran = decide(tmp_path, f"{server.url}/api/v1", rows=50, answer={"columns": columns}, limits=limits, ui=heard)
    assert ran.summary.exit_code == 4
    assert ran.summary.requests == 11
    assert Decimal(ran.summary.cost_usd) == Decimal("0.0462")
    assert len([text for text in heard.warnings if "more than the" in text]) == 1


@pytest.mark.parametrize("rows", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_rows_with_four_questions_have_exact_books(tmp_path: Path, rows: int) -> None:
    """Over a cap and a resume each row is sent once with all its questions; what the server charged is what is booked.

    The server's templates cost less than the estimate reserves, so not even what is in flight passes the cap.
    """
    columns, cap = {**COLUMNS, "fourth": "boolean"}, rows * 0.00001
    with simulator() as child:
        usd = partial(_charged, child.url)
        model = {"name": "typesafe/jev-1.13"}
        limits = {"concurrency": 50}
        write = partial(write_job, tmp_path, child.url, rows=rows, model=model, prompt={"user": "{{ text }}"})
        answer = {"mode": "decision", "columns": columns}
        stopped = run(write(answer=answer, limits={**limits, "max_cost_usd": cap}))
        assert stopped.summary.exit_code == 4, stopped.summary.reason
        assert Decimal(stopped.summary.cost_usd) == usd()
        assert 0.75 * cap < usd() <= cap
        ended = run(write(answer=answer, limits={**limits, "max_cost_usd": None}))
        assert ended.summary.exit_code == 0, ended.summary.reason
        assert ended.summary.ok == stopped.summary.requests + ended.summary.requests == rows
        assert Decimal(ended.summary.cost_total_usd) == usd()
        assert run(tmp_path / "job.yaml").summary.requests == 0


def test_check_shows_what_the_catalogue_of_decision_models_says(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Price and context come from OpenRouter's hidden list, and the worst case is called an estimate."""
    with simulator() as child:
        answer, model = {"columns": COLUMNS, "mode": "decision"}, {"name": "perplexity/pplx-decider-v1.2"}
        path = write_job(tmp_path, child.url, model=model, answer=answer, prompt={"user": "{{ text }}"})
        monkeypatch.setenv("KEY", "k")
        said = command("check", str(path)).out
    assert "$0.02 for prompts, $0 for answers per million tokens, 262,144 tokens of context" in said
    assert "(the server's own templates are estimated)" in said


def _charged(url: str) -> Decimal:
    """Return what the simulator has charged, in USD."""
    reply = httpx.get(f"{url}/key", headers={"authorization": "Bearer x"})
    return Decimal(str(reply.json()["data"]["usage"]))


def test_show_has_the_probability_beside_each_answer(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table and the single row show NAME_prob after NAME, as the output does."""
    monkeypatch.setenv("COLUMNS", "200")
    with deciding(SYSTEMONE) as server:
        ran = decide(tmp_path, f"{server.url}/v1", output={"prefix": "x_"})
    header, _, first, *_ = command("show", "job.yaml").out.splitlines()
    one = command("show", "job.yaml", "--row", "1").out
    names = [name for column in COLUMNS for name in (f"x_{column}", f"x_{column}_prob")]
    assert header.split() == ["row", "text", *names]
    assert first.split()[-6:] == [str(ran.column(name)[0]).replace("True", "true") for name in names]
    assert f"x_is_bug_prob: {ran.column('x_is_bug_prob')[0]}" in one


def test_a_corrected_label_has_no_probability_of_the_model(tmp_path: Path, command: Command) -> None:
    """NAME_prob is empty beside a label that a person put in; a confirmed one, and other columns, keep the model's."""
    with deciding(SYSTEMONE) as server:
        before = decide(tmp_path, f"{server.url}/v1", output={"details": ["corrected", "probabilities"]})
        assert command("show", "job.yaml", "--review", "-o", "todo.csv").code == 0
        todo = pl.read_csv(tmp_path / "todo.csv", infer_schema=False)
        for name in (f"{column}_prob" for column in COLUMNS):  # a person sees how sure the model was
            assert dict(todo.select("row", name).rows()) == {
                str(at): str(p) for at, p in enumerate(before.column(name), 1)
            }
        edited = todo.with_columns(
            team=pl.when(pl.col("row") == "1").then(pl.lit("none")).otherwise("team"),
            needs_review=pl.when(pl.col("row") == "2").then(pl.lit("")).otherwise("needs_review"),
        )
        edited.write_csv(tmp_path / "todo.csv")
        ended = command("correct", "job.yaml", "todo.csv")
        assert "1 answer corrected, 1 confirmed" in ended.err
        after = run(tmp_path / "job.yaml")
        assert len(server.books.bodies) == len(TEXTS)
    assert after.column("corrected") == [True, False, None, None]
    assert after.column("team") == ["none", *before.column("team")[1:]]
    assert after.column("team_prob") == [None, *before.column("team_prob")[1:]]
    for name in ("is_bug_prob", "urgency_prob", "team_probs"):
        assert after.column(name) == before.column(name)
