"""Commands that run, in this process: what they print can be run as it stands."""

from __future__ import annotations

import io
import json
import re
import shlex

import pytest

from smallr.cli.main import main
from smallr.cli.preview import spread
from smallr.sampling.files import write_texts
from smallr.sampling.requests import Request, Result, Sample, SamplingParams, Usage

FEW = ["--config.data.eval=", "--config.data.train_split=train[:8]", "--config.checkpoint.every=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run of one step."""
    workdir = tmp_path_factory.mktemp("runs") / "first"
    assert main(["train", "cogpo:smoke", f"--workdir={workdir}", "--config.steps=1", *FEW]) == 0
    return workdir


@pytest.mark.slow
def test_a_run_goes_on_by_the_line_that_the_report_prints(run, capsys):
    """The line names the workdir alone: the run's own config is taken."""
    lines = (run / "report.txt").read_text().splitlines()
    line = next(line.split("#")[0].strip() for line in lines if "smallr train --workdir=" in line)
    command, *argv = shlex.split(line)
    assert command == "smallr"
    assert main(argv) == 0
    assert json.loads((run / "report.json").read_text())["steps"] == 2
    shown = capsys.readouterr().out
    assert re.search(r"resuming .* step 1\b", shown), shown


def following(shown: str) -> list[str]:
    """The arguments of the command line that a command names as the next one."""
    command, *argv = shlex.split(re.search(r"^next: (.*)$", shown, re.MULTILINE)[1])
    assert command == "smallr"
    return argv


@pytest.mark.slow
def test_what_crv_and_pairs_name_next_works_as_printed(tmp_path, capsys):
    rows = ["--config.data.splits=train[:12],test[:6]"]
    folder = tmp_path / "a folder"
    assert main(["crv", "annotate", "--config.model=oracle:arithmetic", f"--out={folder}", *rows]) == 0
    assert main(following(capsys.readouterr().out)) == 0
    argv = following(capsys.readouterr().out)
    assert argv[:2] == ["train", "cogpo"]
    small = ["--config.model=tiny-random", "--config.epochs=0", "--config.steps=1", f"--workdir={tmp_path / 'run'}"]
    assert main([*argv, *small]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("gap", "config"), [({}, "dpo"), ({"gap": "small"}, "cogpo")])
def test_what_score_names_next_works_as_printed(tmp_path, capsys, gap, config):
    rows = [{"prompt": f"What is {i} + 1?", "chosen": str(i + 1), "rejected": str(i), **gap} for i in range(6)]
    data, scored = tmp_path / "pairs.jsonl", tmp_path / "scored"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--model=tiny-random", f"--data={data}", f"--out={scored}", "--rows=2", "--row_length=128"]
    assert main(["score", *flags]) == 0
    argv = following(capsys.readouterr().out)
    assert argv[:2] == ["train", config]
    workdir = tmp_path / "run"
    assert main([*argv, f"--workdir={workdir}", "--config.batch.row_length=128"]) == 0
    first = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(0.6931, abs=2e-3)  # the reference is the model that has scored them


@pytest.mark.slow
def test_lora_for_any_config(tmp_path, capsys):
    workdir = tmp_path / "run"
    flags = ["--lora", "--config.lora.rank=2", f"--workdir={workdir}", "--config.steps=1", *FEW]
    assert main(["train", "sft:smoke", *flags]) == 0
    assert json.loads((workdir / "config.json").read_text())["config"]["lora"]["rank"] == 2


def test_a_preview_is_spread_over_the_data(tmp_path, capsys):
    assert spread(10, 3) == [0, 4, 9]
    assert (spread(2, 3), spread(1, 3), spread(5, 1)) == ([0, 1], [0], [0])
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        lines = [{"prompt": f"{path.stem} {i}", "chosen": "yes it is", "rejected": "no"} for i in range(6)]
        path.write_text("\n".join(map(json.dumps, lines)))
    sources = [{"path": str(paths[0])}, {"path": str(paths[1]), "weight": 0.5}]
    assert main(["preview", "dpo:smoke", f"--config.data.train={sources}"]) == 0
    out = capsys.readouterr().out
    rows = re.findall(r"(\w)\.jsonl, row (\d): \d+ tokens of prompt", " ".join(out.split()))
    assert rows == [("a", "0"), ("b", "0"), ("b", "5")]
    assert out.count("[yes it is<|im_end|>]") == 3
    assert "9 examples in" in out


def test_a_preview_shows_what_is_scored_and_packed(capsys):
    assert main(["preview", "cogpo:smoke", "--rows=1"]) == 0
    out = capsys.readouterr().out
    assert out.count("tokens of prompt") == 1
    chosen, rejected = re.findall(r"(?:chosen|rejected): (\d+) tokens, (\d+) scored\n\[", out)
    assert int(chosen[0]) >= int(chosen[1]) > 0
    assert int(rejected[0]) >= int(rejected[1]) > 0
    count, used, capacity = map(int, re.search(r"packed row: (\d+) examples, (\d+) of (\d+) tokens", out).groups())
    parts = re.findall(r"row \d+: (\d+) of prompt \+ (\d+) \+ (\d+)", out)
    assert len(parts) == count
    assert sum(map(int, (length for part in parts for length in part))) == used <= capacity


def test_a_prompt_is_answered(capsys):
    flags = ["--model=tiny-random", "--max_tokens=3", "--ignore_eos", "--chat=false", "--dtype=float32"]
    assert main(["generate", "one and one", *flags]) == 0
    row = json.loads(capsys.readouterr().out)  # no terminal: a line of JSON
    assert (row["prompt"], len(row["samples"][0]["token_ids"])) == ("one and one", 3)


def test_answers_as_text():
    one, two = (Request(prompt=text, params=SamplingParams()) for text in ("one", "two"))
    results = [Result((Sample(f" {text}\n", "stop", (7,), None),), Usage(1, 1)) for text in ("a", "b")]
    out = io.StringIO()
    write_texts([one], results[:1], out)
    assert out.getvalue() == "a\n"
    write_texts([one, two], results, out)
    assert out.getvalue() == "a\n> one\na\n\n> two\nb\n\n"


def test_built_in_rows_are_written(tmp_path, capsys):
    from datasets import load_from_disk

    assert main(["builtin", f"--out={tmp_path}", "--train=4", "--test=2"]) == 0
    shown = capsys.readouterr().out
    assert "4 small, 4 medium" in " ".join(shown.split())
    assert len(load_from_disk(tmp_path / "preference")["test"]) == 6
    (tmp_path / "file").touch()
    assert main(["builtin", f"--out={tmp_path / 'file'}", "--train=4", "--test=2"]) == 1
    assert "file" in capsys.readouterr().err
