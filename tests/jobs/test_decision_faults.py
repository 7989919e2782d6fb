"""Faults of decision servers in whole jobs: no wrong label, no wrong probability, and a reason that says what to do."""

from pathlib import Path
from typing import Any

import pytest
from job_running import DETAILS, Ran, run, write_job
from openrouter.decisions import HARMLESS, MODEL, REFUSALS, UNFIT, UNSURE, Spoil, deciding

from batchrun.api import TABLE
from batchrun.api.codes import Action

COLUMNS: dict[str, Any] = {
    "team": {"values": {"payments": "Checkout or billing", "account": "Login", "none": None}},
    "is_bug": "boolean",
    "urgency": {"values": ["low", "soon", "now"], "ordered": True},
}
TEXTS = ["payments are broken now", "my account, low"]
PATH = "/v1/systemone"


def decide(folder: Path, url: str) -> Ran:
    answer, output = {"columns": COLUMNS, "mode": "decision"}, {"details": [*DETAILS, "probabilities", "prompt_tokens"]}
    prompt = {"user": "{{ text }}"}
    return run(write_job(folder, f"{url}/v1", rows=TEXTS, model=MODEL, prompt=prompt, answer=answer, output=output))


def spoiled(folder: Path, spoil: Spoil | None) -> Ran:
    folder.mkdir(exist_ok=True)
    with deciding(PATH, spoil=spoil) as server:
        return decide(folder, server.url)


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_faults_change_nothing(tmp_path: Path, name: str) -> None:
    """Labels and probabilities are as without the fault, which is in fields that decide nothing."""
    sound, faulty = spoiled(tmp_path / "sound", None), spoiled(tmp_path / "faulty", HARMLESS[name])
    assert faulty.summary.exit_code == 0
    for column in COLUMNS:
        assert faulty.column(column) == sound.column(column)
        assert faulty.column(f"{column}_prob") == pytest.approx(sound.column(f"{column}_prob"), abs=1e-5)
    if name == "counts as floats":
        assert faulty.column("prompt_tokens") == sound.column("prompt_tokens")


@pytest.mark.parametrize("name", UNSURE)
def test_probabilities_that_fit_no_label_are_unknown(tmp_path: Path, name: str) -> None:
    """The label stays; its probabilities are null rather than made of some of the labels."""
    column, spoil = UNSURE[name]
    sound, faulty = spoiled(tmp_path / "sound", None), spoiled(tmp_path / "faulty", spoil)
    assert faulty.summary.exit_code == 0
    assert faulty.column(column) == sound.column(column)
    assert faulty.column(f"{column}_prob") == faulty.column(f"{column}_probs") == [None, None]
    assert faulty.column("is_bug_prob") == sound.column("is_bug_prob")


@pytest.mark.parametrize("name", UNFIT)
def test_answers_that_do_not_fit_fail_the_row(tmp_path: Path, name: str) -> None:
    """Nothing is written that was not offered; what came and what it cost is kept, and nothing is asked twice."""
    ran = spoiled(tmp_path / "faulty", UNFIT[name])
    assert ran.column("error_type") == ["schema_mismatch"] * 2
    assert ran.column("team") == [None] * 2
    assert ran.column("attempts") == [1] * 2
    assert all(ran.column("answer_raw"))


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_end_as_the_one_table_says(tmp_path: Path, name: str) -> None:
    """Each server's error becomes the ending of its kind; what is the job's fault stops after two requests."""
    status, body, ending = REFUSALS[name]
    with deciding(PATH, fault=lambda _: (status, body)) as server:
        ran = decide(tmp_path, server.url)
    action = TABLE[ending].action
    if action in (Action.STOP, Action.CONFIRM, Action.FAIL_IF_PROVEN):
        assert (ran.summary.exit_code, ran.summary.pending) == (3, 2)
        assert ran.summary.requests <= 2
        assert TABLE[ending].means in str(ran.summary.reason)
    else:
        assert set(ran.summary.errors) <= {ending, "unexplained"}
    assert ran.output is None or ran.column("team") == [None] * 2


def test_a_mistake_in_the_request_is_shown_with_its_place(tmp_path: Path) -> None:
    """FastAPI's list of details names the question that it does not take."""
    status, body, _ = REFUSALS["a question's description"]
    with deciding(PATH, fault=lambda _: (status, body)) as server:
        ran = decide(tmp_path, server.url)
    assert "questions.team.choice.criteria.a: Input should be valid" in str(ran.summary.reason)
