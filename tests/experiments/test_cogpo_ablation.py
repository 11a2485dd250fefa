"""The ablation of CogPO: its rows, its runs, its arithmetic, and all of it once with a tiny model."""

from __future__ import annotations

import json
import re
from collections import Counter

import datasets
import numpy as np
import pytest

from experiments.crv.ablation import Worker
from experiments.crv.arms import BASE, COGPO, CRV, DPO, RAW, AblationPlan, TrainSettings, config_of
from experiments.crv.base import Base
from experiments.crv.judge import against
from experiments.crv.questions import Questions
from experiments.crv.report import write_report
from experiments.crv.rows import Recipe
from experiments.crv.styles import by_style
from smallr.core.errors import UserError
from smallr.core.stages import Stage, Stages
from smallr.data.builtin.lookup import find_problem
from smallr.data.builtin.reading import mistake, style
from smallr.models.scratch import Size
from tests.language.faulty import reply, serving

QUESTIONS = Questions(("ages", "change"), 200)


def numbers(text):
    return sorted(map(int, re.findall(r"\d+", text)))


def test_questions_are_of_the_part_asked_for_and_never_the_forbidden_ones():
    held_out = QUESTIONS.draw("held out", 40)
    training = QUESTIONS.draw("training", 60, held_out)
    for question in [*held_out, *training]:
        assert question.problem.template in ("ages", "change")
        assert max(numbers(question.fitted)) <= 200
    apart = [{tuple(numbers(q.problem.question)) for q in part} for part in (held_out, training)]
    assert (len(apart[0]), len(apart[1]), apart[0] & apart[1]) == (40, 60, set())
    assert [q.fitted for q in QUESTIONS.draw("held out", 5)] == [q.fitted for q in held_out[:5]]
    with pytest.raises(UserError, match="agse"):
        Questions(("agse",)).draw("", 1)


def test_equations_hold():
    (row, *_) = QUESTIONS.equations("seed", 3)
    lines = row["completion"].splitlines()
    assert len(lines) == 12
    for line in lines:
        left, right = line.split(" = ")
        assert eval(left) == int(right) <= 200


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    out = tmp_path_factory.mktemp("rows")
    recipes = {error: Recipe(0, 40, 12, f"{error:g}", ("ages", "change"), 200, "1:1:1", 30) for error in (0.0, 1.0)}
    return {error: recipe.build(out) for error, recipe in recipes.items()}


def load(folder, name, split="train"):
    return datasets.load_from_disk(str(folder / name))[split].to_list()


@pytest.mark.slow
def test_crv_fits_what_the_critic_has_judged(rows):
    def styles(folder, name):
        return Counter(style(find_problem(row["prompt"]), row["completion"]) for row in load(folder, name))

    raw = load(rows[0.0], "teacher")
    wrong = [row for row in raw if mistake(find_problem(row["prompt"]), row["completion"])]
    assert (len(raw), len(wrong)) == (40, 4)  # the teacher is wrong once in ten
    assert raw == load(rows[1.0], "teacher")
    fitted = load(rows[0.0], "fitted")
    assert not [row for row in fitted if mistake(find_problem(row["prompt"]), row["completion"])]
    assert styles(rows[0.0], "teacher").keys() == {"terse", "fitted", "involved"}
    assert styles(rows[0.0], "fitted") == {"fitted": 40}
    # A critic that is always wrong: what fits is made unfitting, and of the rest most stays so.
    assert styles(rows[1.0], "fitted")["fitted"] < 10


@pytest.mark.slow
def test_a_model_as_the_critic(tmp_path, rows):
    """One that finds everything fitting: CRV leaves the right rationales as they are."""

    def behave(handler, index, body):
        handler.send(200, reply("medium"))

    with serving(behave) as server:
        folder = Recipe(0, 40, 12, f"{server.url}#m", ("ages", "change"), 200, "0:0:1", 30).build(tmp_path)
        assert len(server.bodies) == 40  # of the training questions; the held-out ones have the oracle
    before = {row["prompt"]: row["completion"] for row in load(rows[0.0], "teacher")}
    after = {row["prompt"]: row["completion"] for row in load(folder, "fitted")}
    right = {prompt for prompt, text in before.items() if not mistake(find_problem(prompt), text)}
    assert {prompt for prompt in after if after[prompt] == before[prompt]} == right
    assert load(folder, "held_out", "test") == load(rows[0.0], "held_out", "test")


