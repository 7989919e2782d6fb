"""codes: THE table is consistent, complete, and what docs/reference/errors.md says."""

import importlib.util
from pathlib import Path

import pytest

from batchrun.api.codes import ASKED_AGAIN, TABLE, Action, Blame, Count, Ending
from batchrun.api.dialects import FINISHES, RELAYED, STATUSES, TEXTS, WORDS

LOCAL = {"template_error", "request_too_large", "image_error", "file_error"}
DOCS = Path(__file__).resolve().parents[3] / "docs"
ENDINGS = list(TABLE.values())


def errors_page() -> str:
    """Return the page as the script beside it makes it."""
    spec = importlib.util.spec_from_file_location("errors_page", DOCS.parent / "tools" / "errors_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.errors_page())


def test_docs_errors_is_what_the_table_says() -> None:
    """docs/reference/errors.md can't drift: `python tools/errors_page.py` writes it again."""
    assert (DOCS / "reference" / "errors.md").read_text(encoding="utf-8") == errors_page()


def test_every_sign_leads_to_a_row() -> None:
    """Statuses, words and texts name endings of the table only."""
    signs = {
        *STATUSES.values(),
        *RELAYED.values(),
        *FINISHES.values(),
        *WORDS.values(),
        *(ending for _, _, ending in TEXTS),
    }
    assert signs <= set(TABLE)


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.name)
def test_a_row_does_not_contradict_itself(ending: Ending) -> None:
    """What is retried is bounded, what is final is not counted, and what people read is there."""
    retried = ending.action in (Action.RETRY, Action.GATE, Action.CONFIRM)
    assert retried == (ending.count is not Count.NONE)
    assert ending.exhausted in (Action.FAIL, Action.STOP)
    assert ending.means
    assert ending.do
    assert not ending.means.endswith(".")
    assert ending.slows <= (ending.blames is Blame.SERVER)
    if ending.action is Action.GATE:
        assert ending.again


def test_what_runs_again_is_transient_or_costs_nothing() -> None:
    """The next run asks by itself only what the server was to blame for, or what costs nothing."""
    for name in ASKED_AGAIN - LOCAL - {"unexplained", "refused_alone"}:
        assert TABLE[name].blames is Blame.SERVER or TABLE[name].exhausted is Action.STOP, name
    assert LOCAL <= ASKED_AGAIN


def test_only_what_was_sent_without_a_bill_may_be_billed() -> None:
    """Reservations are held for attempts whose cost nobody reported."""
    assert {ending.name for ending in ENDINGS if ending.maybe_billed} == {
        "timeout",
        "reset",
        "invalid_response",
        "response_too_large",
    }
