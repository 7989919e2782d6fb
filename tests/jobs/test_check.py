"""`batchrun check`: everything that can be known before a request, one line each."""

from pathlib import Path

import polars as pl
import pytest
from command_line import JOB, KEY, Command, command, files, job, openrouter, simulator
from simulator_server import Running
from wire_server import End, Wire, answer
from wire_thread import served

__all__ = ["command", "job", "openrouter", "simulator"]

pytestmark = pytest.mark.usefixtures("openrouter")

TEN = """\
input:
  path: rows.csv
prompt:
  user: |
    A text:
    {{ txt }}
    {{ text | uper }}
model:
  endpoint: openrouter
  name: openai/gpt-4o-mini
  params: {temperature: 0, stream: true}
  api_key: x
answer:
  columns: {a: strng}
limits:
  attempts: 0
  timeout: soon
  concurency: 8
output:
  path: out.csv
  keep: [id, txet]
  details: [status, stats]
"""


def test_a_good_job_has_no_mistake(command: Command, job: Path) -> None:
    """Each thing that was looked at has its line, and the exit code is 0."""
    ended = command("check", str(job))
    assert ended.code == 0
    assert ended.err == ""
    kinds = [line.split()[:2] for line in ended.out.splitlines()]
    for what in ("job", "input:", "prompt:", "answer:", "output:", "checkpoint:", "max_tokens:", "key:", "price:"):
        assert ["ok", what] in kinds, what
    assert all(kind in {"ok", "warning"} for kind, _ in kinds)


def test_the_model_is_asked_nothing_and_nothing_is_written(
    command: Command, job: Path, openrouter: Running, tmp_path: Path
) -> None:
    """A check leaves no file, and the server counts no request for an answer."""
    before = files(tmp_path)
    assert command("check", str(job)).code == 0
    assert files(tmp_path) == before
    assert openrouter.counters.requests == 0


def test_ten_mistakes_are_ten_lines(command: Command, job: Path) -> None:
    """Mistakes in the file, the template, the answer and the output are reported together, each with its position."""
    job.write_text(TEN)
    ended = command("check", "job.yaml")
    assert ended.code == 2
    places = [line.split(": ")[0] for line in ended.err.splitlines()]
    assert len(places) == 10
    assert len(set(places)) == 10
    assert all(place.startswith("job.yaml:") and place.count(":") == 2 for place in places)


def test_mistakes_are_reported_before_a_run_as_well(command: Command, job: Path) -> None:
    """A run with mistakes prints the same lines and makes nothing."""
    job.write_text(TEN)
    assert command("run", "job.yaml").err == command("check", "job.yaml").err
    assert not (job.parent / ".batchrun").exists()


