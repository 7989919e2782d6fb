"""What can be read off a checkpoint: the page, tables for the terminal, figures. Nothing is sent.

page.py         the report: one self-contained HTML file (page.html.j2, page.css, page.js)
gather.py       one walk over all rows for it; bars.py: distributions in bounded memory
show.py         rows and one row for the terminal; review.py: rows for a person, as a file and back
evaluate.py     answers against gold; gold.py: where gold stands and what is equal; calibration.py: probabilities
compare.py      two jobs row by row; comparing.py: their tables; models.py: several models of one job
patterns.py     what is worth a look
statistics.py   the formulas
answered.py     rows of the input with their answers; texttable.py: tables that fit a terminal
"""
