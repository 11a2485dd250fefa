"""A whole run: its graph, its files, its resumption, its folder as a model."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from smallr.cli.main import main
from smallr.core.errors import UserError
from smallr.core.files import read_json
from smallr.core.journal import Journal
from smallr.core.stage_table import State, states
from smallr.core.stages import Stages
from smallr.language.loading import load_engine
from smallr.methods.collate import data, stages
from smallr.methods.collate.data import opened
from smallr.methods.collate.modes import ANSWER, GIVEN, RATIONALE
from smallr.methods.collate.stages import Collate, run_collate
from smallr.methods.collate.utility import UtilityScorer
from smallr.methods.collate.writer import Writer
from smallr.models.peft import read_adapter
from smallr.sampling.requests import Request
from smallr.training.checkpoints import Checkpointer
from smallr.training.exporting import convert
from smallr.training.opening import open_trained, saved_pair
from smallr.training.saved import find_run
from smallr.training.trainer import Trainer
from tests.methods.collate.small import ROWS, small_config, write_by_rule, write_lines, write_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a model in it."""
    folder = tmp_path_factory.mktemp("collate")
    write_model(folder / "model")
    return folder


@pytest.fixture(autouse=True)
def _writes_by_rule(monkeypatch):
    monkeypatch.setattr(Writer, "complete", write_by_rule)


def config_of(home: Path, **changes: Any):
    return small_config(home, str(home / "model"), **changes)


@pytest.fixture(scope="module")
def finished(home) -> tuple[Path, dict]:
    """A run of two rounds, all of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "complete", write_by_rule)
        return home / "run", run_collate(config_of(home, rounds=2, indirect=True), home / "run")


def data_sets(out: Path) -> dict[str, list[dict]]:
    """The rows of all data sets of a run, by stage."""
    return {path.parent.name: list(opened({"rows": path})) for path in sorted(out.glob("*/rows")) if path.is_dir()}


def test_every_stage_leaves_its_rows_and_counts(finished):
    out, report = finished
    assert {line.state for line in states(out)} == {State.DONE}
    assert len(data_sets(out)) == len(report["stages"])
    chosen = [name for name in report["stages"] if name.startswith(("pairs", "provider_pairs", "rationales", "own"))]
    assert len(chosen) == 11
    for name in chosen:
        counts = report["stages"][name]
        assert counts["rows in"] == sum(count for reason, count in counts.items() if reason != "rows in"), name
    assert report["stages"]["pairs_0"] == {"rows in": 24, "kept": 24}
    assert report["training"]["round_1_1"]["steps"] > 0
    page = (out / "report.md").read_text()
    for part in (
        "| M_IFT | I→A |",
        "| provider 1 | I→R→A |",
        "[I;R]→A",
        "smallr evaluate BENCHMARK --config.model=",
        "utilities",
    ):
        assert part in page
    assert report["choice"]["chosen"] in (0, 1)
    accuracy = {(each["model"], each["mode"]): each for each in report["accuracy"]}
    assert accuracy["M_IFT", "I→A"]["accuracy"] == 1
    assert accuracy["M_IFT", "I→A"]["low"] < 1


def test_a_stage_that_trains_gives_no_advice_that_would_change_it(finished):
    texts = [path.read_text() for path in finished[0].glob("*/report.txt")]
    assert len(texts) == 8
    assert not any("next:" in text or "smallr train" in text for text in texts)


def test_an_answer_at_once_has_no_room_for_a_rationale(finished, home):
    run = Collate(config_of(home), finished[0].absolute())
    assert [run.answering(mode)["sampling"]["max_tokens"] for mode in (ANSWER, GIVEN, RATIONALE)] == [8, 8, 24]


def test_round_two_starts_from_round_one_with_the_same_judge(finished, home):
    out, _ = finished
    run = Collate(config_of(home, rounds=2, indirect=True), out.absolute())
    for s in range(2):
        started = [read_json(run.value(providers[s]) / "config.json")["config"]["model"] for providers in run.providers]
        assert started == [str(run.value(each)) for each in (run.tuned, run.providers[0][s], run.providers[1][s])]
    judges = [next(need for need in stage.needs if need.name == "instruction_tuning") for stage in run.scored]
    assert judges == [run.tuned] * 2


def test_another_round_draws_other_samples(finished, home):
    run = Collate(config_of(home, rounds=2, indirect=True), finished[0].absolute())
    assert len({run.stream(number, s) for number in range(2) for s in range(2)} - {0}) == 4
    first, second = (opened(run.value(stage))["rationales"] for stage in run.scored)
    assert first != second


def test_a_finished_run_does_nothing(finished, home, monkeypatch):
    monkeypatch.setattr(Trainer, "fit", None)
    monkeypatch.setattr(Writer, "complete", None)
    assert run_collate(config_of(home, rounds=2, indirect=True), finished[0]) == finished[1]


def test_another_model_under_the_same_folder_is_refused(finished, home):
    shutil.copytree(home / "model", home / "other", dirs_exist_ok=True)
    config = config_of(home)
    with config.unlocked():
        config.model = str(home / "other")
    with pytest.raises(UserError, match=r"holds another COLLATE run \(model: .*choose another folder with --out"):
        run_collate(config, finished[0])


def test_equal_providers_leave_no_pair(home, monkeypatch):
    monkeypatch.setattr("tests.methods.collate.small.by_rule", lambda *_: "1 + 1 = 2.")
    with pytest.raises(UserError, match=r"round 0: no pair left \(rows in 24, tie 24\); .* train them longer"):
        run_collate(config_of(home, distinct=False), home / "clones")


class Killed(BaseException):
    """Stands for a kill."""


class Moments:
    """Counts the moments of a run at which it may be killed: steps, saves, pieces of generation and scoring, writes."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.passed: list[str] = []  # functions, in the order of their calls
        self.last = -1
        for owner, name in (
            (Trainer, "take"),
            (Checkpointer, "save"),
            (Journal, "add"),
            (UtilityScorer, "__call__"),
            (data, "save_rows"),
            (stages, "train_in"),
        ):
            patch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, function):
        def call(*args, **kwargs):
            self.passed.append(function.__name__)
            if len(self.passed) == self.last:
                raise Killed
            return function(*args, **kwargs)

        return call


