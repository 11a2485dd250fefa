"""The ablation's arms share stages, train on what they say, and are reported with intervals."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from experiments.collate import arms
from experiments.collate.ablation import config_of, flags, report
from experiments.collate.arms import CHANGES, gold_rows, majority, open_arm, right_rows
from smallr.core.errors import UserError
from smallr.core.stages import check
from smallr.data.saving import save_rows
from smallr.methods.collate.config import training_config
from smallr.methods.collate.data import opened
from smallr.methods.collate.modes import write_tokenizer
from smallr.training.opening import open_trained
from tests.methods.collate.small import MARKS, MODES, ROWS, small_config, write_model

AGREEMENTS = {"held-out, by the provider's answer": [], "rounds, by the rationale's number": [[1.0], [0.0]]}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return write_model(tmp_path_factory.mktemp("model") / "model")


def stage(folder, rows) -> dict:
    save_rows(rows, folder / "rows")
    return {"rows": folder / "rows"}


def test_arms_of_a_seed_share_what_is_the_same(tmp_path, model):
    config = small_config(tmp_path, model, rounds=2)
    graphs = {
        name: open_arm(name, config, tmp_path / "out")
        for name in ("full", "random winner", "sum", "S = 3", "refinement", "majority")
    }
    for graph in graphs.values():
        check(graph.stages.named)
    folders = {
        name: {str(graph.stages.folder(stage)) for stage in graph.stages.named} for name, graph in graphs.items()
    }
    tuned = {name: str(graph.stages.folder(graph.tuned)) for name, graph in graphs.items()}
    assert len({folder for name, folder in tuned.items() if name != "refinement"}) == 1
    assert tuned["refinement"] != tuned["full"]
    for name in ("random winner", "sum"):
        shared = {folder.rsplit("/", 1)[1].split("-")[0] for folder in folders[name] & folders["full"]}
        assert {"provider_0", "provider_1", "rationales_0_0", "rationales_0_1"} <= shared
        assert "round_0_0" not in shared
    assert len(graphs["S = 3"].providers[-1]) == 3
    with pytest.raises(UserError, match="must be one of: M_IFT, full"):
        open_arm("none", config, tmp_path / "out")


def test_every_change_is_of_a_field():
    options = flags().parse_args([])
    config = config_of(options, 0, "m", "rows", "held")
    for changes in CHANGES.values():
        config.copy_and_resolve_references().update_from_flattened_dict(dict(changes))


def test_self_training_keeps_right_answers(tmp_path):
    answers = [
        {"question": "q", "answer": "3", "text": "r", "usable": True, "correct": True},
        {"question": "q", "answer": "3", "text": "", "usable": False, "correct": True},
        {"question": "q", "answer": "3", "text": "r", "usable": True, "correct": False},
    ]
    value = right_rows(tmp_path / "out", [stage(tmp_path, answers), stage(tmp_path / "same", answers)], MODES)
    assert value["counts"] == {"rows in": 6, "kept": 1}
    assert opened(value)["completion"] == [" r\n\nAnswer:", " 3<|im_end|>"]
    assert gold_rows(tmp_path / "gold", [ROWS[0], {**ROWS[1], "rationale": ""}], MODES)["counts"]["kept"] == 1
    with pytest.raises(UserError, match="no answer of 1 is right"):
        right_rows(tmp_path / "none", [stage(tmp_path / "n", answers[2:])], MODES)


def test_baselines_train_and_write_as_much_as_collate(tmp_path, model, monkeypatch):
    config = small_config(tmp_path, model, rounds=2)
    budget = arms.Budget(trained=4000, written=0, rationales=5 * 24)
    for name in ("SFT on gold", "gold over own", "self-training"):
        arm = open_arm(name, config, tmp_path / "out", budget)
        assert [list(arm.passes(number)) for number in range(2)] == [[0, 1], [2, 3, 4]]
    assert sum(stage.name.startswith("star_answers") for stage in arm.stages.named) == 5
    found = []
    monkeypatch.setattr(
        arms, "train_on", lambda folder, writer, config, *_: found.append((config.epochs, config.steps))
    )
    rows, tokenizer = gold_rows(tmp_path / "gold", ROWS[:24], MODES), open_trained(model).tokenizer()
    tokens = sum(len(tokenizer.encode(row["prompt"] + row["completion"])) for row in opened(rows))
    written_tokenizer = write_tokenizer(tmp_path, model, MARKS)
    for passes in (1, 3):
        fields = training_config(config, "tuning")
        arms.train_for(tmp_path, None, fields, rows, model, written_tokenizer, passes * tokens)
    assert found[0][0] == 0
    assert found[1][1] == 3 * found[0][1] > 3


def test_what_an_arm_has_spent(tmp_path):
    counts, report = (
        {"rows in": 5, "kept": 4},
        {"rows": {"read": 1, "examples": 1}, "epoch": {"steps": 2, "tokens": 50}},
    )
    folders = {name: tmp_path / name for name in ("tuned", "trained", "written", "answers")}
    for name in ("tuned", "trained"):
        folders[name].mkdir()
        (folders[name] / "report.json").write_text(json.dumps({**report, "steps": 4}))
    values = {name: folders[name] for name in ("tuned", "trained")}
    values |= {name: {"counts": counts, "tokens": 70} for name in ("written", "answers")}
    arm = SimpleNamespace(
        stages=SimpleNamespace(named=list(values), folder=folders.get),
        value=values.get,
        tuned="tuned",
        answers={"M_IFT": "answers"},
    )
    assert arms.spent(arm) == arms.Budget(trained=100, written=70, rationales=5)


def test_the_majority_of_samples_is_graded(tmp_path):
    samples = [
        stage(tmp_path / str(number), [{"predicted": text, "correct": text == "3"}])
        for number, text in enumerate(("4", "3", "3"))
    ]
    assert opened(majority(tmp_path / "out", samples))["correct"] == [True]
    assert opened(majority(tmp_path / "two", samples[:2]))["correct"] == [False]


def test_the_report_has_intervals(tmp_path):
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "correct": sum(right) / 4,
            "at_once": 0.5,
            "right": right,
            **extra,
        }
        for seed in range(2)
        for arm, right, extra in (
            ("M_IFT", [1.0, 0.0, 0.0, 0.0], {}),
            ("full", [1.0, 1.0, 0.0, seed * 1.0], {"agreements": AGREEMENTS, "spent trained": 1000 + 200 * seed}),
        )
    ]
    rows.append({"arm": "sum", "seed": 0, "ended": "round 0: no pair left"})
    page = report(rows, tmp_path)
    assert "| sum | 0 | round 0: no pair left |" in page
    assert page.count("| sum |") == 1
    assert "| M_IFT | 2 | 0.250 ± 0.000 |" in page
    assert "| full | 2 | 0." in page
    assert "+0.375 (" in page
    assert "| full | 2 | 1100 ± " in page
    assert "| full | rounds, by the rationale's number | 4 | 0.500 (" in page
    assert "held-out, by" not in page
    assert (tmp_path / "runs.csv").exists()
    assert report([], tmp_path) == "nothing is finished yet"