def test_a_missing_key_is_reported_with_the_other_mistakes(
    command: Command, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key's variable stands beside a template's mistake, and where it was looked for."""
    monkeypatch.delenv("OPENROUTER_API_KEY")
    job.write_text(JOB.replace("{{ text }}", "{{ txt }}"))
    lines = command("check", "job.yaml").err.splitlines()
    assert len(lines) == 2
    assert 'no column "txt", did you mean "text"?' in lines[0]
    assert "OPENROUTER_API_KEY is not set" in lines[1]


@pytest.mark.parametrize("place", ["environment", "file"])
def test_the_keys_place_is_reported_and_its_value_never(
    command: Command, job: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The line of the key names the environment or the very .env file; no stream holds the key."""
    if place == "file":
        monkeypatch.delenv("OPENROUTER_API_KEY")
        (job.parent / ".env").write_text(f"OPENROUTER_API_KEY={KEY}\n")
    ended = command("check", str(job))
    origin = str(job.parent / ".env") if place == "file" else "the environment"
    assert f"key: OPENROUTER_API_KEY from {origin}\n" in ended.out
    assert KEY not in ended.out + ended.err


def test_a_refused_key_is_a_mistake(command: Command, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that GET /key refuses ends the check with exit 2; the key is not shown."""
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-or-v1-wrong")
    ended = command("check", str(job))
    assert ended.code == 2
    assert "\nmistake  key: " in ended.out
    assert "sk-or-v1-wrong" not in ended.out + ended.err


def test_more_than_the_key_has_left_is_a_warning(command: Command, job: Path, openrouter: Running) -> None:
    """A likely cost above the key's rest is reported before it is spent."""
    openrouter.change(credit="0.0000001")
    ended = command("check", str(job))
    assert ended.code == 0
    assert "warning  key: the likely cost is more than the $" in ended.out


def test_a_cap_without_a_price_is_a_mistake(command: Command, job: Path) -> None:
    """max_cost_usd for a model whose price nobody knows ends with exit 2."""
    job.write_text(JOB.replace("gpt-4o-mini", "gpt-9") + "limits: {max_cost_usd: 1}\n")
    ended = command("check", str(job))
    assert ended.code == 2
    assert 'mistake  limits: limits.max_cost_usd is set, but the price of "openai/gpt-9" is unknown' in ended.out


def test_the_simulator_has_every_model_at_a_price(command: Command, job: Path) -> None:
    """A job with a cap can be tried there whatever its model is called: check and run agree on it."""
    job.write_text(JOB.replace("gpt-4o-mini", "my-tuned-one") + "limits: {max_cost_usd: 1}\n")
    ended = command("check", str(job), "--endpoint", "simulator")
    assert (ended.code, "mistake" in ended.out) == (0, False), ended.out
    ended = command("run", str(job), "--endpoint", "simulator", "--limit", "1")
    assert "2 of 4 rows answered" in ended.err, ended.err


def test_a_likely_cost_above_the_cap_is_a_warning(command: Command, job: Path) -> None:
    """A cap that will stop the run is reported beforehand."""
    job.write_text(JOB + "limits: {max_cost_usd: 0.000001}\n")
    assert "warning  limits: the likely cost is above the cap of $0.000001 a run" in command("check", str(job)).out


def test_what_batchrun_adds_is_reported(command: Command, job: Path) -> None:
    """The default of max_tokens and the fields that the job file does not name are shown."""
    out = command("check", str(job)).out
    assert "max_tokens: 2,048, by default" in out
    assert '"context-compression"' in out
    job.write_text(JOB.replace("gpt-4o-mini\n", "gpt-4o-mini\n  params: {max_tokens: 7}\n"))
    assert "max_tokens: 7, from model.params" in command("check", str(job)).out


def test_rows_that_cannot_be_asked_are_reported(command: Command, job: Path) -> None:
    """A null that the template prints is a warning with its row, counted from 1."""
    out = command("check", str(job)).out
    assert 'warning  rows: 1 row could not be rendered, first row 4: prompt.user: column "text" is null' in out


def test_the_schema_is_printed_alone(command: Command, job: Path) -> None:
    """--schema gives the answer's JSON Schema and nothing else."""
    ended = command("check", str(job), "--schema")
    assert ended.code == 0
    assert ended.out.startswith("{\n")
    assert '"enum": [\n' in ended.out


@pytest.mark.parametrize("what", ["output", "checkpoint"])
def test_a_place_that_cannot_be_written_is_a_mistake(command: Command, job: Path, tmp_path: Path, what: str) -> None:
    """An output that is a folder, a checkpoint behind a link: exit 2, and the line says which."""
    if what == "output":
        (tmp_path / "out.csv").mkdir()
    else:
        (tmp_path / ".batchrun").mkdir()
        (tmp_path / ".batchrun" / "job.sqlite").symlink_to("elsewhere")
    ended = command("check", str(job))
    assert ended.code == 2
    assert f"mistake  {what}: " in ended.out


@pytest.mark.parametrize(("place", "what"), [("rows.csv/out.csv", "output"), (".batchrun", "checkpoint")])
def test_a_file_in_the_place_of_a_folder_is_a_mistake(command: Command, job: Path, place: str, what: str) -> None:
    """What a run would refuse at its start, a check reports: no folder can be made where a file is."""
    if what == "output":
        job.write_text(JOB.replace("out.csv", place))
    else:
        Path(place).touch()
    ended = command("check", str(job))
    assert (ended.code, f"mistake  {what}: " in ended.out) == (2, True), ended.out
    assert command(str(job)).code == 2


def test_a_name_that_is_too_long_is_a_mistake(command: Command, job: Path) -> None:
    """A name with no room for what is put before and behind it is refused before anything is paid."""
    job.write_text(JOB.replace("out.csv", f"{'長' * 76}.csv"))
    for arguments in (["check", str(job)], [str(job)]):
        ended = command(*arguments)
        assert (ended.code, "output.path has a file name of more than 230 bytes: shorten it" in ended.err) == (2, True)
    job.write_text(JOB.replace("out.csv", f"{'長' * 75}.csv"))
    assert command(str(job), "--limit", "1").code == 1
    assert command(str(job)).code == 1, "one row has no text"
    assert Path(f"{'長' * 75}.csv").exists()
    long = job.rename(job.with_name("n" * 245 + ".yaml"))
    ended = command("check", str(long))
    assert (ended.code, "checkpoint has a file name of more than 230 bytes" in ended.err) == (2, True), ended.err


def test_text_from_the_input_is_escaped(command: Command, job: Path, tmp_path: Path) -> None:
    """A column's name can't move the cursor."""
    (tmp_path / "rows.csv").write_text("text,\x1b[2J\nfine,1\n")
    out = command("check", str(job)).out
    assert "\x1b" not in out
    assert "\\x1b[2J" in out


MODELS = answer(b'{"data": [{"id": "qwen3:8b"}, {"id": "llama3:latest"}]}')


def asking(server: Wire, model: str) -> str:
    """Return the job file for this server."""
    return JOB.replace("openrouter\n  name: openai/gpt-4o-mini", f"{server.url('/v1')}\n  name: {model}")


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("qwen3:8b", "\nok       model: qwen3:8b is listed\n"),
        ("qwen3:8", '\nwarning  model: the server lists no model "qwen3:8", did you mean "qwen3:8b"?\n'),
        ("x", '\nwarning  model: the server lists no model "x"; it lists qwen3:8b, llama3:latest\n'),
    ],
)
def test_a_server_is_asked_for_its_models(command: Command, job: Path, model: str, line: str) -> None:
    """An address that is not OpenRouter's is proved by its list of models, and the model is looked up in it."""
    with served({"/v1/models": (MODELS,)}) as server:
        job.write_text(asking(server, model))
        ended = command("check", str(job))
    assert ended.code == 0
    assert f"ok       endpoint: {server.url('/v1')} answers\n" in ended.out
    assert line in ended.out


def test_a_server_that_refuses_the_key_is_a_mistake(command: Command, job: Path) -> None:
    """A server that wants a key ends the check with exit 2."""
    refusal = answer(b'{"error": {"message": "no key"}}', status="401 Unauthorized")
    with served({"/v1/models": (refusal, End.CLOSE)}) as server:
        job.write_text(asking(server, "m"))
        ended = command("check", str(job))
    assert ended.code == 2
    assert "wants a key (401): name its variable in model.api_key_env" in ended.out


def test_cells_that_are_not_text_are_a_mistake_of_the_rows(command: Command, job: Path, tmp_path: Path) -> None:
    """What is found in the cells is named as such, and not as a mistake of the endpoint."""
    pl.DataFrame({"text": [b"ok", b"\xff"]}).write_parquet(tmp_path / "rows.parquet")
    job.write_text(job.read_text().replace("rows.csv", "rows.parquet"))
    ended = command("check", "job.yaml")
    assert ended.code == 2
    assert 'mistake  rows: column "text" holds bytes that are not UTF-8 text' in ended.out
    assert "mistake  endpoint" not in ended.out
