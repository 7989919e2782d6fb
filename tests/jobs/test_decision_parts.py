"""More columns than a decision model takes in one request: asked in parts, booked to the picodollar."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from job_running import Ran, run, write_job
from openrouter.decisions import MODEL, Fault, deciding

from batchrun.runner.closing import closing_lines

COLUMNS = {f"c{number}": "boolean" for number in range(450)}
TEXTS = ["it is broken", "all is well", "broken again"]


def decide(folder: Path, url: str, **limits: Any) -> Ran:  # noqa: ANN401  (JSON)
    answer, prompt = {"columns": COLUMNS, "mode": "decision"}, {"user": "{{ text }}"}
    sections: dict[str, Any] = {"answer": answer, "prompt": prompt, "limits": {"concurrency": 1, **limits}}
    return run(write_job(folder, url, rows=TEXTS, model=MODEL, **sections))


def at_most(number: int) -> Fault:
    """Refuse more questions than a server takes."""

    def fault(body: dict[str, Any]) -> tuple[int, Any] | None:
        too_many = len(body["questions"]) > number
        return (400, {"error": {"code": 400, "message": "too many questions"}}) if too_many else None

    return fault


@pytest.mark.parametrize(
    ("path", "base", "most", "sizes"),
    [("/api/v1/systemone", "/api/v1", 200, [200, 200, 50]), ("/v1/decisions", "/v1/decisions", 400, [400, 50])],
)
def test_many_columns_are_asked_in_parts(tmp_path: Path, path: str, base: str, most: int, sizes: list[int]) -> None:
    """No request has more questions than the server takes, each is asked once, and the row has all answers."""
    with deciding(path, fault=at_most(most)) as server:
        ran = decide(tmp_path, server.url + base)
        assert ran.summary.exit_code == 0, ran.summary.reason
        assert [len(body["questions"]) for body in server.books.bodies] == sizes * len(TEXTS)
        if path == "/api/v1/systemone":
            assert Decimal(ran.summary.cost_usd) == server.books.charged
    assert ran.column("c0") == ran.column("c200") == ran.column("c449") == [True, False, True]
    assert ran.column("attempts") == [1] * len(TEXTS)
    assert len(lines := list(closing_lines(ran.summary, tmp_path))) < 30, "no terminal shows 450 columns"
    assert "  and 430 more columns: see the report" in lines


def _failing(once: bool, status: int) -> Callable[[dict[str, Any]], tuple[int, Any] | None]:  # noqa: FBT001  (a test)
    met = 0

    def fault(body: dict[str, Any]) -> tuple[int, Any] | None:
        nonlocal met
        if "c200" not in body["questions"] or "well" not in body["state"]:
            return None
        met += 1
        return None if once and met > 1 else (status, {"error": {"code": status, "message": "not now"}})

    return fault


def test_a_part_that_fails_is_asked_again_alone(tmp_path: Path) -> None:
    """The answers of the other parts are kept for the next attempt, and booked once."""
    with deciding("/api/v1/systemone", fault=_failing(once=True, status=500)) as server:
        ran = decide(tmp_path, f"{server.url}/api/v1")
        assert ran.summary.exit_code == 0, ran.summary.reason
        assert len(server.books.bodies) == 3 * len(TEXTS) + 1
        assert Decimal(ran.summary.cost_usd) == server.books.charged
    assert ran.column("attempts") == [1, 2, 1]


def test_parts_before_one_that_fails_are_booked(tmp_path: Path) -> None:
    """A row that fails in its second part has the cost of the first one."""
    with deciding("/api/v1/systemone", fault=_failing(once=False, status=422)) as server:
        ran = decide(tmp_path, f"{server.url}/api/v1")
        assert (ran.summary.ok, ran.summary.failed) == (2, 1)
        assert Decimal(ran.summary.cost_usd) == server.books.charged
    assert ran.column("c0") == [True, None, True]
    assert all(cost > 0 for cost in ran.column("cost_usd"))
