"""All mistakes of a job, against its input and its endpoint, in one go: people correct them in one go as well."""

import re
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec

from batchrun.api import Endpoint, resolve
from batchrun.errors import InputError, JobFileError, Mistake, UserError, did_you_mean
from batchrun.job import PAID_ENGINE, Environment, Job, JobPath, Loaded, check, dotted
from batchrun.prepare.columns import kept_columns, new_columns
from batchrun.prompt import AnswerForm, constant_beginning, template_mistakes, templates_of, uses_columns
from batchrun.table import FileStamp, Rows, open_rows, sheet_problem, unwritable

INSTALL_PYPDF = "pip install 'batchrun-llm[pdf]'"

_FLAGS: dict[JobPath, str] = {
    ("model", "endpoint"): "--endpoint",
    ("model", "name"): "--model",
    ("model", "api_key_env"): "--api-key-env",
    ("input", "path"): "--input",
    ("output", "path"): "--output",
    ("engine", "batch", "wait"): "--wait",
}
_WHERE: JobPath = ("input", "where")


class Mistakes:
    """The mistakes found so far. Parts of the job that have a mistake already are not looked at."""

    def __init__(self, loaded: Loaded, job: Job) -> None:
        self._loaded = loaded
        self._job = job
        self._found: list[Mistake] = []
        self._problems: list[tuple[JobPath, UserError]] = []

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self._loaded.mistakes or self._found or self._problems)

    def _add(self, path: JobPath, message: str, line: int = 1) -> None:
        self._found.append(self._loaded.mistake(path, message, line))

    def check_flags(self) -> None:
        """Check the job as the flags made it; what the file says was checked when it was loaded.

        Raises UserError for a flag that is wrong by itself, without a place in the file.
        """
        if self._job == self._loaded.job:
            return
        # Mistakes that the file has without the flags are reported with its own lines.
        new = [(path, text) for path, text in check(self._job) if (path, text) not in set(check(self._loaded.job))]
        for path, text in new:
            flag = _FLAGS.get(path)
            if flag is not None:
                raise UserError(text.replace(dotted(path), flag))
            self._add(path, f"with the flags of this command: {text}")
        if self._found:
            raise self.error()

    def resolved(self, environment: Environment, *, sends: bool) -> Endpoint | None:
        """Return the endpoint, with its key if something is sent."""
        if not self._loaded.is_right("model"):
            return None
        places = f"the environment, {self._job.folder / '.env'} and .env in the working directory"
        try:
            endpoint = resolve(self._job, environment, places, needs_key=sends)
        except UserError as problem:
            self._problems.append((("model",), problem))
            return None
        if self._job.batch is not None and not (endpoint.openrouter or self._job.model.batch_api):
            self._add(("engine",), "a batch needs model.endpoint openrouter, or a URL with model.batch_api: openai")
        return endpoint

    def check_pdf_reader(self) -> None:
        """Check that the extra is installed that reads the text of PDFs, and counts pages that cost."""
        if find_spec("pypdf") is not None:
            return
        capped = self._job.limits.max_cost_usd is not None
        for path, part in self._job.prompt.parts:
            if part.is_extracted:
                self._add((*path, "text"), f"text: extracted needs pypdf: {INSTALL_PYPDF}")
            elif part.engine == PAID_ENGINE and capped:
                message = f"limits.max_cost_usd needs pypdf, which counts the pages for {part.engine}: {INSTALL_PYPDF}"
                self._add((*path, "engine"), message)

    def compiled(self) -> AnswerForm | None:
        """Compile the answer's form, also where another key of the answer is wrong."""
        answer = self._job.answer
        if not self._loaded.is_right("answer") and (answer is None or answer.columns is None):
            return None
        compiled = AnswerForm.compile(self._job.answer)
        if isinstance(compiled, AnswerForm):
            return compiled
        for path, message in compiled:
            self._add(path, message)
        return None

    def opened(self, stack: ExitStack, known: Mapping[tuple[FileStamp, ...], str] | None) -> Rows | None:
        """Open the input. Where only `where` is wrong its columns are known still."""
        if not self._loaded.is_right("input", "path") or not self._loaded.is_right("input", "csv"):
            return None
        asked = self._job.input
        try:
            return stack.enter_context(open_rows(asked, self._job.folder, known))
        except InputError as problem:
            self._problems.append((_place_in_input(problem), problem))
            if asked.where is None or self._problems[-1][0] != _WHERE:
                return None
        return stack.enter_context(open_rows(replace(asked, where=None), self._job.folder, known))

    def check_prompt(self, columns: tuple[str, ...] | None, form: AnswerForm | None) -> None:
        """Check the prompt against the input's columns, as far as those are known."""
        before = len(self._found)
        for path, line, message in template_mistakes(self._job, columns):
            if self._loaded.is_right(*path):
                self._add(path, message, line)
        if len(self._found) > before or not self._loaded.is_right("prompt"):
            return
        if self._job.dedupe and not self._uses_a_column(columns):
            return
        instructions = None if form is None else form.instructions
        beginning = constant_beginning(self._job, columns, instructions)
        if "cache_control" in self._job.model.params and beginning.last_text is None:
            # It would be written to the provider's cache for each row, at a higher price, and never be read.
            message = "the prompt has no constant beginning to cache: write it as prompt.system"
            self._add(("model", "params", "cache_control"), f"model.params.cache_control: {message}")

    def _uses_a_column(self, columns: tuple[str, ...] | None) -> bool:
        """Check that a template uses a column: else each row would ask the same, and get one answer."""
        job, sources = self._job, templates_of(self._job)
        if not sources or uses_columns(job, columns):
            return True
        advice = "write {{ name }} for a cell of the column name"
        place = sources[-1][0]
        for path, source in sources:
            if (comment := self._loaded.comment_after(path)) is not None:
                place, advice = path, f"YAML reads {comment} as a comment; put the prompt in quotes"
            elif (braced := brace_advice(source, columns or ())) is not None:
                place, advice = path, braced
        message = f"the prompt uses no column, so all rows would get the same answer: {advice}"
        self._add(place, f"{message} (dedupe: false allows a prompt without columns)")
        return False

    def check_output(self, rows: Rows, form: AnswerForm | None) -> None:
        """Check the output's columns, and that its format can hold them: no one should find out after paying."""
        job, loaded = self._job, self._loaded
        kept = kept_columns(job, rows.columns)
        if loaded.is_right("output", "keep"):
            for number, name in enumerate(kept):
                if name not in rows.columns:
                    near = did_you_mean(name, rows.columns)
                    self._add(("output", "keep", number), f'the input has no column "{name}"{near}')
        if loaded.is_right("output"):
            made = [name for name, _ in new_columns(job, form)]
            twice = [f'"{name}"' for number, name in enumerate(made) if name in {*kept, *made[:number]}]
            if twice:
                # An input that another job wrote has the columns of status and errors already.
                advice = "set output.prefix, or choose other columns in output.keep or output.details"
                self._add(("output",), f"the output would have two columns {', '.join(twice)}: {advice}")
        place: JobPath = ("output", "path")
        suffix = job.output_path.suffix.lower()
        if problem := sheet_problem(len(kept) + len(job.output.details), suffix):
            self._add(place, f"output.path: {problem}")
        for name in kept:
            if name in rows.schema and (problem := unwritable(rows.schema[name], suffix)):
                advice = "leave it out of output.keep, or write another format"
                self._add(place, f'output.path: column "{name}" {problem}; {advice}')

    def error(self) -> UserError:
        """Return the error to raise: a lone problem without a place in the file as it is, else all mistakes."""
        mistakes = [*self._loaded.mistakes, *self._found]
        if not mistakes and [path for path, _ in self._problems] in ([("input",)], [("model",)]):
            return self._problems[0][1]
        given = self._job.input.path != self._loaded.job.input.path
        for path, problem in self._problems:
            if given and path[:2] in {("input",), ("input", "path")}:
                mistakes.append(Mistake(0, 0, str(problem).removeprefix("input.path: "), "--input"))
            else:
                mistakes.append(self._loaded.mistake(path, str(problem)))
        quotes_data = any(problem.quotes_data for _, problem in self._problems)
        return JobFileError(self._loaded.shown, tuple(mistakes), quotes_data=quotes_data)


def _place_in_input(problem: InputError) -> JobPath:
    """Return the part of the job that a problem begins with, as in `input.where: …`; else the whole input."""
    name = re.match(r"input(\.[a-z_]+)*", str(problem))
    return tuple(name[0].split(".")) if name else ("input",)


def brace_advice(source: str, columns: Collection[str]) -> str | None:
    """Return what to write for the first `{name}` or `${name}` of a column, which Jinja sends as it stands."""
    for match in re.finditer(r"(?<!\{)\$?\{ ?([^{}]+?) ?\}(?!\})", source):
        if match[1] in columns:
            return f"{match[0]} is sent as it stands; for the cell write {{{{ {match[1]} }}}}"
    return None
