"""Each mistake of a job, an input or a flag, as `batchrun check` prints it: where it is, what is wrong, what to do."""

from pathlib import Path

import pytest
from command_line import Command, command, job, openrouter, simulator

__all__ = ["command", "job", "openrouter", "simulator"]

pytestmark = pytest.mark.usefixtures("job", "openrouter")

SECTIONS = {
    "input": "{path: rows.csv}",
    "prompt": '"Review: {{ text }}"',
    "model": "{endpoint: openrouter, name: openai/gpt-4o-mini}",
    "output": "out.csv",
}


def written(**sections: str) -> str:
    """Return a job file with these sections in place of the good ones, one a line."""
    return "".join(f"{name}: {value}\n" for name, value in (SECTIONS | sections).items())


NO_COLUMN = "the prompt uses no column, so all rows would get the same answer: "
ALLOWED = " (dedupe: false allows a prompt without columns)"
OBJECT = "this is an object with the field "

MISTAKES = {
    "cut by a comment": (
        {"prompt": "Rate the review # 1 to 5: {{ text }}"},
        f"2:9: {NO_COLUMN}YAML reads # 1 to 5: {{{{ text }}}} as a comment; put the prompt in quotes{ALLOWED}",
    ),
    "a label that loses its zero": (
        {"answer": '{columns: {z: [01, "02"]}}'},
        "5:24: answer.columns.z[0]: 01 would become a number without its zeros; quote it",
    ),
    "a variable without braces": (
        {"output": "$PATH/out.csv"},
        "4:9: output.path: write ${PATH} for the variable PATH, or $$PATH for that text itself",
    ),
    "one brace": (
        {"prompt": '"Rate {text}"'},
        f"2:9: {NO_COLUMN}{{text}} is sent as it stands; for the cell write {{{{ text }}}}{ALLOWED}",
    ),
    "a shell variable": (
        {"prompt": '{system: a, user: "Rate ${text}"}'},
        f"2:27: {NO_COLUMN}${{text}} is sent as it stands; for the cell write {{{{ text }}}}{ALLOWED}",
    ),
    "no column": (
        {"prompt": "Tell a joke."},
        f"2:9: {NO_COLUMN}write {{{{ name }}}} for a cell of the column name{ALLOWED}",
    ),
    "enum": ({"answer": "{columns: {b: {enum: [x, y]}}}"}, f'5:20: {OBJECT}"enum"; for a fixed list write b: [x, y]'),
    "items": ({"answer": "{columns: {e: {items: string}}}"}, f'5:20: {OBJECT}"items"; for a list write e: [string]'),
    "minlen": (
        {"answer": "{columns: {e: {type: string, minlen: 3}}}"},
        '5:46: unknown key "minlen"; for the length of a text write pattern: "^.{1,200}$"',
    ),
    "a key of the long form": (
        {"answer": "{columns: {e: {type: string, desciption: yes}}}"},
        '5:50: unknown key "desciption"; did you mean "description"?',
    ),
    "a type": ({"answer": "{columns: {e: strng}}"}, '5:23: unknown type "strng", did you mean "string"?'),
    "list": ({"answer": "{columns: {e: list}}"}, '5:23: unknown type "list"; for a list write [string]'),
    "a type in a schema": (
        {"answer": "{schema: {type: object, properties: {x: {type: strin}}}}"},
        '5:56: unknown type "strin", did you mean "string"?',
    ),
    "max_tokens": (
        {"model": '{endpoint: openrouter, name: m, params: {max_tokens: "fifty"}}'},
        '3:61: model.params.max_tokens must be a whole number, not "fifty"',
    ),
    "no bound in the words of llama.cpp": (
        {"model": "{endpoint: openrouter, name: m, params: {max_tokens: -1}}"},
        "3:61: model.params.max_tokens must be at least 1, not -1; null sends no bound",
    ),
    "temperature": (
        {"model": "{endpoint: openrouter, name: m, params: {temperature: hot}}"},
        '3:62: model.params.temperature must be a number, not "hot"',
    ),
    "a union of types": (
        {"answer": "{columns: {e: [string, null]}}"},
        "5:20: these are names of types, read as labels; for a value that may be missing write string?",
    ),
    "types as labels": (
        {"answer": "{columns: {e: [integer, string]}}"},
        "5:20: these are names of types, read as labels; a column has one type; for the labels themselves write",
    ),
    "a union of JSON Schema": (
        {"answer": "{columns: {e: {anyOf: [string, integer]}}}"},
        f'5:20: {OBJECT}"anyOf"; JSON Schema belongs below answer.schema',
    ),
    "an optional type": (
        {"answer": "{columns: {e: 'Optional[int]'}}"},
        '5:23: unknown type "Optional[int]"; write int?',
    ),
    "a list of Python": ({"answer": "{columns: {e: 'list[str]'}}"}, '5:23: unknown type "list[str]"; write [str]'),
    "a text and repairs": (
        {"answer": "{repairs: 2}"},
        "5:1: answer needs columns or schema; leave answer out for an answer in text",
    ),
    "two forms": (
        {"answer": "{columns: {a: string}, schema: {type: object, properties: {a: {type: string}}}}"},
        "5:1: answer has columns as well as schema: write one of them",
    ),
    "a choice that may be null": (
        {"answer": "{columns: {e: [a, b]?}}"},
        (
            "5:29: not valid YAML: expected ',' or '}', but got '?' while parsing a flow mapping; "
            "where a list or a choice may be null write {type: [a, b], nullable: true}"
        ),
    ),
    "a list that may be null, quoted": (
        {"answer": "{columns: {e: '[string]?'}}"},
        '5:23: unknown type "[string]?"; write {type: [string], nullable: true}',
    ),
    "a choice in quotes": (
        {"answer": "{columns: {e: '[a, b]'}}"},
        '5:23: unknown type "[a, b]"; write [a, b] without quotes',
    ),
    "a date of JSON Schema": (
        {"answer": "{columns: {e: {type: string, format: date}}}"},
        '5:20: this is an object with the field "format"; for a date write e: date',
    ),
    "a choice of TypeScript": ({"answer": "{columns: {e: 'a | b'}}"}, '5:23: unknown type "a | b"; write [a, b]'),
    "a range": (
        {"answer": "{columns: {e: 1-5}}"},
        '5:23: unknown type "1-5"; write {type: integer, min: 1, max: 5}',
    ),
    "columns as a list": (
        {"answer": "{columns: [label, reason]}"},
        "5:10: answer.columns must be a mapping, such as {label: [good, bad], reason: string}",
    ),
    "a column beside columns": (
        {"answer": "{reason: string}"},
        '5:10: unknown key "reason", did you mean "repairs"? The columns of the answer belong below answer.columns',
    ),
    "a model's name alone": (
        {"model": "gpt-4o-mini"},
        '3:8: model must be a mapping, such as {endpoint: openrouter, name: openai/gpt-4o-mini}, not "gpt-4o-mini"',
    ),
    "a conversation as the prompt": (
        {"prompt": "[{role: user, content: '{{ text }}'}]"},
        "2:1: prompt must be a mapping, such as {messages: [{role: user, content: …}]}",
    ),
    "an input that is not there": ({"input": "rowz.csv"}, "1:8: input.path: there is no file "),
    "where": (
        {"input": "{path: rows.csv, where: lang = 'en'}"},
        '1:32: input.where: the input has no column "lang"',
    ),
    "the grammar of where": (
        {"input": "{path: rows.csv, where: text = = 'en'}"},
        "1:32: input.where: not valid SQL at column 8: expected an expression, found =",
    ),
    "null compared": (
        {"input": "{path: rows.csv, where: text != null and id = '1'}"},
        "1:32: input.where: a comparison with null is never true: write is null, or is not null",
    ),
    "where of a program": (
        {"input": "{path: rows.csv, where: text = 'a' && id = '1'}"},
        "1:32: input.where: not valid: write and, or, not",
    ),
    "where of pandas": (
        {"input": "{path: rows.csv, where: text.str.contains('x')}"},
        "1:32: input.where: not valid: this is SQL, not Python: text like '%x%'",
    ),
    "a whole statement": (
        {"input": "{path: rows.csv, where: select * from rows where text is not null}"},
        "1:32: input.where: not valid: write the condition alone, without SELECT and WHERE",
    ),
    "an order": (
        {"input": "{path: rows.csv, where: text is not null limit 5}"},
        "1:32: input.where: not valid: a condition only chooses rows: no ORDER BY, GROUP BY or LIMIT",
    ),
    "isnull": (
        {"input": "{path: rows.csv, where: isnull(text)}"},
        "1:32: input.where: not valid: write text is null, or text is not null",
    ),
    "a function in where": (
        {"input": "{path: rows.csv, where: lenght(text) > 3}"},
        '1:32: input.where: there is no function "lenght", did you mean "length"?',
    ),
    "a near column in where": (
        {"input": "{path: rows.csv, where: txt is not null}"},
        '1:32: input.where: the input has no column "txt", did you mean "text"?',
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_with_its_place(command: Command, name: str) -> None:
    """A job with one mistake ends with exit 2 and the line that is agreed on, before anything is sent."""
    sections, wanted = MISTAKES[name]
    Path("job.yaml").write_text(written(**sections))
    ended = command("check", "job.yaml")
    assert (ended.code, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert line.startswith(f"job.yaml:{wanted}")


BELOW = "the columns of the answer belong below answer.columns"
FOREIGN = """\
input: {file: rows.csv, format: csv}
prompt: {template: "{{ text }}"}
model: {model: gpt-4o-mini, api_base: "http://127.0.0.1:9/v1", num_retries: 3, request_timeout: 10}
output: {path: out.csv, format: csv}
answer: {type: json, columns: {label: "Literal['a', 'b']"}}
temperature: 0
response_format: {type: json_object}
"""


def test_keys_of_other_tools_name_the_key_to_write(command: Command) -> None:
    """A job in the words of other tools is corrected in one go: each key gets its place and what to write here."""
    Path("job.yaml").write_text(FOREIGN)
    lines = [line.removeprefix("job.yaml:") for line in command("check", "job.yaml").err.splitlines()]
    assert [line for line in lines if "missing" not in line] == [
        '1:9: unknown key "file": write path',
        '1:25: unknown key "format": the suffix of path decides',
        '2:10: unknown key "template": write user',
        '3:9: unknown key "model": write name',
        '3:29: unknown key "api_base": write endpoint',
        '3:64: unknown key "num_retries": write limits.attempts',
        '3:80: unknown key "request_timeout": write limits.timeout',
        '4:25: unknown key "format": the suffix of path decides',
        f'5:10: unknown key "type"; known keys are columns, schema, repairs, mode; {BELOW}',
        "5:39: unknown type \"Literal['a', 'b']\"; write [a, b]",
        '6:1: unknown key "temperature": parameters of the API belong below model.params',
        '7:1: unknown key "response_format": describe the answer below answer',
    ]


@pytest.mark.parametrize(
    "input_", ["gone.csv", "{path: rows.csv, where: 'nothing = 1'}", "{path: rows.csv, csv: {separator: '||'}}"]
)
def test_a_wrong_input_hides_no_other_mistake(command: Command, input_: str) -> None:
    """Template syntax, the answer and the limits are reported with a wrong input; columns too where they are known."""
    prompt = "{user: '{{ text', system: '{{ text | uper }}'}"
    Path("job.yaml").write_text(
        written(input=input_, prompt=prompt, answer="{columns: {a: strng}}", limits="{attempts: 0, deadline: 5}")
    )
    lines = command("check", "job.yaml").err.splitlines()
    assert [line.split(":")[1] for line in lines] == ["1", "2", "2", "5", "6", "6"]


def test_a_wrong_where_leaves_the_columns_known(command: Command) -> None:
    """Missing columns of the template and of output.keep come in one go with the mistake in where."""
    where = "{path: rows.csv, where: 'nothing = 1'}"
    Path("job.yaml").write_text(written(input=where, prompt='"{{ txt }}"', output="{path: o.csv, keep: [ide]}"))
    lines = command("check", "job.yaml").err.splitlines()
    assert [line.split(": ", 1)[1].partition(",")[0] for line in lines] == [
        'input.where: the input has no column "nothing"; it has id',
        'the input has no column "txt"',
        'the input has no column "ide"',
    ]


def test_a_mistake_in_a_prompts_file_names_the_line_there(command: Command) -> None:
    """The template's line is that of its own file; the place is where the job file names it."""
    Path("user.md").write_text("A text:\n{{ txt }}\n")
    Path("job.yaml").write_text(written(prompt="{user: {file: user.md}}"))
    line = command("check", "job.yaml").err
    assert line == 'job.yaml:2:10: user.md, line 2: the input has no column "txt", did you mean "text"?\n'


def test_single_braces_beside_a_cell_are_a_warning(command: Command) -> None:
    """`{id}` in a prompt that uses another column is sent as it stands; the check says so."""
    Path("job.yaml").write_text(written(prompt='"{{ text }} {id}"'))
    ended = command("check", "job.yaml")
    assert ended.code == 0
    assert "warning  prompt: prompt.user: {id} is sent as it stands; for the cell write {{ id }}\n" in ended.out


def test_an_unknown_model_is_a_mistake(command: Command) -> None:
    """A name that is not in the server's list of models ends the check with exit 2 and the nearest one."""
    Path("job.yaml").write_text(written(model="{endpoint: openrouter, name: openai/gpt-4o-minii}"))
    ended = command("check", "job.yaml")
    assert ended.code == 2
    line = 'mistake  model: openrouter has no model "openai/gpt-4o-minii", did you mean "openai/gpt-4o-mini"?\n'
    assert line in ended.out


@pytest.mark.parametrize("command_name", ["check", "run"])
def test_equal_questions_are_allowed_by_dedupe_false(command: Command, command_name: str) -> None:
    """A prompt without columns is a mistake for a run as well, and none where each row is asked by itself."""
    Path("job.yaml").write_text(written(prompt="Tell a joke."))
    assert command(command_name, "job.yaml").code == 2
    Path("job.yaml").write_text(written(prompt="Tell a joke.", dedupe="false"))
    assert command(command_name, "job.yaml").code == 0


def test_an_output_in_the_folders_of_the_input_is_refused(command: Command) -> None:
    """The next run would read it as rows: `**` stands for no folder as well."""
    Path("data/old").mkdir(parents=True)
    Path("data/old/rows.csv").write_text("text\na\n")
    Path("job.yaml").write_text(written(input='{path: "data/**/*.csv"}', output="data/labelled.csv"))
    ended = command("check", "job.yaml")
    wanted = "job.yaml:4:9: output.path is one of the files of input.path: write it elsewhere\n"
    assert (ended.code, ended.err) == (2, wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--endpoint", "opnrouter"],
            "--endpoint must be openrouter, local, simulator or a URL with https://",
        ),
        (["--endpoint", "http://models.example/v1"], "--endpoint sends rows and key unencrypted: write https://"),
        (["--output", "out.txt"], "--output must end in .parquet, .csv"),
        (["--output", "rows.csv"], "--output is one of the files of input.path: write it elsewhere"),
        (["--engine", "batch", "--wait", "2"], "--wait must be 0 or a time with its unit, such as 90s, 2h or 1h30m"),
        (["--api-key-env", "A-B"], "--api-key-env must be the name of a variable, never the key itself"),
    ],
)
def test_a_flag_is_blamed_as_a_flag(command: Command, arguments: list[str], message: str) -> None:
    """A mistake in a flag names the flag and no line of the job file."""
    ended = command("run", "job.yaml", *arguments)
    assert ended.code == 2
    assert ended.err.startswith(f"error: {message}")
    assert "job.yaml" not in ended.err
