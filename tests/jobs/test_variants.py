"""Flags that change a job: --set, --model, --input, --endpoint, --variant, --sample."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from command_line import Command, command
from plain_server import Asked, recording_server

import batchrun

__all__ = ["command"]

JOB = {"prompt": "Label: {{ text }}", "input": "rows.csv", "output": "out.csv"}


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    """Serve a model, and write job.yaml with 100 rows for it."""
    with recording_server() as asked:
        model = {"endpoint": asked.url, "name": "big", "price": {"prompt": 1, "completion": 1}}
        (tmp_path / "job.yaml").write_text(json.dumps(JOB | {"model": model}))
        _rows(tmp_path / "rows.csv", 100)
        yield asked


def _rows(path: Path, number: int) -> None:
    path.write_text("text\n" + "".join(f"t{row}\n" for row in range(number)))


def test_another_model_has_an_output_and_a_checkpoint_of_its_own(
    tmp_path: Path, command: Command, asked: Asked
) -> None:
    """--model asks another model, beside what the job's own model answered; every command finds it by the flag."""
    assert command("job.yaml").code == 0
    assert command("job.yaml", "--model", "vendor/small").code == 0
    assert [body["model"] for body in asked.bodies] == ["big"] * 100 + ["vendor/small"] * 100
    (output,) = tmp_path.glob("out.small-*.csv")
    assert re.fullmatch(r"out\.small-[0-9a-f]{6}\.csv", output.name)
    assert (tmp_path / ".batchrun" / output.name.replace("out", "job").replace("csv", "sqlite")).exists()
    small = ["job.yaml", "--model", "vendor/small"]
    asked.prompts()
    assert command(*small).code == command("job.yaml").code == 0
    for verb in ("status", "show", "export", "report", "check", "preview", "prune"):
        ended = command(verb, *small)
        assert ended.code == 0, ended.err
    assert "vendor/small" in command("check", *small).out
    assert asked.prompts() == []


def test_flags_combine_in_one_order(tmp_path: Path, command: Command, asked: Asked) -> None:
    """The variant's name has endpoint, model and input in this order, whatever the order of the flags."""
    _rows(tmp_path / "other rows.csv", 2)
    ended = command("job.yaml", "--input", "other rows.csv", "--model", "m", "--endpoint", f"{asked.url}/", "--quiet")
    assert ended.code == 0, ended.err
    (output,) = tmp_path.glob("out.*.csv")
    digest = "-[0-9a-f]{6}"
    assert re.fullmatch(rf"out\.127\.0\.0\.1-\d+{digest}\.m{digest}\.other-rows{digest}\.csv", output.name)
    assert pl.read_csv(output)["text"].to_list() == ["t0", "t1"]


def test_the_job_own_values_make_no_variant(tmp_path: Path, command: Command, asked: Asked) -> None:
    """A flag that repeats what the job says leads to the job's own output."""
    assert command("job.yaml", "--model", "big", "--input", "./rows.csv", "--endpoint", asked.url).code == 0
    assert (tmp_path / "out.csv").exists()


def test_a_set_key_wins_over_the_file(tmp_path: Path, command: Command, asked: Asked) -> None:
    """--set takes YAML, makes missing sections, and leaves the output where it is; a prompt is taken as it is."""
    assert command("job.yaml", "--set", "output.keep=none", "--set", "output.prefix=x_").code == 0
    assert pl.read_csv(tmp_path / "out.csv").columns[0] == "x_answer"
    ended = command("job.yaml", "--set", "prompt.user=Sort: {{ text }}", "--variant", "sort", "--limit", "1")
    assert ended.code == 0, ended.err
    assert (tmp_path / "out.sort.partial.csv").exists()
    assert asked.prompts()[-1] == "Sort: t0"
    for name, setting, prompt in (
        ("whole", "prompt=Order: {{ text }}", "Order: t0"),
        ("cell", "prompt={{ text }}: what?", "t0: what?"),
        ("keys", "prompt={user: 'It is {{ text }}'}", "It is t0"),
        ("state", "prompt.state.body=Body: {{ text }}", '{"of": "t0", "body": "Body: t0"}'),
    ):
        base = ["--set", "prompt={state: {of: '{{ text }}'}}"] if name == "state" else []
        ended = command("job.yaml", *base, "--set", setting, "--variant", name, "--limit", "1")
        assert ended.code == 0, ended.err
        assert asked.prompts()[-1] == prompt


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--set", "limits.timeout=soon"],
            '--set limits.timeout=soon: limits.timeout must be a number of seconds, not "soon"',
        ),
        (["--set", "limits.time=1"], '--set limits.time=1: unknown key "time", did you mean "timeout"?'),
        (["--set", "limits.timeout"], "--set limits.timeout: --set takes KEY=VALUE"),
        (["--set", "model.headers.X-Key=abc"], "write them in the job file"),
        (["--set", "model={name: x}"], "set one key of it"),
        (["--set", "model.endpoint=http://x.example/v1"], "write --endpoint"),
        (["--set", "output.keep=[text"], "not valid YAML"),
        (["--set", "input.path=none.csv", "--yes"], "--set input.path=none.csv: "),
        (["--input", "none.csv"], "--input: "),
        (["--variant", "a/b"], "--variant a/b: "),
        (["--model", ""], "--model must not be empty"),
        (["--set", "prompt.user=Sort: {{ text }}"], "add --variant NAME"),
        (["--set", "prompt.user=Sort: {{ txt }}", "--variant", "a"], "--set prompt.user=Sort: {{ txt }}: "),
    ],
)
def test_mistakes_point_at_the_flag(command: Command, asked: Asked, flags: list[str], says: str) -> None:
    """A wrong flag ends the command with exit 2 and its name, without a place in the job file; nothing is asked."""
    ended = command("job.yaml", *flags)
    assert ended.code == 2
    assert says in ended.err
    assert "job.yaml:" not in ended.err
    assert asked.prompts() == []


