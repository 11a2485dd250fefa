"""Fixtures of the data tests."""

from __future__ import annotations

import datasets
import pytest

from smallr.data.tokenize import TokenizeOptions, tokenize
from tests.data.toy_tokenizer import build

TOY = build()


@pytest.fixture
def run(tmp_path):
    """`run(rows, tokenizer, max_length, **options)` tokenises rows, of the kind that their columns tell, or `kind`."""

    def run(rows, tokenizer=TOY, max_length=1000, **options):
        rows = rows if isinstance(rows, datasets.Dataset) else datasets.Dataset.from_list(rows)
        kinds = {"chosen": "preference", "question": "rationale"}
        kind = options.pop("kind", next((kinds[name] for name in rows.column_names if name in kinds), "sft"))
        return tokenize(rows, tokenizer, TokenizeOptions(kind, max_length, **options), cache=tmp_path / "tokens")

    return run
