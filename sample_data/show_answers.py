"""Prints the answers of jobs/reviews.yaml or jobs/triage.yaml beside the gold label.

`python sample_data/show_answers.py out/demo.csv`. Of answers with probabilities it prints those that need a look.
"""
# ruff: noqa: INP001, T201  (a script that prints)

import sys
from pathlib import Path

import polars as pl

MOST = 30


def main() -> None:
    """Show what is answered so far: the output, or the partial one of a run that is not finished."""
    output = Path(sys.argv[1])
    partial = output.with_suffix(f".partial{output.suffix}")
    rows = pl.read_csv(partial if partial.exists() else output, infer_schema=False)
    answered = rows.filter(pl.col("status") == "ok")
    shown = answered.filter(pl.col("needs_review") == "true") if "needs_review" in rows.columns else answered
    table = shown.select(
        "id",
        pl.col("text").str.replace_all(r"\s+", " ").alias("review"),
        "gold",
        "sentiment",
        *([pl.col("sentiment_prob").str.slice(0, 4).alias("prob")] if "sentiment_prob" in rows.columns else []),
        pl.when(pl.col("gold") == pl.col("sentiment")).then(pl.lit("")).otherwise(pl.lit("differs")).alias(""),
    )
    with pl.Config(
        tbl_rows=-1,
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
        tbl_width_chars=120,
        fmt_str_lengths=66,
        tbl_formatting="NOTHING",
    ):
        print(table.head(MOST))
    print()
    if "needs_review" in rows.columns:
        print(f"{shown.height} of {answered.height} rows need a look (probability below 0.6); the first are shown.")
        sure = answered.filter(pl.col("needs_review") == "false")
        print(f"Without these {_agreement(sure)}.")
    print(f"Of all answers {_agreement(answered)}.")


def _agreement(rows: pl.DataFrame) -> str:
    agree = rows.filter(pl.col("gold") == pl.col("sentiment")).height
    return f"{agree} of {rows.height} agree with the gold label ({agree / max(1, rows.height):.0%})"


if __name__ == "__main__":
    main()
