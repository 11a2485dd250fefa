"""The blocks of docs/api.md run one after the other, as a reader would run them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smallr

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[2] / "docs" / "api.md"


@pytest.fixture(scope="module")
def read(tmp_path_factory) -> dict[str, Any]:
    """The names that the page's blocks have left behind."""
    from smallr.losses.preference import LOSSES
    from smallr.training.objective import OBJECTIVES

    names: dict[str, Any] = {"__name__": "page"}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        for number, block in enumerate(blocks):
            exec(compile(block, f"docs/api.md, block {number}", "exec", dont_inherit=True), names)
        names["folder"] = Path.cwd()
    yield names
    LOSSES.pop("margin_sigmoid")
    OBJECTIVES.pop("focal")


def test_the_page_trains_asks_scores_and_exports(read):
    assert [len(each) for each in read["answers"]] == [2, 2]
    assert read["logps"].shape == (2,)
    assert read["best"] in read["candidates"]
    np.testing.assert_allclose([each.sum() for each in read["of_tokens"]], read["logps"], atol=1e-4)
    assert (read["folder"] / "exported" / "model.safetensors").is_file()
    # The checkpoint is pinned: a run that goes on meanwhile changes nothing.
    assert read["model"].source.name.endswith("runs/first/checkpoints/2")
    assert read["messages"][1]["role"] == "assistant"


def test_the_pages_objective_is_what_it_says(read):
    """The held-out loss before training, against log-probs of single texts under the same weights."""
    from smallr.data.sources import load_rows

    model = smallr.load("tiny-random")
    rows = load_rows("builtin:arithmetic/sft", "test[:16]")
    scored = model.logps(list(rows["prompt"]), [[text] for text in rows["completion"]], per_token=True)
    losses = [-((1 - np.exp(logps)) * logps).sum() for (logps,) in scored]
    assert read["report"]["before"]["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert read["report"]["after"]["loss"] < read["report"]["before"]["loss"]