def test_pairs_have_the_mix_and_no_held_out_question(rows):
    pairs = load(rows[0.0], "pairs")
    assert len(pairs) == 30
    assert set(Counter(pair["gap"] for pair in pairs)) == {"small", "medium", "large"}
    questions = load(rows[0.0], "questions", "test")
    assert len(questions) == 12
    asked = {tuple(numbers(row["prompt"])) for row in questions}
    assert not asked & {tuple(numbers(pair["prompt"])) for pair in pairs}
    assert {tuple(numbers(pair["prompt"])) for pair in load(rows[0.0], "held_out", "test")} <= asked
    assert load(rows[1.0], "held_out", "test") == load(rows[0.0], "held_out", "test")


def plan(model="tiny-random", **changes):
    batch = {"rows": 2, "row_length": 384}
    fields = {
        "model": model,
        "rows": {
            "train": 24,
            "test": 12,
            "critic": "0",
            "templates": ("ages", "change"),
            "largest": 200,
            "mix": "balanced",
            "pairs": 0,
            "data": "",
        },
        "exam": {"limit": 3, "max_tokens": 8, "decode_slots": 3, **batch, "dtype": "float32"},
        "sft": TrainSettings(0, 2, 1e-3, **batch),
        "preference": TrainSettings(0, 2, 1e-3, **batch),
        "dtype": "float32",
        "betas": {"small": 0.1, "medium": 0.2, "large": 0.5},
        "dpo_beta": 0.2,
        "grid": (0.05, 0.5),
        "mixes": ("1:0:0", "balanced"),
        "critics": ("0", "0.5"),
    }
    return AblationPlan(**{**fields, **changes})


def test_runs_that_sweeps_share_are_one_run():
    wanted = plan()
    arms = wanted.arms(("raw", "crv", "dpo", "cogpo"), 2)
    assert [run.settings["arm"] for run in arms] == [RAW, CRV, DPO, COGPO] * 2
    assert arms[3].needs == (arms[1],)
    known = {run.digest for run in arms}
    new = {
        name: [run.name for run in wanted.sweep(name, 1) if run.digest not in known]
        for name in ("beta", "small", "large", "mix", "critic")
    }
    assert new == {
        "beta": ["dpo-0.05-s0", "dpo-0.5-s0"],
        "small": ["cogpo-0.05-0.2-0.5-s0", "cogpo-0.5-0.2-0.5-s0"],
        "large": ["cogpo-0.1-0.2-0.05-s0"],  # 0.5 is the default
        "mix": ["cogpo-0.1-0.2-0.5-mix1_0_0-s0"],
        "critic": ["crv-critic0.5-s0", "cogpo-0.1-0.2-0.5-critic0.5-s0"],
    }
    with pytest.raises(UserError, match="must be one of"):
        wanted.sweep("gamma", 1)


def test_configs_are_those_of_the_project(tmp_path):
    wanted = plan()
    sft, top = wanted.sft_run(RAW, 1), wanted.preference_run(COGPO, 1, wanted.betas)
    config = config_of(sft, tmp_path, "tiny-random")
    assert (config.objective.name, config.optimizer.weight_decay, config.seed) == ("sft", 0.05, 1)
    assert config.data.train == str(tmp_path / "teacher")
    config = config_of(top, tmp_path, "model")
    assert config.objective.beta.to_dict() == {"small": 0.1, "medium": 0.2, "large": 0.5}
    assert (config.model, config.data.train) == ("model", str(tmp_path / "pairs"))
    assert config_of(wanted.preference_run(DPO, 0, 0.2), tmp_path, "model").objective.beta == 0.2


