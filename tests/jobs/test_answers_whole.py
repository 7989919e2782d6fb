"""Whole jobs against servers that answer in their own dialects: what becomes of a row, after how many requests."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from job_running import KEY, Ran, fast, run, write_job
from plain_server import plain_server

GOOD, BAD = '{"label": "good", "score": 1}', '{"label": "bad", "score": 2}'
TEXT: dict[str, Any] = {"answer": None}


def said(content: object, finish: object = "stop", tokens: int = 5, **more: object) -> tuple[int, dict[str, Any]]:
    """Return a reply in which a model said this; `more` is put into its message."""
    choice = {"finish_reason": finish, "message": {"role": "assistant", "content": content, **more}}
    return 200, {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": tokens}}


def refused(status: int, message: str, **more: object) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"message": message, **more}}


def asked(
    folder: Path, replies: Mapping[str, tuple[int, dict[str, Any]]], *, text: bool = False, runs: int = 1
) -> tuple[Ran, Counter[str]]:
    """Run a job with one row for each key; return what the last run left, and how often it asked each row."""
    seen: Counter[str] = Counter()

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        question = next(turn["content"] for turn in body["messages"] if turn["role"] == "user")
        row = next(row for row in replies if question.endswith(f" {row}"))
        seen[row] += 1
        return replies[row]

    with plain_server(answer) as url:
        sections = {"limits": {"concurrency": 1}, **(TEXT if text else {})}
        path = write_job(folder, url, rows=list(replies), model={"name": "m"}, **sections)
        for _ in range(runs):
            seen.clear()
            ran = run(path, clock=fast(2_000))
        return ran, seen


DRAFTS = {
    "think": f"<think>maybe {GOOD}</think>{BAD}",
    "thinking": f"<thinking>maybe {GOOD}, no: irony</thinking>\n{BAD}",
    "late": f"{GOOD}? no, irony.\n</think>\n{BAD}",
    "mistral": f"[THINK]{GOOD}[/THINK]{BAD}",
    "harmony": f"<|channel|>analysis<|message|>{GOOD}<|end|><|start|>assistant<|channel|>final<|message|>{BAD}",
    "reasoning": f"<reasoning>maybe {GOOD}</reasoning>{BAD}",
    "bare": f"analysisMaybe {GOOD}.assistantfinal{BAD}",
    "quoted": f'<think>it says "good"</think>```json\n{BAD}\n```',
    "nested": f"<thinking>a <think>b</think> {GOOD}</thinking> so {BAD}",
    "gemma": f"<|channel>thought\n{GOOD}<channel|>{BAD}",
    "medgemma": f"<unused94>thought\n{GOOD}<unused95>{BAD}",
    "longcat": f"<longcat_think>{GOOD}</longcat_think>{BAD}",
    "apertus": f"<|inner_prefix|>{GOOD}<|inner_suffix|>{BAD}",
    "apriel": f"My reasoning steps: {GOOD}\n[BEGIN FINAL RESPONSE]\n{BAD}\n[END FINAL RESPONSE]",
    "twice": f"{BAD}\nTo repeat: {BAD}",
}
UNCLEAR = {
    "prose": f"A naive reading gives {GOOD}. But this is irony, so the answer is {BAD}",
    "fences": f"```json\n{GOOD}\n```\nCorrected:\n```json\n{BAD}\n```",
    "unfit": f'{GOOD} or rather {{"label": "awful", "score": 3}}',
    "half": f'{GOOD} or rather {{"label": "ba',
    "endless": f"Sure. <thinking>maybe {GOOD}",
}


def test_a_draft_is_never_the_answer(tmp_path: Path) -> None:
    """The last object after the thoughts counts; several different ones without a mark are a mismatch."""
    ran, _ = asked(tmp_path, {name: said(text) for name, text in {**DRAFTS, **UNCLEAR}.items()})
    assert ran.column("label") == ["bad"] * len(DRAFTS) + [None] * len(UNCLEAR)
    assert set(ran.column("error_type")[len(DRAFTS) :]) == {"schema_mismatch"}


def test_an_object_that_is_not_about_the_columns_is_never_the_answer(tmp_path: Path) -> None:
    """Other names, the schema itself, and a part of an object that is broken: a schema that requires nothing fits all.

    No object at all, and one that leaves fields out, are what such a schema is for.
    """
    person = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "boss": person}}
    wrong = {
        "names": '{"Name": "Ada", "Boss": {"name": "Bob"}}',
        "wrapped": '{"answer": {"name": "Ada"}}',
        "schema": f"Here you are: {json.dumps(schema)}",
        "inner": '{"name": "Ada", "boss": {"Name": "Bob"}}',
        "part": """<think>hm</think>{"name": 'Ada', "boss": {"name": "Bob"}}""",
        "digits": '{"name": "Ada", "boss": {"age": 9007199254740993.0}}',
    }
    right = {"nothing": "{}", "less": '{"name": "Ada"}', "more": 'Its {} are "no": {"name": "Ada", "sure": true}'}
    with plain_server(lambda body: said((wrong | right)[body["messages"][-1]["content"].split()[-1]])) as url:
        answer = {"columns": None, "schema": schema, "mode": "object", "repairs": 0}
        ran = run(write_job(tmp_path, url, rows=[*wrong, *right], model={"name": "m"}, answer=answer))
    assert ran.column("error_type") == ["schema_mismatch"] * len(wrong) + [None] * len(right)
    assert ran.column("name") == [None] * len(wrong) + [None, "Ada", "Ada"]
    messages = dict(zip(wrong, ran.column("error_message"), strict=False))
    assert messages["names"] == 'there is none of the fields "name", "boss", only "Name", "Boss"'
    assert messages["inner"] == 'boss: there is none of the fields "name", "age", only "Name"'
    assert messages["digits"].startswith("boss.age: 9007199254740992.0 is not exact")


def test_thoughts_are_cut_off_a_text_answer(tmp_path: Path) -> None:
    """A text answer is what follows the thoughts; a mark that is only mentioned is part of the text."""
    texts = {
        "a": ("<think>hm</think>\n\nParis", "Paris"),
        "b": ("The user wants a city.\n</think>\nParis", "Paris"),
        "c": ("It ends with `</think>`.", "It ends with `</think>`."),
        "d": ("  Paris \n", "  Paris \n"),
        "e": ("<|START_THINKING|>hm<|END_THINKING|>Paris", "Paris"),
        "g": ("<|channel>thought\nhm<channel|>Paris", "Paris"),
        "h": ("<longcat_think>hm</longcat_think>Paris", "Paris"),
        "i": ("<final_thoughts>Paris</final_thoughts>", "<final_thoughts>Paris</final_thoughts>"),
        "j": ("<|inner_prefix|>hm<|inner_suffix|>Paris", "Paris"),
        "k": ("My steps: hm\n[BEGIN FINAL RESPONSE]\nParis\n[END FINAL RESPONSE]", "Paris"),
        "f": ("<reasoning>asked for</reasoning><x>Paris</x>", "<reasoning>asked for</reasoning><x>Paris</x>"),
    }
    ran, _ = asked(tmp_path, {name: said(text) for name, (text, _) in texts.items()}, text=True)
    assert ran.column("answer") == [wanted for _, wanted in texts.values()]


def test_marks_of_a_turn_are_no_part_of_a_text_answer(tmp_path: Path) -> None:
    """A server with the wrong template for its model leaves them around the answer; HTML keeps its tags."""
    texts = {
        "a": ("<|begin_of_box|>Paris<|end_of_box|>", "Paris"),
        "b": ("<think>hm</think><|begin_of_box|>Paris<|end_of_box|>", "Paris"),
        "d": ("Paris<\uff5cend▁of▁sentence\uff5c>", "Paris"),
        "e": ("<|im_start|>assistant\nParis<|im_end|>", "Paris"),
        "f": ("<|start_header_id|>assistant<|end_header_id|>\n\nParis<|eot_id|>", "Paris"),
        "g": ("Not <s>London</s>", "Not <s>London</s>"),
        "h": ("a < b [1]", "a < b [1]"),
    }
    ran, _ = asked(tmp_path, {name: said(text) for name, (text, _) in texts.items()}, text=True)
    assert ran.column("answer") == [wanted for _, wanted in texts.values()]


def test_what_stands_before_a_call_of_a_tool_is_not_the_answer(tmp_path: Path) -> None:
    """The call is the answer, as where it stands alone; a call that is over (finish_reason stop) leaves the text."""
    call = {"id": "1", "type": "function", "function": {"name": "search", "arguments": "{}"}}
    replies = {
        "a": said("Let me look that up.", "tool_calls", tool_calls=[call]),
        "b": said("Paris", "stop", tool_calls=[call]),
    }
    ran, _ = asked(tmp_path, replies, text=True)
    called, text = ran.column("answer")
    assert (json.loads(called), text) == ([call], "Paris")


def test_half_of_a_text_is_never_ok(tmp_path: Path) -> None:
    """Only a known good finish_reason is; an unknown one is bought once more, then the row fails."""
    ends = {"model_length": "truncated", "insufficient_system_resource": "server_error", "SAFETY": "content_filter",
            "MAX_TOKENS": "truncated", "abort": "server_error", "who_knows": "interrupted",
            "content_filter: RECITATION": "content_filter"}  # fmt: skip
    ran, seen = asked(tmp_path, {finish: said("The capital of Fra", finish) for finish in ends}, text=True)
    assert ran.column("error_type") == list(ends.values())
    assert ran.column("answer") == [None] * len(ends)
    assert seen["who_knows"] == 2


def test_a_complete_answer_is_ok_where_the_tokens_ended(tmp_path: Path) -> None:
    """finish_reason "length" after a whole object costs nothing; within one it is a cut."""
    ran, _ = asked(tmp_path, {"whole": said(GOOD + "\n\n  ", "length"), "cut": said(GOOD[:-3], "length")})
    assert (ran.column("label"), ran.column("error_type")) == (["good", None], [None, "truncated"])


def test_reasoning_without_an_answer_is_bought_at_most_twice(tmp_path: Path) -> None:
    """The message says what was paid for, and the next run does not pay again by itself."""
    replies = {
        "a": said(None, reasoning="hm", tokens=700),
        "b": said(None, reasoning_content="hm", tokens=700),
        "c": said("<think>hm</think>", tokens=700),
        "d": said("", tokens=3),
    }
    (tmp_path / "again").mkdir()
    ran, seen = asked(tmp_path, replies)
    assert ran.column("error_type") == ["no_answer"] * 4
    assert "only reasoning and no answer (700 tokens are billed)" in ran.column("error_message")[0]
    assert max(seen.values()) == 2
    again, seen = asked(tmp_path / "again", replies, runs=2)
    assert (again.summary.failed, sum(seen.values())) == (4, 0)


def test_an_answer_in_the_place_of_the_thoughts_is_bought_once(tmp_path: Path) -> None:
    """A parser of reasoning in vLLM puts the whole answer there where a model does not think."""
    replies = {"a": said(None, reasoning_content=GOOD, tokens=9), "b": said("", reasoning=BAD, tokens=9)}
    ran, seen = asked(tmp_path, replies)
    assert ran.column("label") == ["good", "bad"]
    assert max(seen.values()) == 1


def test_one_row_too_large_fails_alone_and_by_its_name(tmp_path: Path) -> None:
    """In the words of OpenAI, vLLM, TGI, Together and LiteLLM; it is asked once and holds nobody up."""
    limit = "Request too large for m on tokens per min (TPM): Limit 30000, Requested 36278."
    inputs = "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096."
    replies = {
        "fine": said("fine"),
        "openai": refused(429, limit, type="tokens", code="rate_limit_exceeded"),
        "vllm": (400, {"object": "error", "message": "max_tokens must be at least 1, got -186.", "code": 400}),
        "tgi": (422, {"error": inputs, "error_type": "validation"}),
        "together": refused(422, inputs, type="invalid_request_error", param=None),
        "litellm": refused(400, "litellm.ContextWindowExceededError: x", code="400"),
    }
    ran, seen = asked(tmp_path, replies, text=True)
    assert ran.column("error_type") == [None, "payload_too_large", *["context_length"] * 4]
    assert (ran.summary.exit_code, set(seen.values())) == (1, {1})


def test_a_parameter_called_none_is_none(tmp_path: Path) -> None:
    """LiteLLM writes `param: "None"` into each refusal: two rows that a guardrail refuses first stop no run."""
    guarded = refused(400, "prompt injection detected (risk=0.855)", type="None", param="None", code="400")
    ran, _ = asked(tmp_path, {"a": guarded, "b": guarded, "c": said("fine")}, text=True)
    assert ran.column("error_type") == ["bad_request", "bad_request", None]


ACCOUNTS = {
    "gemini-key": refused(400, "API key expired.", details=[{"reason": "API_KEY_INVALID"}]),
    "anthropic": refused(400, "Your credit balance is too low to access the API.", type="invalid_request_error"),
    "litellm": refused(400, "Budget has been exceeded! Current cost: 2, Max budget: 1", type="budget_exceeded"),
    "litellm-429": refused(429, "ExceededBudget: User=u over budget. Spend=2, Budget=1", code="429"),
    "openai": refused(429, "Your account is not active", type="billing_not_active", code="billing_not_active"),
    "mistral": (400, {"object": "error", "message": "Invalid model: m", "type": "invalid_model", "code": "1500"}),
    "o-series": refused(400, "Unsupported parameter: 'max_tokens'", param="max_tokens", code="unsupported_parameter"),
    "z-ai": (200, {"code": 500, "msg": "404 NOT_FOUND", "success": False}),
    "lm-studio": (200, {"error": "Unexpected endpoint or method. (POST /chat/completions)"}),
}


@pytest.mark.parametrize("name", ACCOUNTS)
def test_a_refused_account_or_setting_stops_the_run(name: str, tmp_path: Path) -> None:
    """Whatever the status, the rows stay pending, after a few requests."""
    ran, seen = asked(tmp_path, {f"row{number}": ACCOUNTS[name] for number in range(5)})
    assert (ran.summary.exit_code, ran.summary.pending, ran.summary.failed) == (3, 5, 0)
    assert sum(seen.values()) <= 2
    assert KEY not in str(ran)


def test_an_answer_that_the_server_refused_is_asked_for_once_more(tmp_path: Path) -> None:
    """Groq's json_validate_failed counts as a repair; what the model wrote is kept."""
    failed = refused(400, "Failed to validate JSON.", code="json_validate_failed", failed_generation='{"label": goo')
    ran, seen = asked(tmp_path, {"a": failed})
    assert (ran.column("error_type"), ran.column("answer_raw")) == (["schema_mismatch"], ['{"label": goo'])
    assert seen["a"] == 2


