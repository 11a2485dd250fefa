"""Scores rationales: how likely the gold answer is behind them, under the instruction-tuned model.

A question, the answer without a rationale (u_0) and the answer behind each of its rationales are one example of a packed
row: the question stands there once, and each completion sees itself and the question alone.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from smallr.core.journal import Journal
from smallr.core.sharding import make_mesh
from smallr.data.batch import Example
from smallr.data.encode import Encoder, to_example
from smallr.language.loading import load_trained
from smallr.methods.collate.data import Row, opened, written
from smallr.methods.collate.modes import Modes
from smallr.training.progress import log
from smallr.training.scoring import Scorer

_BLOCK = 256  # questions that are scored together, and kept as soon as they are


def score_rationales(
    folder: Path,
    judge: Path,
    rows: Sequence[Row],
    rationales: Sequence[Mapping[str, Any]],
    modes: Modes,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes each question's rationales with their utilities, None where one cannot be used, and `u_0`.

    Args:
      folder: of the stage; blocks of questions are kept there as they are finished.
      judge: the instruction-tuned model.
      rows: questions and answers.
      rationales: values of the stages that wrote them, one a provider.
      modes: texts of the modes.
      options: `form` of the utility, `rows` and `row_length` of scoring, `dtype`.
    """
    tables = [opened(each) for each in rationales]
    texts = [[each["text"] if each["usable"] else None for each in row] for row in zip(*tables, strict=True)]
    journal, scorer = Journal(folder / "journal.jsonl", ("utilities",)), None
    for start in range(0, len(rows), _BLOCK):
        if str(start) not in journal:
            scorer = scorer or UtilityScorer(judge, modes, options)
            part = slice(start, start + _BLOCK)
            journal.add(str(start), {"utilities": scorer(rows[part], texts[part])})
    if scorer is not None:
        log(f"{folder.name}: {scorer.speed()}")
    found = [each for start in range(0, len(rows), _BLOCK) for each in journal[str(start)]["utilities"]]
    table = [
        {
            "question": row["question"],
            "answer": row["answer"],
            "rationales": own,
            "utilities": values[1:],
            "u_0": values[0],
        }
        for row, own, values in zip(rows, texts, found, strict=True)
    ]
    counts = Counter({"rows in": len(rows), "scored": sum(row["u_0"] is not None for row in table)})
    counts["too long"] = counts["rows in"] - counts["scored"]
    return written(folder, table, counts)


class UtilityScorer:
    """Computes utilities under one model.

    Args:
      judge: a run, or any other model.
      modes: texts of the modes.
      options: see `score_rationales`.

    Attributes:
      tokens, seconds: scored so far, and the time that it took, compilation included.
    """

    def __init__(self, judge: str | Path, modes: Modes, options: Mapping[str, Any]):
        self._modes, self._options = modes, options
        mesh = make_mesh(-1, 1, 1)
        with jax.set_mesh(mesh):
            source, decoder = load_trained(str(judge), mesh, dtype=options["dtype"])
        self._encoder, self._scorer = Encoder(source.tokenizer()), Scorer(decoder, mesh)
        self.tokens, self.seconds = 0, 0.0

    def __call__(self, rows: Sequence[Row], rationales: Sequence[Sequence[str | None]]) -> list[list[float | None]]:
        """Returns u_0 and the utility of each rationale of each question; None where there is none, or it is too long.

        Equal rationales of a question are scored once, so that they have the same utility to the last bit.
        """
        examples, keys = [], []
        for number, (row, texts) in enumerate(zip(rows, rationales, strict=True)):
            distinct = [None, *dict.fromkeys(text for text in texts if text is not None)]
            example = self._example(row, distinct, number)
            if example is not None:
                examples.append(example)
                keys.append(distinct)
        values: list[list[float | None]] = [[None] * (1 + len(texts)) for texts in rationales]
        for index, logps in self._scored(examples):
            known = dict(zip(keys[index], (utility(each, self._options["form"]) for each in logps), strict=True))
            number = examples[index].row
            values[number] = [known[None], *(None if text is None else known[text] for text in rationales[number])]
        return values

    def speed(self) -> str:
        """Returns how fast the scoring was, compilation included."""
        rate = self.tokens / max(self.seconds, 1e-9)
        return f"scored {self.tokens:,} tokens in {self.seconds:.1f} s, {rate:,.0f} tokens/s"

    def _example(self, row: Row, rationales: Sequence[str | None], number: int) -> Example | None:
        """Returns a question with its answers behind the rationales; None if it does not fit in a row."""
        texts = [self._modes.scored_answer(row["question"], each, row["answer"]) for each in rationales]
        example = to_example(self._encoder(texts), {}, number)
        length = len(example.prefix) + sum(len(each.tokens) for each in example.completions)
        return example if length <= self._options["row_length"] else None

    def _scored(self, examples: Sequence[Example]) -> Iterator[tuple[int, list[Float[np.ndarray, "scored"]]]]:
        if not examples:
            return
        start = time.perf_counter()
        yield from self._scorer.token_logps(
            examples, rows=self._options["rows"], row_length=self._options["row_length"]
        )
        self.seconds += time.perf_counter() - start
        self.tokens += sum(len(e.prefix) + sum(len(each.tokens) for each in e.completions) for e in examples)


def utility(logps: Float[np.ndarray, "scored"], form: str) -> float:
    """Computes the likelihood of an answer from the log-probs of its tokens: exp of their mean, or of their sum."""
    total = float(np.sum(logps, dtype=np.float64))
    return math.exp(total / len(logps) if form == "mean" else total)
