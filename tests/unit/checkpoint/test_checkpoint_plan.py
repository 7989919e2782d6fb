"""The checkpoint's plans: rebuilt at will, nothing answered is asked again, swapped in one commit."""

import os
import tempfile
from pathlib import Path

import pytest
from checkpoint_samples import NOON, begin, keep, key, made, ok, plan
from hypothesis import given, settings
from hypothesis import strategies as st

from batchrun.checkpoint import Checkpoint, Origin
from batchrun.checkpoint import plan as plans
from batchrun.checkpoint.records import OpenRule

TEXTS = st.lists(st.one_of(st.none(), st.sampled_from("abcdefgh")), max_size=12)


def open_texts(checkpoint: Checkpoint, texts: list[str | None]) -> list[tuple[int, str | None]]:
    found: list[tuple[int, str | None]] = []
    for block in checkpoint.open_questions(OpenRule(), start=0, batch=3):
        found += [(position, texts[position]) for position, _ in block]
    return found


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from([0, 3, 5, 10, 99]), TEXTS, st.integers(0, 4)), min_size=1, max_size=4))
def test_rebuilt_plans_ask_each_question_once(steps: list[tuple[int, list[str | None], int]]) -> None:
    """However rows are appended, shuffled, removed or doubled: open are the first rows of what has no answer."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "BATCH", 5)
        path = Path(folder) / "x.sqlite"
        answered: set[str] = set()
        texts: list[str | None] = []
        for kept, others, most in steps:
            texts = texts[:kept] + others
            with Checkpoint.open(path) as checkpoint:
                plan(checkpoint, texts)
                expected = [(texts.index(text), text) for text in dict.fromkeys(texts) if text and text not in answered]
                assert open_texts(checkpoint, texts) == expected
                assert checkpoint.count_open(OpenRule(), start=0) == len(expected)
                blocks = checkpoint.open_questions(OpenRule(), start=0)
                asked = [number for block in blocks for _, number in block][:most]
            keep(path, [ok(number) for number in asked])
            answered |= {text for _, text in expected[:most] if text}
            with Checkpoint.open(path, read_only=True) as checkpoint:
                statuses = [status for (status,) in checkpoint.outcomes(0, 99, ("status",))]
                assert statuses == ["skipped" if t is None else "ok" if t in answered else "pending" for t in texts]
                assert checkpoint.verify() == []


def test_plan_knows_its_rows_and_source(tmp_path: Path) -> None:
    """The current plan gives back what it was made from, and rows that fail before sending keep their reason."""
    with Checkpoint.open(tmp_path / "x.sqlite") as checkpoint:
        assert checkpoint.current_plan() is None
        plan(checkpoint, ["a", None, "a", None], {3: ("template_error", "row 3: x is null")})
        found = checkpoint.current_plan()
        assert found is not None
        assert (found.fingerprint, found.wording, found.stamps, found.rows) == ("print", "words", "[]", 4)
        rows = checkpoint.outcomes(0, 9, ("status", "error_type", "error_message", "first", "key"))
        assert rows == [
            ("pending", None, None, 1, key("a")),
            ("skipped", None, None, 0, None),
            ("pending", None, None, 0, key("a")),
            ("failed", "template_error", "row 3: x is null", 0, None),
        ]


def test_preview_counts_and_discard_changes_nothing(tmp_path: Path) -> None:
    """A plan in the making counts the answered rows of both; a discarded plan leaves the current one."""
    path = made(tmp_path / "x.sqlite", ["a", "b", "c"], [ok(1), ok(2)])
    with Checkpoint.open(path) as checkpoint:
        builder = checkpoint.new_plan(Origin("new", "other", "", ""), NOON)
        builder.add(0, [key("A"), key("b"), key("c")], {})
        assert builder.answered() == (2, 1)
        builder.discard()
        found = checkpoint.current_plan()
        assert found is not None
        assert found.wording == "words"
        assert [row[0] for row in checkpoint.outcomes(0, 9, ("status",))] == ["ok", "ok", "pending"]


def test_reverted_prompt_costs_nothing(tmp_path: Path) -> None:
    """Answers of an earlier plan are still there when its questions come back."""
    path = made(tmp_path / "x.sqlite", ["a", "b"], [ok(1, "A"), ok(2, "B")])
    with Checkpoint.open(path) as checkpoint:
        plan(checkpoint, ["c", "d"])
        assert checkpoint.count_open(OpenRule(), start=0) == 2
        plan(checkpoint, ["b", "a"])
        assert checkpoint.outcomes(0, 2, ("answer",)) == [("B",), ("A",)]


def test_half_built_plan_is_dropped(tmp_path: Path) -> None:
    """A plan that was being built when the process died neither counts nor stays."""
    path = made(tmp_path / "x.sqlite", ["a"], [ok(1)])
    checkpoint = Checkpoint.open(path)
    builder = checkpoint.new_plan(Origin("new", "", "", ""), NOON)
    builder.add(0, [key(str(number)) for number in range(60_000)], {})
    checkpoint.close()
    with Checkpoint.open(path) as again:
        assert again.counts().rows == 1
        assert not again._connection.value("SELECT 1 FROM sqlite_schema WHERE name = 'rows_next'")
        assert again.verify() == []
        plan(again, ["59999", "a", "new"])
        assert again.count_open(OpenRule(), start=0) == 2
        assert again.verify() == []


def test_gap_between_rows_is_refused(tmp_path: Path) -> None:
    """Rows come without gaps, or answers would stand beside the wrong rows."""
    with Checkpoint.open(tmp_path / "x.sqlite") as checkpoint:
        builder = checkpoint.new_plan(Origin("", "", "", ""), NOON)
        builder.add(0, [key("a")], {})
        with pytest.raises(ValueError, match="row 5 does not follow row 0"):
            builder.add(5, [key("b")], {})


def test_low_water_belongs_to_its_plan(tmp_path: Path) -> None:
    """The mark below which all is final is stored with the outcomes, and a new plan begins without one."""
    path = made(tmp_path / "x.sqlite", ["a", "b"])
    with Checkpoint.open(path) as checkpoint:
        checkpoint.writer.start(begin(checkpoint))
        checkpoint.writer.put(ok(1))
        checkpoint.writer.note_low_water(1)
        checkpoint.writer.flush()
        found = checkpoint.current_plan()
        assert found is not None
        assert found.low_water == 1
        plan(checkpoint, ["b", "a"])
        found = checkpoint.current_plan()
        assert found is not None
        assert found.low_water == 0


def test_reading_continues_beside_a_new_plan(tmp_path: Path) -> None:
    """A reader from another connection sees the old plan until the new one is complete."""
    path = made(tmp_path / "x.sqlite", ["a", "b"])
    with Checkpoint.open(path) as checkpoint, Checkpoint.open(path, read_only=True) as reader:
        builder = checkpoint.new_plan(Origin("", "", "", ""), NOON)
        builder.add(0, [key(str(number)) for number in range(plans.BATCH)], {})
        assert reader.counts().rows == 2
        builder.make_current("{}")
        assert reader.counts().rows == plans.BATCH
    assert os.path.getsize(path) > plans.BATCH  # noqa: PTH202  (the file itself holds it once all are closed)
