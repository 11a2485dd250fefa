"""Published figures and recipes: the report, the page and the config say the same, and what the authors say."""

from __future__ import annotations

import re
from pathlib import Path

from configs.crv import sft
from experiments.crv.report import PUBLISHED

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "cogpo_ablation.md"


def rows_of(table: str) -> dict[str, list[str]]:
    """First cell -> the other cells, of every line of the table below its header."""
    cells = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in table.splitlines() if "|" in line]
    return {first: rest for first, *rest in cells[2:]}


def test_the_report_and_the_page_have_the_same_published_rows():
    section = PAGE.read_text().partition("## Published figures")[2].partition("\n## ")[0]
    page = rows_of(section)
    assert page == rows_of(PUBLISHED)
    assert len(page) == 8


def test_each_row_stands_under_its_own_model():
    rows = rows_of(PUBLISHED)
    own = [figures for name, figures in rows.items() if re.match(r"DistilQwen2\.5-R1-7B ", name)]
    assert own == [["23.33", "77.8", "37.88", "36.40"]]
    other = [name for name, figures in rows.items() if figures == ["43.3", "88.4", "42.9", "46.4"]]
    assert len(other) == 1
    assert "another teacher" in other[0]


def test_the_config_is_the_authors_recipe_of_sft():
    config = sft.get_config()
    optimizer = config.optimizer
    found = (optimizer.learning_rate, optimizer.warmup, optimizer.schedule, optimizer.weight_decay)
    assert found == (2e-5, 0.1, "cosine", 0.05)
    assert (config.epochs, config.batch.rows, config.batch.packing) == (3, 8, False)
    assert "--config.optimizer.learning_rate=1e-6 --config.epochs=1" in sft.__doc__, "of CogPO that follows"
