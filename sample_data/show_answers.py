"""Prints the answers of jobs/reviews.yaml beside the gold label: `python sample_data/show_answers.py out/demo.csv`."""
# ruff: noqa: INP001, T201  (a script that prints)

import sys
from pathlib import Path

import polars as pl


def main() -> None:
    """Show what is answered so far: the output, or the partial one of a run that is not finished."""
    output = Path(sys.argv[1])
    partial = output.with_suffix(f".partial{output.suffix}")
    rows = pl.read_csv(partial if partial.exists() else output, infer_schema=False)
    answered = rows.filter(pl.col("status") == "ok").select(
        "id",
        pl.col("text").str.replace_all(r"\s+", " ").alias("review"),
        "gold",
        "sentiment",
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
        print(answered)
    agree = answered.filter(pl.col("gold") == pl.col("sentiment")).height
    print(f"\n{agree} of {answered.height} answers agree with the gold label ({agree / max(1, answered.height):.0%}).")


if __name__ == "__main__":
    main()
