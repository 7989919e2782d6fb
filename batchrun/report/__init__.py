"""What can be read off a checkpoint: the page, tables for the terminal, figures. Nothing is sent.

answered.py     a job open for reading, and its rows with their answers
page.py         the report: one self-contained HTML file (page.html.j2, page.css, page.js)
gather.py       one walk over all rows for it; bars.py: distributions in bounded memory
show.py         rows and one row for the terminal; review.py: rows for a person, as a file and back
evaluation.py   answers against gold; gold.py: where gold stands, and equality; calibration.py: probabilities
comparison.py   two jobs row by row; models.py: several models of one job
*_text.py       an evaluation and a comparison for people and for programs
figures.py      shares, and what one job costs and takes; statistics.py: the formulas
patterns.py     oddities that are worth a look
texttable.py    tables that fit a terminal
"""

from batchrun.report.answered import OpenJob, open_job
from batchrun.report.comparison import compare
from batchrun.report.comparison_text import comparison_facts, comparison_parts, write_changed
from batchrun.report.evaluation import Evaluation, evaluate, evaluate_reviewed
from batchrun.report.evaluation_text import evaluation_facts, evaluation_parts
from batchrun.report.gold import GoldOptions
from batchrun.report.models import model_facts, model_parts, model_result
from batchrun.report.page import report_path, write_report
from batchrun.report.patterns import worth_a_look
from batchrun.report.review import read_todo, write_todo
from batchrun.report.show import row_record, shown_rows
from batchrun.report.texttable import Table, record, rendered

__all__ = [
    "Evaluation",
    "GoldOptions",
    "OpenJob",
    "Table",
    "compare",
    "comparison_facts",
    "comparison_parts",
    "evaluate",
    "evaluate_reviewed",
    "evaluation_facts",
    "evaluation_parts",
    "model_facts",
    "model_parts",
    "model_result",
    "open_job",
    "read_todo",
    "record",
    "rendered",
    "report_path",
    "row_record",
    "shown_rows",
    "worth_a_look",
    "write_changed",
    "write_report",
    "write_todo",
]
