"""A row and the job -> its question, the question's key, and the body to send."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson

from batchrun.job import Job, JobPath, Part, dotted
from batchrun.prompt.attachments import IMAGE, PDF, Kind, LocalFiles, pdf_of
from batchrun.prompt.beginning import Beginning, beginning_of, marked
from batchrun.prompt.templates import MAX_PROMPT_BYTES, Fields, PromptError, RowProblem, Template, Templates
from batchrun.records import Decision

KEY_BYTES = 16
"""Bytes of a question's key: 128 bits make a clash among 10¹² questions less likely than 10⁻¹⁴."""

RENDERER_VERSION = 3
"""Raised when the same row and job give another key or body, so that a kept plan is not reused."""

_EMPTY = "it is empty, or white space"

FIELDS: Mapping[str, bool] = {
    # the question
    "model": True, "messages": True, "prompt": True, "response_format": True, "temperature": True, "top_p": True,
    "top_k": True, "min_p": True, "top_a": True, "frequency_penalty": True, "presence_penalty": True,
    "repetition_penalty": True, "seed": True, "stop": True, "logit_bias": True, "logprobs": True,
    "top_logprobs": True, "tools": True, "tool_choice": True, "parallel_tool_calls": True, "reasoning": True,
    "reasoning_effort": True, "plugins": True, "verbosity": True, "web_search_options": True, "modalities": True,
    "image_config": True, "deferred_tools": True, "transforms": True,
    # where, how fast, how long, and what only books and logs see
    "max_tokens": False, "max_completion_tokens": False, "models": False, "route": False, "provider": False,
    "service_tier": False, "metadata": False, "user": False, "session_id": False, "cache_control": False,
    "prompt_cache_key": False, "prompt_cache_options": False, "prediction": False, "stream": False,
    "stream_options": False, "debug": False, "usage": False, "trace": False,
}  # fmt: skip
"""Every field of a request: does it belong to the question? A field that is not here (another API's) does."""


class _Leaf(NamedTuple):
    """A text in the messages that each row fills; `suffix` is put after the template's text as it is.

    `attached` is the kind of file whose path or URL the template makes; with `extracted` the file's text is sent in
    its place. `asks`: it is all that a user's message says. A named tuple, since orjson writes dataclasses by itself.
    """

    template: Template | Fields
    path: JobPath
    suffix: str = ""
    attached: Kind | None = None
    extracted: bool = False
    asks: bool = False


DecisionForm = Callable[[Any, Sequence[Decision]], dict[str, Any]]
"""Makes a server's request of a state and the questions about it."""

_Attach = Callable[[_Leaf, Kind, str], str]
_SORTED = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS


class _Skeleton:
    """JSON whose leaves are filled in for each row: constant segments, dumped once, around the leaves' texts."""

    def __init__(self, value: Any, *, option: int = orjson.OPT_NON_STR_KEYS) -> None:  # noqa: ANN401  (any JSON)
        leaves: list[_Leaf] = []
        # The leaves' mark is a digest of the rest: nothing can hold its own digest.
        mark = blake2b(orjson.dumps(value, option=option, default=lambda _: None)).hexdigest()

        def marked(leaf: _Leaf) -> str:
            leaves.append(leaf)
            return mark

        self.first, *others = orjson.dumps(value, option=option, default=marked).split(b'"%s"' % mark.encode())
        self.rest = tuple(zip(leaves, others, strict=True))


def nth_key(key: bytes, n: int) -> bytes:
    """Return the key of the n-th equal row where each is asked (`dedupe: false`); 0 returns the key itself."""
    if n == 0:
        return key
    return blake2b(key + n.to_bytes(8, "big"), digest_size=KEY_BYTES).digest()


def template_mistakes(job: Job, columns: Sequence[str] | None) -> list[tuple[JobPath, int, str]]:
    """Return the mistakes in the prompt before any row: (path in the job file, line in the template, message).

    Where the columns are unknown (None) the syntax alone is checked.
    """
    templates = Templates(columns)
    return [
        (path, line, message)
        for path, source in templates_of(job)
        for line, message in templates.mistakes(source)
    ]  # fmt: skip


def uses_columns(job: Job, columns: Sequence[str] | None) -> bool:
    """Check whether any template uses a column of the row; where those are unknown (None), any name at all."""
    templates = Templates(columns)
    return any(templates.uses_columns(source) for _, source in templates_of(job))


def templates_of(job: Job) -> list[tuple[JobPath, str]]:
    """Return each template of the prompt with its path in the job file, in order."""
    templates: list[tuple[JobPath, str]] = []
    for path, content in job.prompt.contents:
        if isinstance(content, str):
            templates.append((path, content))
        else:
            templates += [((*path, kind), source) for kind, source in content.templates]
    return templates


