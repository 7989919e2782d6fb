"""From a row to its question, key and body; from a model's text to a typed answer.

templates.py    Jinja source -> the columns it uses, the mistakes in it, its text for a row
render.py       a row and the job -> its question, the question's key, and the body to send
attachments.py  local images and PDFs: digests and `data:` URLs
pdf.py          the text of a PDF, by pypdf
beginning.py    what all prompts of a job begin with, for the provider's prompt cache
schema.py       the job file's short form or JSON Schema -> the schema of an answer, and its mistakes
decisions.py    columns as the typed questions of a decision model; the answers to them, with probabilities
answers.py      what a model wrote -> thoughts cut off, the object found, checked and typed; the turn of a repair
"""

from batchrun.prompt.answers import AnswerForm, with_turns
from batchrun.prompt.beginning import Beginning
from batchrun.prompt.render import (
    RENDERER_VERSION,
    Renderer,
    changed_words,
    constant_beginning,
    content_text,
    nth_key,
    template_mistakes,
    templates_of,
    uses_columns,
)
from batchrun.prompt.templates import RowProblem, spelled

__all__ = [
    "RENDERER_VERSION",
    "AnswerForm",
    "Beginning",
    "Renderer",
    "RowProblem",
    "changed_words",
    "constant_beginning",
    "content_text",
    "nth_key",
    "spelled",
    "template_mistakes",
    "templates_of",
    "uses_columns",
    "with_turns",
]
