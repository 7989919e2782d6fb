"""What can be read off a checkpoint: the page, tables for the terminal, figures. Nothing is sent.

page.py         the report: one self-contained HTML file (page.html.j2, page.css, page.js)
gather.py       one walk over all rows for it; bars.py: distributions in bounded memory
show.py         rows and one row for the terminal; review.py: rows for a person, as a file and back
evaluation.py   answers against gold; gold.py: where gold stands, and equality; calibration.py: probabilities
comparison.py   two jobs row by row; models.py: several models of one job
*_text.py       an evaluation and a comparison for people and for programs
patterns.py     oddities that are worth a look
statistics.py   the formulas
answered.py     rows of the input with their answers; texttable.py: tables that fit a terminal
"""

from batchrun.report.comparison import Comparison, Side, before_edit, compare
from batchrun.report.comparison_text import comparison_facts, comparison_lines, write_changed
from batchrun.report.evaluation import Evaluation, evaluate, evaluate_reviewed
from batchrun.report.evaluation_text import evaluation_facts, evaluation_lines
from batchrun.report.gold import GoldOptions
from batchrun.report.models import model_facts, model_lines, model_result
from batchrun.report.page import report_path, write_report
from batchrun.report.patterns import worth_a_look
from batchrun.report.review import read_todo, write_todo
from batchrun.report.show import row_record, shown_rows
from batchrun.report.texttable import record, text_table

__all__ = [
    "Comparison",
    "Evaluation",
    "GoldOptions",
    "Side",
    "before_edit",
    "compare",
    "comparison_facts",
    "comparison_lines",
    "evaluate",
    "evaluate_reviewed",
    "evaluation_facts",
    "evaluation_lines",
    "model_facts",
    "model_lines",
    "model_result",
    "read_todo",
    "record",
    "report_path",
    "row_record",
    "shown_rows",
    "text_table",
    "worth_a_look",
    "write_changed",
    "write_report",
    "write_todo",
]