def test_a_sample_is_a_set(tmp_path: Path, command: Command, asked: Asked) -> None:
    """The same rows for each model, the smaller sample within the larger one; asked once, and no beginning."""
    assert command("job.yaml", "--sample", "10").code == 0
    ten = set(asked.prompts())
    assert len(ten) == 10
    assert ten != {f"Label: t{row}" for row in range(10)}
    assert command("job.yaml", "--sample", "10").code == 0
    assert asked.prompts() == []
    assert command("job.yaml", "--sample", "30").code == 0
    assert len(more := set(asked.prompts())) == 20
    assert command("job.yaml", "--sample", "30", "--model", "small").code == 0
    assert set(asked.prompts()) == ten | more
    assert command("job.yaml").code == 0
    assert len(asked.prompts()) == 70
    assert pl.read_csv(tmp_path / "out.csv")["answer"].to_list() == ["yes"] * 100


def test_a_sample_passes_over_equal_and_filtered_rows(tmp_path: Path, command: Command, asked: Asked) -> None:
    """A sample has as many distinct questions as it says, of rows that the filter lets through."""
    (tmp_path / "rows.csv").write_text("text,keep\n" + "".join(f"t{row % 20},{row % 2}\n" for row in range(200)))
    where = "input.where=keep = '1'"
    assert command("job.yaml", "--sample", "8", "--set", where, "--yes").code == 0
    prompts = asked.prompts()
    assert len(set(prompts)) == len(prompts) == 8
    assert {int(prompt.removeprefix("Label: t")) % 2 for prompt in prompts} == {1}
    ended = command("job.yaml", "--sample", "500", "--set", where, "--yes")
    assert ended.code == 0, ended.err
    assert len(asked.prompts()) == 2


def test_check_and_preview_know_the_sample(command: Command, asked: Asked) -> None:
    """Both count the questions of --sample, without those that are answered, and preview shows the very requests."""
    assert "100 rows: 100 to ask; 10 requests of the 10 questions" in command("check", "job.yaml", "--sample", "10").out
    shown = command("preview", "job.yaml", "--sample", "10", "-n", "20").out
    assert command("job.yaml", "--sample", "10").code == 0
    prompts = asked.prompts()
    assert sorted(re.findall(r"Label: t\d+", shown)) == sorted(prompts)
    assert "; 5 requests of the 15 questions of --sample" in command("preview", "job.yaml", "--sample", "15").out
    assert "Nothing to do" in command("preview", "job.yaml", "--sample", "10").out
    assert asked.prompts() == []


def test_the_next_command_keeps_the_flags(command: Command, asked: Asked) -> None:
    """The command that is offered leads to the same variant."""
    flags = ["--set", "prompt.user=Sort: {{ text }}", "--variant", "sort", "--model", "small"]
    assert command("job.yaml", *flags, "--limit", "3").code == 0
    ended = command("job.yaml", *flags, "--limit", "3")
    asked.prompts()
    (offered,) = re.findall(r"^  next    (batchrun .*?)   ", ended.err, re.MULTILINE)
    assert command(*shlex.split(offered)[1:]).code == 0
    assert {prompt[:4] for prompt in asked.prompts()} == {"Sort"}