def constant_beginning(job: Job, columns: Sequence[str] | None, instructions: str | None = None) -> Beginning:
    """Return what all requests begin with, of a job without mistakes in its templates."""
    return beginning_of(_messages(job, Templates(columns), instructions), _leaves)


def _leaves(part: Any) -> Iterator[_Leaf]:  # noqa: ANN401  (JSON with leaves)
    if isinstance(part, _Leaf):
        yield part
    elif isinstance(part, Mapping):
        for value in part.values():
            yield from _leaves(value)


def _messages(job: Job, templates: Templates, instructions: str | None) -> list[dict[str, Any]]:
    """Compile the prompt into messages with leaves; instructions join a leading system message or become one."""
    turns = job.prompt.turns
    joins = bool(turns) and turns[0][1].role in {"system", "developer"}
    messages: list[dict[str, Any]] = []
    if instructions is not None and not joins:
        messages.append({"role": "system", "content": instructions})
    for number, (path, turn) in enumerate(turns):
        added = ""
        if joins and number == 0:
            added = instructions or ""
        content: Any = _content(path, turn.content, templates, added)
        if turn.role == "user" and isinstance(content, _Leaf):
            content = content._replace(asks=True)
        messages.append({"role": turn.role, "content": content})
    if job.prompt.state is not None:
        content = _state_parts(job.prompt.state, templates)
        if len(content) == 1:
            content = content[0]["text"]
        messages.append({"role": "user", "content": content})
    return messages


def _state_parts(state: Mapping[str, str | Part], templates: Templates) -> list[dict[str, Any]]:
    """Compile a state into parts of a message: all texts as one JSON object, then each image after its name."""
    parts: list[dict[str, Any]] = []
    texts = {name: templates.add(field) for name, field in state.items() if isinstance(field, str)}
    if texts:
        parts.append({"type": "text", "text": _Leaf(Fields(texts), ("prompt", "state"))})
    for name, field in state.items():
        if isinstance(field, Part):
            image = _part(templates.add(field.image or ""), ("prompt", "state", name, "image"), extracted=False)
            parts += [{"type": "text", "text": f"{name}:"}, image]
    return parts


def _state(job: Job, templates: Templates) -> dict[str, Any] | str | _Leaf:
    """Compile the state of a decision model as its question has it: a text, or texts and images by name."""
    fields: dict[str, Any] = {}
    for name, field in (job.prompt.state or {}).items():
        path = ("prompt", "state", name)
        if isinstance(field, str):
            fields[name] = _text(templates.add(field), path)
        else:
            fields[name] = _Leaf(templates.add(field.image or ""), (*path, "image"), attached=IMAGE)
    state = _text(templates.add(job.prompt.user or ""), ("prompt", "user"))
    return fields or (state._replace(asks=True) if isinstance(state, _Leaf) else state)


def _instructed(job: Job, templates: Templates, questions: Sequence[Decision]) -> list[Decision]:
    """Put the system prompt before what each question says."""
    if job.prompt.system is None:
        return list(questions)
    system, path = templates.add(job.prompt.system), ("prompt", "system")
    return [replace(one, instructions=_text(system, path, suffix=f"\n\n{one.instructions}")) for one in questions]


def _content(path: JobPath, content: str | tuple[Part, ...], templates: Templates, added: str) -> Any:  # noqa: ANN401  (JSON with leaves)
    if isinstance(content, str):
        return _text(templates.add(content), path, suffix=added and f"\n\n{added}")
    parts: list[dict[str, Any]] = []
    for number, part in enumerate(content):
        for kind, source in part.templates:
            parts.append(_part(templates.add(source), (*path, number, kind), extracted=part.is_extracted))
    if added:
        parts.append({"type": "text", "text": added})
    return parts


def _part(template: Template, path: JobPath, *, extracted: bool) -> dict[str, Any]:
    """Return a part of a message with its leaf; the last step of the path is its kind."""
    match path[-1]:
        case "image":
            return {"type": "image_url", "image_url": {"url": _Leaf(template, path, attached=IMAGE)}}
        case "file" if extracted:
            return {"type": "text", "text": _Leaf(template, path, attached=PDF, extracted=True)}
        case "file":
            # Not the file's own name: renamed, it is the same question.
            leaf = _Leaf(template, path, attached=PDF)
            return {"type": "file", "file": {"filename": "document.pdf", "file_data": leaf}}
    return {"type": "text", "text": _text(template, path)}


def _text(template: Template, path: JobPath, suffix: str = "") -> str | _Leaf:
    if template.constant is not None:
        return template.constant + suffix
    return _Leaf(template, path, suffix=suffix)


