"""The notebook on answering first runs from top to bottom: teacher rows, slips, training, questions, report and plots."""

from __future__ import annotations

import json

import pytest

from smallr.core.stage_values import load
from tests.colab.notebooks import check_plain, run_whole

NOTEBOOK = "answer_first.ipynb"


def test_cells_are_plain_python_without_outputs():
    check_plain(NOTEBOOK)


@pytest.mark.notebook
@pytest.mark.process
@pytest.mark.slow
def test_runs_from_top_to_bottom(tmp_path):
    pytest.importorskip("matplotlib", reason="plots need the extra `experiments`")
    printed = run_whole(NOTEBOOK, tmp_path)
    folders = {path.name.rpartition("-")[0]: path for path in tmp_path.iterdir() if (path / "result.json").exists()}
    assert set(folders) == {"post-0-0", "pre-0-0", "post-0.5-0", "pre-0.5-0"}
    saved = json.loads((folders["post-0-0"] / "result.json").read_text())["value"]
    post = load(saved, folders["post-0-0"])
    assert post["early_stop_same"] == 1  # a greedy answer does not depend on what would follow
    assert post["tokens"] <= post["tokens_without_stop"]
    assert 0.25 <= post["nll_share_answer@1"] <= 1  # the hardest quarter has at least its part
    assert 0 < post["gradient_share@1"] <= 1
    assert post["gradient_share@1"] != post["gradient_share_answer@1"]
    # Students of corrupted rows see other rationales and the same answers.
    files = [folders[name] / "rows.jsonl" for name in ("post-0-0", "post-0.5-0")]
    clean, corrupted = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    assert [row["answer"] for row in clean] == [row["answer"] for row in corrupted]
    changed = sum(a["rationale"] != b["rationale"] for a, b in zip(clean, corrupted, strict=True))
    assert len(clean) / 2 < changed <= len(clean)  # half of three steps each
    for claim in ("a slip in the rationale cannot spoil", "rank correlation at 25% of the steps", "decoding can stop"):
        assert claim in printed
    assert "| oracle |" in (tmp_path / "report.md").read_text()
    for name in ("tokens.png", "corruption.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
