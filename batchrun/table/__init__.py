"""Files to batches of rows; rows and answers to the output file.

files.py     which files a job means, their stamps, their bytes decompressed
read.py      those files as one input: `Rows`, in batches and frames
text.py      CSV and JSON Lines, line by line
columnar.py  Parquet and Arrow, by Polars
values.py    JSON values and typed CSV cells -> Python values, and the types of their columns
where.py     `input.where`: an SQL condition over one row
readback.py  an output file -> one frame, typed
write.py     frames -> an output file, which is replaced as a whole
"""

from batchrun.table.columnar import unreadable_in_a_prompt
from batchrun.table.files import PIPES, FileStamp, expand, shown_name, stamp
from batchrun.table.read import Batch, Rows, open_rows
from batchrun.table.readback import read_output
from batchrun.table.write import (
    DETAIL_TYPES,
    Written,
    answer_columns,
    check_writable,
    dtype_of,
    partial_path,
    unwritable,
    write_output,
)

__all__ = [
    "DETAIL_TYPES",
    "PIPES",
    "Batch",
    "FileStamp",
    "Rows",
    "Written",
    "answer_columns",
    "check_writable",
    "dtype_of",
    "expand",
    "open_rows",
    "partial_path",
    "read_output",
    "shown_name",
    "stamp",
    "unreadable_in_a_prompt",
    "unwritable",
    "write_output",
]