@pytest.fixture(scope="module")
def whole(home) -> tuple[Path, list[str]]:
    """A run of one round that is not killed, and its moments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "complete", write_by_rule)
        moments = Moments(patch)
        run_collate(config_of(home), home / "whole")
    return home / "whole", moments.passed


def test_a_kill_at_any_moment_ends_in_the_same_data_sets(home, whole, monkeypatch):
    """Seven moments, drawn at random."""
    expected, total = whole[0], len(whole[1])
    moments, kills = Moments(monkeypatch), 0
    for moment in sorted(random.Random(0).sample(range(1, total), 7)):
        # Each start goes on, so that later moments come sooner.
        moments.passed, moments.last = [], max(1, moment // 4)
        try:
            run_collate(config_of(home), home / "killed")
        except Killed:
            kills += 1
    moments.last = -1
    run_collate(config_of(home), home / "killed")
    assert kills >= 5
    assert data_sets(home / "killed") == data_sets(expected)
    reports = (json.loads((out / "report.json").read_text()) for out in (home / "killed", expected))
    assert len({json.dumps(report["accuracy"]) for report in reports}) == 1


@pytest.mark.parametrize("estimate", [True, False])
def test_the_run_begins_with_the_time_of_every_stage_as_far_as_it_is_known(home, monkeypatch, capsys, estimate):
    pace = {kind: {"start": 100.0, "prompt": 0.0, "token": 1e-9} for kind in ("writing", "scoring", "training")}
    monkeypatch.setattr(stages, "measured_pace", lambda *_: pace)

    def killed(*_):
        raise Killed

    monkeypatch.setattr(Stages, "_do", killed)
    out = home / f"estimated_{estimate}"
    with pytest.raises(Killed):
        run_collate(config_of(home, estimate=estimate), out)
    printed, lines = capsys.readouterr().out, states(out)
    assert {line.kind for line in lines} == {*pace, "rows"}
    time = "about 0:01:40" if estimate else "unknown"
    assert re.search(rf"^instruction_tuning +waiting +{time}$", printed, re.MULTILINE)
    trained = [line.name for line in lines if line.kind == "training"]
    assert trained == ["instruction_tuning", "provider_0", "provider_1", "round_0_0", "round_0_1"]
    assert ("unknown" in printed) != estimate
    assert (f"{len(lines)} waiting; about" in printed) == estimate


@pytest.mark.process
def test_one_seed_reproduces_all_data_sets_to_the_byte_over_two_kills(home, whole, forks):
    """An exception at the second save of training, in this process, then SIGKILL of another while a stage of scoring begins."""
    out = home / "sigkilled"
    with pytest.MonkeyPatch.context() as patch:
        moments = Moments(patch)
        moments.last = whole[1].index("save", whole[1].index("save") + 1) + 1
        with pytest.raises(Killed):
            run_collate(config_of(home), out)
    assert any(out.glob("instruction_tuning-*/checkpoints/*"))
    assert not any(out.glob("instruction_tuning-*/result.json"))
    run = forks.start(
        [
            "-c",
            "from tests.compiling import compile_as_tests_do; compile_as_tests_do(); "
            "from tests.methods.collate.small import *; from smallr.methods.collate.writer import Writer; "
            "from smallr.methods.collate.stages import run_collate; Writer.complete = write_by_rule; "
            f"home = Path({str(home)!r}); "
            "run_collate(small_config(home, str(home / 'model')), home / 'sigkilled')",
        ]
    )
    while run.poll() is None and not any(out.glob("utilities_0-*/run.json")):
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    run_collate(config_of(home), out)
    files = {path.relative_to(out) for path in out.glob("*/rows/*.arrow")}
    assert len(files) == len(data_sets(whole[0]))
    for file in files:
        assert (out / file).read_bytes() == (whole[0] / file).read_bytes(), file


def test_rows_without_rationales_are_refused_before_the_first_stage(home):
    config = config_of(home)
    with config.unlocked():
        config.data.rows = write_lines(home / "bare.jsonl", [{**row, "rationale": ""} for row in ROWS[:24]])
    with pytest.raises(UserError, match="no row has a rationale"):
        run_collate(config, home / "bare")
    assert not (home / "bare").exists()  # so that another model is not refused there


def test_the_folder_is_the_chosen_provider_for_every_command(finished, tmp_path):
    out, report = finished
    run = find_run(out)
    assert run.workdir == out.absolute() / report["choice"]["model"]
    assert report["choice"]["model"].startswith(f"round_1_{report['choice']['chosen']}-")
    engine = load_engine(str(out), dtype="float32", decode_slots=1).engine
    question = ROWS[-1]["question"]
    ids = engine.encode(Request(messages=({"role": "user", "content": question},))).prompt
    assert engine.tokenizer.decode(ids) == f"{question}\n\nRationale:"
    assert len(engine.end_ids) == 1
    convert(str(out), tmp_path / "exported", dtype="float32", shard_size="5GB")
    exported = open_trained(str(tmp_path / "exported"))
    assert exported.tokenizer().chat_template == engine.tokenizer.chat_template
    assert main(["generate", f"--model={out}", "--dtype=float32", "--max_tokens=2", question]) == 0


def test_the_command_ends_with_the_next_commands(home, tmp_path, capsys):
    config = config_of(home, rounds=0, providers=1)
    (tmp_path / "mine.py").write_text(
        "from tests.methods.collate.small import small_config\nfrom pathlib import Path\n\n"
        f"def get_config():\n    return small_config(Path({str(home)!r}), {config.model!r}, rounds=0, providers=1)\n"
    )
    assert main(["collate", str(tmp_path / "mine.py"), f"--out={home / 'one'}"]) == 0
    printed = capsys.readouterr().out
    assert "provider 0 is chosen" in printed
    assert f"next: smallr generate --model={home / 'one'}" in printed
    assert main(["collate", str(tmp_path / "mine.py"), "--config.providers=0", f"--out={home / 'bad'}"]) == 1


def test_with_adapters_all_rounds_stand_on_one_base(home):
    out = (home / "lora").absolute()
    config = config_of(home, rounds=2, **{"lora.rank": 2})
    run_collate(config, out)
    run = Collate(config, out)
    tuned = str(run.value(run.tuned))
    for number, providers in enumerate(run.providers):
        for s, provider in enumerate(providers):
            found = read_json(run.value(provider) / "config.json")["config"]
            assert found["model"] == tuned
            assert found["lora"]["adapter"] == (str(run.value(provider) / "start") if number else "")
            if number:
                before = find_run(run.value(run.providers[number - 1][s]))
                start = saved_pair(before, "layers.attention.q")[1]
                folder, sizes = Path(found["lora"]["adapter"]), open_trained(str(out)).config
                _, pairs = read_adapter(folder, sizes, before.checkpoint.metadata["frozen"])
                assert (pairs["layers.attention.q"][1] == start).all()
                assert abs(start).max() > 0


def test_a_run_with_refinement(home):
    out = (home / "refined").absolute()
    config = config_of(home, refine=True, **{"utility.row_length": 512})
    report = run_collate(config, out)
    run = Collate(config, out)
    questions = [{row["question"] for row in opened(run.value(stage))} for stage in run.scored]
    assert not questions[0] & questions[1]
    assert sum(map(len, questions)) == 24
    assert report["stages"]["tuning_rows"]["refine"] == 24
    pairs = [opened(run.value(stage))["prompt"] for stage in run.pairs]
    assert {"Draft" in prompt for each in pairs for prompt in each} == {True, False}
    assert report["stages"]["refined_0_0_1_0"]["rows in"] == 12
