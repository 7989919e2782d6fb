"""Files to batches of rows; rows and answers to the output file.

files.py     which files a job means, their stamps, their bytes decompressed
guess.py     encoding and separator of a CSV file that no job file describes
read.py      those files as one input: `Rows`, in batches and frames
text.py      CSV and JSON Lines, line by line
json_array.py  an array of objects in a JSON file
excel.py     a sheet of an Excel workbook
columnar.py  Parquet and Arrow, by Polars
values.py    JSON values and typed CSV cells -> Python values, and the types of their columns
where.py     `input.where`: an SQL condition over one row
readback.py  an output file -> one frame, typed
sheet.py     frames -> a sheet of an Excel workbook
write.py     frames -> an output file, which is replaced as a whole
"""

from batchrun.table.columnar import unreadable_in_a_prompt
from batchrun.table.files import PIPES, FileStamp, expand, shown_name, stamp
from batchrun.table.guess import encoding_note, open_guessed
from batchrun.table.read import Batch, Rows, open_rows
from batchrun.table.readback import read_output
from batchrun.table.sheet import LONGEST_CELL, MOST_ROWS, is_long
from batchrun.table.values import has_intervals
from batchrun.table.write import (
    DETAIL_TYPES,
    Written,
    answer_columns,
    check_writable,
    dtype_of,
    partial_path,
    sheet_problem,
    unwritable,
    write_output,
)

__all__ = [
    "DETAIL_TYPES",
    "LONGEST_CELL",
    "MOST_ROWS",
    "PIPES",
    "Batch",
    "FileStamp",
    "Rows",
    "Written",
    "answer_columns",
    "check_writable",
    "dtype_of",
    "encoding_note",
    "expand",
    "has_intervals",
    "is_long",
    "open_guessed",
    "open_rows",
    "partial_path",
    "read_output",
    "sheet_problem",
    "shown_name",
    "stamp",
    "unreadable_in_a_prompt",
    "unwritable",
    "write_output",
]
