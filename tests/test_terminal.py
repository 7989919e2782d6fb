"""Text for a terminal."""

import pytest

from batchrun.terminal import plural


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "row", "1 row"),
        (0, "row", "0 rows"),
        (1_200, "distinct question", "1,200 distinct questions"),
        (2, "reply", "2 replies"),
        (2, "day", "2 days"),
        (2, "batch", "2 batches"),
    ],
)
def test_a_count_agrees_with_its_noun(number: int, noun: str, text: str) -> None:
    """One of a thing is singular; any other number has thousands separated and the noun's plural."""
    assert plural(number, noun) == text
