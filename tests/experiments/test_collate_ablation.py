"""The ablation's arms share stages, train on what they say, and are reported with intervals."""

from __future__ import annotations

import pytest

from experiments.collate.ablation import config_of, flags, report
from experiments.collate.arms import CHANGES, gold_rows, majority, open_arm, right_rows
from smallr.core.errors import UserError
from smallr.data.saving import save_rows
from smallr.methods.collate.data import opened
from tests.methods.collate.small import MODES, ROWS, small_config, write_model

AGREEMENTS = {"held-out, by the provider's answer": [], "rounds, by the rationale's number": [[1.0], [0.0]]}


def stage(folder, rows) -> dict:
    save_rows(rows, folder / "rows")
    return {"rows": folder / "rows"}


def test_arms_of_a_seed_share_what_is_the_same(tmp_path):
    config = small_config(tmp_path, write_model(tmp_path / "model"), rounds=2)
    graphs = {
        name: open_arm(name, config, tmp_path / "out")
        for name in ("full", "random winner", "sum", "S = 3", "refinement", "majority")
    }
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
    page = report(rows, tmp_path)
    assert "| M_IFT | 2 | 0.250 ± 0.000 |" in page
    assert "| full | 2 | 0." in page
    assert "+0.375 (" in page
    assert "| full | 2 | 1100 ± " in page
    assert "| full | rounds, by the rationale's number | 4 | 0.500 (" in page
    assert "held-out, by" not in page
    assert (tmp_path / "runs.csv").exists()
    assert report([], tmp_path) == "nothing is finished yet"