def test_preference_metrics_are_relative_to_the_reference(tmp_path):
    row = np.arange(4)
    np.savez(tmp_path / "a.npz", chosen=[-1.0, -2, -3, -4], rejected=[-5.0, -5, -5, -5], gap=[0, 0, 2, 2], row=row)
    np.savez(tmp_path / "b.npz", chosen=[-2.0, -2, -1, -4], rejected=[-4.0, -5, -4, -5], gap=[0, 0, 2, 2], row=row)
    # h: (1 - -1), 0, (-2 - -1), 0
    assert against(tmp_path / "a.npz", tmp_path / "b.npz") == {
        "accuracy": 0.5,
        "log_ratio_margin": 0.25,
        "accuracy/small": 0.75,
        "log_ratio_margin/small": 1.0,
        "accuracy/large": 0.25,
        "log_ratio_margin/large": -0.5,
    }
    np.savez(tmp_path / "c.npz", chosen=[0.0], rejected=[0.0], gap=[0], row=[7])
    with pytest.raises(ValueError, match="other pairs"):
        against(tmp_path / "a.npz", tmp_path / "c.npz")


def test_styles_of_answers(tmp_path):
    drawn = QUESTIONS.draw("styles", 8)
    lines = [{"prompt": q.problem.question, "output": q.fitted, "correct": True} for q in drawn]
    lines += [{"prompt": q.problem.question, "output": q.unfitted, "correct": i % 2} for i, q in enumerate(drawn)]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, lines)))
    written, right = by_style(tmp_path / "answers.jsonl")
    involved = [i for i, question in enumerate(drawn) if question.label == "hard"]
    assert 0 < len(involved) < 8
    assert written == {"fitted": 8, "involved": len(involved), "terse": 8 - len(involved)}
    assert (right["fitted"], right["involved"]) == (8, sum(i % 2 for i in involved))
    (tmp_path / "answers.jsonl").write_text(json.dumps({"prompt": "Why?", "output": "So.", "correct": 0}))
    assert by_style(tmp_path / "answers.jsonl") is None


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A student from nothing, not pretrained, and the rows that it would be pretrained on."""
    stage = TrainSettings(0, 1, 1e-3, 1, 384)
    base = Base(Size("llama", 1, 16, 2, 512), 600, 30, 4, 12, ("ages", "change"), 200, stage, "float32")
    return base, *base.write(tmp_path_factory.mktemp("student"))


def test_a_base_has_seen_every_style_and_no_held_out_question(student):
    base, model, folder = student
    found = load(folder.parent, folder.name)
    solved = [row for row in found if row["prompt"] != "Calculate."]
    assert (len(found), len(solved)) == (34, 30)
    assert len({style(find_problem(row["prompt"]), row["completion"]) for row in solved}) == 3
    held_out = {tuple(numbers(q.problem.question)) for q in QUESTIONS.draw("held out", 12)}
    assert not held_out & {tuple(numbers(row["prompt"])) for row in solved}
    assert json.loads((model / "config.json").read_text())["hidden_size"] == 16
    assert base.run().digest != Base(**{**vars(base), "questions": 31}).run().digest


@pytest.mark.slow
def test_the_whole_ablation_with_a_tiny_model(tmp_path, student):
    pytest.importorskip("matplotlib", reason="plots need the extra `experiments`")
    model = str(student[1])
    wanted = plan(model)
    groups = {"arms": wanted.arms(("base", "raw", "crv", "dpo", "cogpo"), 1)}
    grid, worker, done = Stages(tmp_path), Worker(tmp_path, model), []

    def counted(run: Stage, folder, needs):
        done.append(run.name)
        return worker(run, folder, needs)

    rows = grid.run(groups["arms"], counted)
    assert [row["arm"] for row in rows] == [BASE, RAW, CRV, DPO, COGPO]
    assert len(done) == 5
    for row in rows:
        assert 0 < row["nll"] < 20
        assert 0 <= row["correct"] <= 1
        assert row["tokens"] == 8
        assert row["truncated"] == 1
    assert "accuracy" not in rows[2]
    assert 0 <= rows[4]["accuracy"] <= 1
    assert rows[3]["log_ratio_margin"] != rows[4]["log_ratio_margin"] != 0
    # DPO and CogPO start from the exported SFT model, whose log-probs are those of the run.
    assert not (grid.folder(groups["arms"][-1]) / "checkpoints").exists()

    page = write_report(grid, groups, wanted, tmp_path)
    assert f"| {COGPO} | 1 |" in page
    assert "CRV SFT + CogPO − CRV SFT + DPO" in page
    assert "## Styles of the answers" in page
    assert "2504.09802" in page
    assert (tmp_path / "arms.png").exists()
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 6
    assert Stages(tmp_path).run(groups["arms"], counted) == rows
    assert len(done) == 5