def _merged(extras: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Join what batchrun adds with the user's params, which win; `provider` by key, `plugins` by id."""
    merged = {**extras, **params}
    for name in extras.keys() & params.keys():
        ours, theirs = extras[name], params[name]
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            merged[name] = {**ours, **theirs}
        elif name == "plugins" and isinstance(theirs, Sequence):
            # Someone who adds the plugin web still wants the PDF engine that the job names.
            chosen = {plugin.get("id") for plugin in theirs if isinstance(plugin, Mapping)}
            merged[name] = [*theirs, *(plugin for plugin in ours if plugin["id"] not in chosen)]
    return merged


class Renderer:
    """Makes questions, keys and bodies of rows, for one job and one input.

    Values are given in the order of `columns`, the input columns that the prompt uses. What fails is a RowProblem,
    never an exception. `namespace` says who is asked, as far as that changes the answer; `body_extras` is what
    batchrun adds by itself; `mark` is put on the last text of what all requests begin with. No key depends on either.
    `pdf_engine` is what reads PDFs for OpenRouter's models. `questions` are for a decision model, in a
    server's `decision_form`. Not for use by several threads at once.
    """

    def __init__(
        self,
        job: Job,
        columns: Sequence[str],
        *,
        namespace: str,
        answer_fields: Mapping[str, Any] | None = None,
        instructions: str | None = None,
        body_extras: Mapping[str, Any] | None = None,
        pdf_engine: str | None = None,
        mark: Mapping[str, Any] | None = None,
        questions: Sequence[Decision] = (),
        decision_form: DecisionForm | None = None,
    ) -> None:
        self._files = LocalFiles(job.folder)
        self._urls_only = job.batch is not None
        self._templates = Templates(columns)
        messages = _messages(job, self._templates, instructions)
        self.columns: tuple[str, ...] = self._templates.columns

        asked = sent = _asked(job)
        if decision_form is None:
            asked["messages"] = messages
            asked |= answer_fields or {}
        else:
            state, instructed = _state(job, self._templates), _instructed(job, self._templates, questions)
            shown: Any = state
            if any(part.image for _, part in job.prompt.parts):
                shown = _state_parts(job.prompt.state or {}, self._templates)
            sent = {**asked, **decision_form(shown, instructed)}
            # Lists keep their order in the question: the order of options moves the probabilities.
            fields: Any = state
            if isinstance(state, dict):
                fields = list(state.items())
            asked = {**asked, "state": fields, "questions": [_as_list(question) for question in instructed]}
        extras = dict(body_extras or {})
        if pdf_engine is not None:
            asked = {**asked, "pdf_engine": pdf_engine}
            extras["plugins"] = [*extras.get("plugins", ()), {"id": "file-parser", "pdf": {"engine": pdf_engine}}]
        body = {**sent, **_merged(extras, job.model.params)}
        if mark is not None:
            # At the root it would mark the end of each row's prompt, which is written and never read.
            body.pop("cache_control", None)
            body["messages"] = marked(messages, beginning_of(messages, _leaves), mark)
        local = job.model.endpoint == "local"  # its namespace names the model, so that its file may move
        question = {
            name: value
            for name, value in {**asked, **job.model.params}.items()
            if FIELDS.get(name, True) and not (local and name == "model")
        }
        self._body, self._preview = _Skeleton(body), _Skeleton(messages)
        self._question = _Skeleton(question, option=_SORTED)
        self._hash = blake2b(orjson.dumps(namespace) + b"\n" + self._question.first, digest_size=KEY_BYTES)
        self.wording: str = "-".join(map(_digest, _parts(namespace, question)))
        """Digests of the job's own words: model, prompt, answer, params that count. They depend on no row."""

    def key(self, values: Sequence[Any]) -> bytes | RowProblem:
        """Return the key of a row's question: KEY_BYTES bytes."""
        filled = self._filled(self._question, values, self._digest_of)
        if isinstance(filled, RowProblem):
            return filled
        digest = self._hash.copy()
        digest.update(filled)
        return digest.digest()

    def body(self, values: Sequence[Any]) -> bytes | RowProblem:
        """Return the JSON to send for a row; local files are read and encoded now."""
        filled = self._filled(self._body, values, self._content_of)
        if isinstance(filled, RowProblem):
            return filled
        return self._body.first + filled

    def messages(self, values: Sequence[Any]) -> list[dict[str, Any]] | RowProblem:
        """Return a row's messages for people: an image or a PDF is its path or URL, unless its text is extracted."""
        filled = self._filled(self._preview, values, self._shown)
        if isinstance(filled, RowProblem):
            return filled
        messages: list[dict[str, Any]] = orjson.loads(self._preview.first + filled)
        return messages

    def pages(self, values: Sequence[Any]) -> int:
        """Return how many pages a row's local PDFs have, of those that are sent as files; 0 where nobody knows."""
        self._templates.fill(values)
        pages = 0
        for leaf, _ in self._body.rest:
            if leaf.attached is PDF and not leaf.extracted:
                with suppress(PromptError):  # then the row can't be asked
                    pages += self._files.pages(leaf.template.text().strip())
        return pages

    def _filled(self, skeleton: _Skeleton, values: Sequence[Any], attach: _Attach) -> bytes | RowProblem:
        """Return a skeleton's JSON after its first segment."""
        self._templates.fill(values)
        pieces: list[bytes] = []
        size = 0
        for leaf, segment in skeleton.rest:
            try:
                text = leaf.template.text() + leaf.suffix
                if leaf.asks and not text.strip():  # some servers refuse it, others answer "How can I help you?"
                    return RowProblem("template_error", f"{dotted(leaf.path)}: {_EMPTY}")
                if leaf.attached is not None:
                    text = attach(leaf, leaf.attached, text.strip())
                dumped = orjson.dumps(text)
            except PromptError as problem:
                return RowProblem(problem.error_type, f"{dotted(leaf.path)}: {problem}")
            except orjson.JSONEncodeError:
                message = f"{dotted(leaf.path)}: the text contains half a character (an unpaired surrogate)"
                return RowProblem("template_error", message)
            if leaf.attached is None or leaf.extracted:
                size += len(dumped)
            pieces += (dumped, segment)
        if size > MAX_PROMPT_BYTES:
            return RowProblem("request_too_large", f"the prompt has {size:,} bytes; the most is {MAX_PROMPT_BYTES:,}")
        return b"".join(pieces)

    def _digest_of(self, leaf: _Leaf, kind: Kind, written: str) -> str:
        """Return what an attachment is in a question: a URL as it is, a file by its content."""
        digest = written
        if not _is_url(leaf, kind, written):
            digest = f"sha256:{self._files.digest(written, kind)}"
        return f"text of {digest}" if leaf.extracted else digest

    def _content_of(self, leaf: _Leaf, kind: Kind, written: str) -> str:
        if leaf.extracted:
            return self._files.text(written)
        if _is_url(leaf, kind, written):
            return written
        if self._urls_only:
            raise kind.error(f"a batch takes images by URL alone, not the file {written}: ask this row live")
        return self._files.data_url(written, kind)

    def _shown(self, leaf: _Leaf, kind: Kind, written: str) -> str:
        if leaf.extracted:
            return self._files.text(written)
        self._digest_of(leaf, kind, written)
        return written


def _is_url(leaf: _Leaf, kind: Kind, written: str) -> bool:
    """Check whether an attachment is a URL that can be sent. Raises PromptError for a `data:` URL without a PDF."""
    if not kind.is_url(written):
        return False
    if kind is PDF and (leaf.extracted or written[:5].lower() == "data:"):
        pdf_of(written)
    return True


def content_text(content: str | Sequence[Mapping[str, Any]]) -> str:
    """Return the content of a message that Renderer.messages made as text; attachments by path or URL."""
    if isinstance(content, str):
        return content
    return "\n".join(map(_part_text, content))


def _part_text(part: Mapping[str, Any]) -> str:
    match part:
        case {"image_url": {"url": shown}}:
            return f"[image] {shown}"
        case {"file": {"file_data": shown}}:
            return f"[file] {shown}"
    return str(part["text"])


def _as_list(question: Decision) -> list[Any]:
    return [question.name, question.kind, question.instructions, question.options]


_WORDS = ("model", "prompt", "answer", "parameters")


def _parts(namespace: str, question: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what the words of _WORDS stand for, in their order."""
    own = {"model", "models", "messages", "state", "response_format", "grammar", "questions"}
    model = [namespace, question.get("model"), question.get("models")]
    params = {name: value for name, value in question.items() if name not in own}
    prompt = [question.get("messages"), question.get("state")]
    answer = [question.get(name) for name in ("response_format", "grammar", "questions")]
    return model, prompt, answer, params


def _digest(part: Any) -> str:  # noqa: ANN401  (JSON with leaves)
    words = orjson.dumps(part, option=_SORTED, default=lambda leaf: [leaf.template.source])
    return blake2b(words, digest_size=KEY_BYTES).hexdigest()


def changed_words(before: str, after: str) -> str:
    """Return which of a job's own words differ between two wordings, for people: `model`, `prompt and parameters`."""
    pairs = zip(_WORDS, before.split("-"), after.split("-"), strict=False)
    return " and ".join(name for name, old, new in pairs if old != new) or "job"


def _asked(job: Job) -> dict[str, Any]:
    """Return the fields that name the models."""
    asked: dict[str, Any] = {}
    if job.model.name is not None:
        asked["model"] = job.model.name
    if job.model.fallbacks:
        asked["models"] = list(job.model.fallbacks)
    return asked