def test_broken_characters_are_asked_for_once_more_and_then_shown(tmp_path: Path) -> None:
    """U+FFFD that the prompt does not contain fails the row; where the prompt contains it, it may be quoted."""
    ran, seen = asked(tmp_path, {"plain": said("Gr\ufffdn"), "quote \ufffd": said("quote \ufffd")}, text=True)
    assert ran.column("error_type") == ["broken_text", None]
    assert (seen["plain"], seen["quote \ufffd"]) == (2, 1)


def test_retry_is_offered_only_where_it_may_help(tmp_path: Path) -> None:
    """The last line names `retry` for answers that chance may mend, the plain command for what passes by itself."""
    odd, filtered, down = said('{"label": "go', "who_knows"), said("", "content_filter"), refused(500, "down")
    offered = {
        "nothing": ({"a": said(GOOD), "b": filtered}, None),
        "retry": ({"a": said(GOOD), "b": odd}, "batchrun retry JOB"),
        "only": (
            {"a": said(GOOD), "b": odd, "c": filtered},
            "batchrun retry --only interrupted JOB",
        ),
        "plain": ({"a": said(GOOD), "b": down, "c": filtered}, "batchrun JOB"),
    }
    for name, (replies, line) in offered.items():
        (tmp_path / name).mkdir()
        ran, _ = asked(tmp_path / name, replies)
        found = re.sub(r"\S*job.yaml", "JOB", ran.summary.next or "")
        assert found.startswith(line) if line else not found, (name, found)


def test_a_server_that_wants_a_key_says_where_to_name_it(tmp_path: Path) -> None:
    """A job that names no key is not asked to set the variable of one."""
    with plain_server(lambda _: refused(401, "no key given")) as url:
        path = write_job(tmp_path, url, rows=1)
        job = json.loads(path.read_text())
        del job["model"]["api_key_env"]
        path.write_text(json.dumps(job))
        assert "write its variable's name into model.api_key_env" in (run(path, clock=fast(2_000)).summary.advice or "")