def _edit(tmp_path: Path, **sections: Any) -> None:  # noqa: ANN401  (JSON)
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(json.loads(path.read_text()) | sections))


def test_an_adopted_variant_is_not_paid_again(tmp_path: Path, command: Command, asked: Asked) -> None:
    """What a variant answered is copied into the job once the job says the same; it costs nothing in that run."""
    assert command("job.yaml", "--variant", "sort", "--set", "prompt.user=Sort: {{ text }}", "--limit", "60").code == 0
    assert command("job.yaml").code == 0
    asked.prompts()
    _edit(tmp_path, prompt="Sort: {{ text }}")
    ended = command("job.yaml", "--json")
    summary = json.loads(ended.out)
    assert len(asked.prompts()) == summary["requests"] == 40
    assert (summary["ok"], summary["adopted"]) == (100, 60)
    assert summary["cost_usd"] == pytest.approx(40 * 11e-6)
    assert "60 answers copied from job.sort.sqlite" in ended.err
    assert command("status", "job.yaml", "--verify").code == 0


def test_a_renamed_job_is_not_paid_again(tmp_path: Path, command: Command, asked: Asked) -> None:
    """An equal job under another file name takes the answers of the old one; another job beside it takes none."""
    assert command("job.yaml").code == 0
    asked.prompts()
    (tmp_path / "job.yaml").rename(tmp_path / "reviews_v2.yaml")
    ended = command("reviews_v2.yaml")
    assert ended.code == 0
    assert "100 answers copied from job.sqlite" in ended.err
    assert asked.prompts() == []


def test_a_folder_called_like_a_checkpoint_is_passed_over(tmp_path: Path, command: Command, asked: Asked) -> None:
    """A run looks for answers in the checkpoints beside its own; what else lies there with such a name stops no run."""
    (tmp_path / ".batchrun" / "backup.sqlite").mkdir(parents=True)
    os.mkfifo(tmp_path / ".batchrun" / "pipe.sqlite")
    assert command("job.yaml").code == 0
    assert len(asked.prompts()) == 100


def test_fresh_adopts_nothing(command: Command, asked: Asked) -> None:
    """--fresh asks everything from scratch, and what it put aside does not come back later."""
    assert command("job.yaml").code == 0
    assert command("job.yaml", "--variant", "same", "--limit", "50").code == 0
    asked.prompts()
    assert command("job.yaml", "--fresh", "--limit", "10").code == 0
    assert len(asked.prompts()) == 10
    assert command("job.yaml").code == 0
    assert len(asked.prompts()) == 90


def test_a_few_rows_of_an_edited_prompt_need_no_question(tmp_path: Path, command: Command, asked: Asked) -> None:
    """--limit and --sample ask their rows at once; the whole run still wants --yes, and says what changed."""
    _rows(tmp_path / "rows.csv", 300)
    assert command("job.yaml").code == 0
    asked.prompts()
    _edit(tmp_path, prompt="Sort: {{ text }}")
    assert command("job.yaml", "--sample", "10").code == 0
    assert command("job.yaml", "--limit", "10").code == 0
    assert len(asked.prompts()) == 20
    ended = command("job.yaml")
    assert ended.code == 2
    assert "280 answered rows would be asked again" in ended.err
    assert asked.prompts() == []
    _edit(tmp_path, prompt="Order: {{ text }}")
    assert "the prompt changed: 300 answered rows would be asked again" in command("job.yaml").err
    assert "the prompt changed" in command("job.yaml", "--limit", "200").err
    assert command("job.yaml", "--yes").code == 0
    assert len(asked.prompts()) == 300
    assert command("job.yaml", "--fresh").code == 0


def test_a_changed_model_is_called_a_changed_model(tmp_path: Path, command: Command, asked: Asked) -> None:
    """The question before many rows are asked again names what changed: here the model."""
    _rows(tmp_path / "rows.csv", 150)
    assert command("job.yaml").code == 0
    _edit(tmp_path, model={"endpoint": asked.url, "name": "small"})
    assert "the model changed: 150 answered rows" in command("job.yaml").err
    assert "the model has changed" in command("export", "job.yaml").err


TRIAL = ["--variant", "sort", "--set", "prompt.user=Sort: {{ text }}", "--set", "answer.columns={kind: [yes, no]}"]


@pytest.fixture
def tried(command: Command, asked: Asked) -> Asked:
    """Run the job, and a trial of another prompt and other answers, of which 20 questions are left."""
    asked.text = '{"kind": "yes"}'
    for arguments in (["job.yaml"], ["job.yaml", *TRIAL, "--limit", "80"]):
        ended = command(*arguments)
        assert ended.code == 0, ended.err
    asked.prompts()
    return asked


def test_a_trial_is_found_by_its_name_alone(tmp_path: Path, command: Command, tried: Asked) -> None:
    """Each command that looks at a trial knows the settings that it was run with, and so does its next run."""
    sort = ["job.yaml", "--variant", "sort"]
    assert "kind" in command("show", *sort).out
    (tmp_path / "gold.csv").write_text("text,gold\n" + "".join(f"t{row},yes\n" for row in range(100)))
    found = command("eval", *sort, "--gold", "kind=gold", "--gold-file", "gold.csv", "--on", "text", "--json")
    assert (found.code, json.loads(found.out)["accuracy"]["right"]) == (0, 80), found.err
    assert (
        batchrun.evaluate("job.yaml", variant="sort", gold="kind=gold", gold_file="gold.csv", on="text").pending == 20
    )
    for verb in ("status", "export", "report"):
        ended = command(verb, *sort)
        assert (ended.code, "--set" in ended.err) == (0, False), ended.err
    assert pl.read_csv(tmp_path / "out.sort.partial.csv")["kind"].to_list().count("yes") == 80
    ended = command(*sort)
    assert ended.code == 0, ended.err
    assert "job.sort: with --set 'prompt.user=Sort: {{ text }}' --set" in ended.err
    assert (len(prompts := tried.prompts()), prompts[0][:5]) == (20, "Sort:")
    assert "nothing to retry" in command("retry", *sort).err


def test_another_setting_of_a_trial_is_said(command: Command, tried: Asked) -> None:
    """A flag that is not what the trial was run with wins, in one line that names both."""
    ended = command("job.yaml", "--variant", "sort", "--set", "prompt.user=Order: {{ text }}", "--limit", "1")
    assert ended.code == 0, ended.err
    was, now = "--set 'prompt.user=Sort: {{ text }}'", "--set 'prompt.user=Order: {{ text }}'"
    assert f"job.sort was last run with {was}, and now has {now}\n" in ended.err
    assert tried.prompts() == ["Order: t0"]
    assert command("job.yaml", "--variant", "sort", "--limit", "1", "--quiet").err == "", "a good night is silent"
    assert tried.prompts() == ["Order: t1"]
    ended = command("job.yaml", *TRIAL, "--fresh", "--limit", "1")
    assert (ended.code, "was last run" in ended.err, tried.prompts()) == (0, False, ["Sort: t0"])


def test_a_second_trial_of_a_name_is_said(command: Command, asked: Asked) -> None:
    """A trial with --model is not the one without it: a run by the name alone says that it begins another one."""
    trial = ["job.yaml", "--variant", "x", "--set", "prompt.user=Sort: {{ text }}", "--limit", "1"]
    first = command(*trial, "--model", "vendor/small")
    assert (first.code, "new trial" in first.err) == (0, False), first.err
    second = command(*trial)
    assert second.code == 0, second.err
    assert "job.x is a new trial: --variant x was run with --model vendor/small\n" in second.err
    assert "new trial" not in command(*trial).err
    assert [body["model"] for body in asked.bodies] == ["vendor/small", "big", "big"]


def test_a_trial_of_another_model_is_found_by_its_name(tmp_path: Path, command: Command, asked: Asked) -> None:
    """--variant alone finds a trial that also had a model and an input; of two it wants the model named."""
    asked.text = '{"kind": "yes"}'
    (tmp_path / "in").mkdir()
    _rows(tmp_path / "in" / "few.csv", 3)
    more = ["--variant", "more", "--input", "in/few.csv", "--set", "answer.columns={kind: [yes, no]}", "--model"]
    assert command("job.yaml", *more, "small").code == 0
    ended = command("export", "job.yaml", "--variant", "more", "-o", "few.csv")
    assert ended.code == 0, ended.err
    assert pl.read_csv(tmp_path / "few.csv")["kind"].to_list() == ["yes"] * 3
    assert command("job.yaml", *more, "medium").code == 0
    ended = command("status", "job.yaml", "--variant", "more")
    assert ended.code == 2
    assert re.search(r"--variant more was run with --model (small|medium) --input \S+ and with --model ", ended.err)
    assert command("status", "job.yaml", "--variant", "more", *more[2:4], "--model", "small").code == 0
    assert command("job.yaml", "--endpoint", f"{asked.url}/", "--model", "large").code == 0
    ended = command("compare", "job.yaml", "--model", "large", "--model", "large")
    assert ended.code == 0, ended.err
