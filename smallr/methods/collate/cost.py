"""Estimates how long the stages of a run take, before the first one begins.

The work of a stage is a number of tokens, which follows from the number of rows and the mean lengths of their texts. A
short measurement gives the seconds that a model takes to load and to compile, to read a token of a prompt, to write one and
to score one. A trained token costs three times a scored one: the backward pass is twice the forward pass. As soon as stages
of a kind are finished, the table of stages takes their own seconds instead (`smallr.core.stage_table`).
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smallr.core.files import read_json, write_json
from smallr.methods.collate.modes import GIVEN, RATIONALE, REFINE, Modes
from smallr.methods.collate.utility import UtilityScorer
from smallr.methods.collate.writer import Writer
from smallr.training.progress import log

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PACE = "pace.json"
WRITE, SCORE, TRAIN, ROWS = "writing", "scoring", "training", "rows"  # kinds of stages
REFERENCE = 1 / 3  # of an epoch: the forward pass of a reference
_SAMPLED = 200  # rows whose lengths are measured
_PACKED = 2  # packed rows of a step that is scored to measure the speed; a CPU scores more at the same speed
_FULL = 0.9  # of the tokens of that step that are filled, so that no padding is measured
_BACKWARD = 3  # a trained token costs as many scored ones

Row = Mapping[str, Any]
Pace = Mapping[str, Mapping[str, float]]  # of each kind: `start` and `token`, in seconds


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Holds the mean tokens of a row's texts.

    Attributes:
      question, rationale, answer: means; the rationale's is over the rows that have one.
      given: share of the rows that have a rationale.
    """

    question: float
    rationale: float
    answer: float
    given: float

    @classmethod
    def of(cls, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Lengths:
        """Measures the first rows."""
        sample = rows[:_SAMPLED]
        count = {
            name: [len(tokenizer(row[name], add_special_tokens=False)["input_ids"]) for row in sample if row[name]]
            for name in ("question", "rationale", "answer")
        }
        means = {name: float(np.mean(found or [0])) for name, found in count.items()}
        return cls(**means, given=len(count["rationale"]) / len(sample))

    def tuned(self, refine: bool) -> float:
        """Returns the tokens that a row has in instruction tuning, in all its modes."""
        answered, explained = self.question + self.answer, self.question + self.rationale
        given = explained + explained + self.answer + refine * (explained + self.rationale)
        return answered + self.given * given

    @property
    def pair(self) -> float:
        """Returns the tokens of a pair of rationales."""
        return self.question + 2 * self.rationale

    def scored(self, count: int) -> float:
        """Returns the tokens that a question with so many rationales has."""
        return self.question + self.answer + count * (self.rationale + self.answer)

    def prompt(self, mode: str) -> float:
        """Returns the tokens that a model reads where it writes in a mode."""
        return self.question + self.rationale * (mode in (GIVEN, REFINE))


@dataclasses.dataclass(frozen=True)
class Work:
    """Says what a stage has to do.

    Attributes:
      kind: writing, scoring, training or rows.
      tokens: that are written, scored or trained on.
      prompts: tokens of the prompts that a stage of writing reads.
    """

    kind: str = ROWS
    tokens: float = 1.0
    prompts: float = 0.0

    def seconds(self, pace: Pace) -> float:
        """Returns the estimated time: that of loading and compiling, and that of the tokens."""
        if self.kind == ROWS:
            return 1.0
        own = pace[self.kind]
        return own["start"] + self.tokens * own["token"] + self.prompts * own.get("prompt", 0.0)

    def amount(self, pace: Pace | None) -> float:
        """Returns the work in tokens of its kind; a token of a prompt counts as much less as it is read faster."""
        if self.kind != WRITE or pace is None:
            return self.tokens
        return self.tokens + self.prompts * pace[WRITE]["prompt"] / pace[WRITE]["token"]


def measured_pace(
    path: Path, writer: Writer, model: str, rows: Sequence[Row], modes: Modes, options: Mapping[str, Any], scored: float
) -> Pace:
    """Returns how fast a model writes, scores and trains here; measured once and kept in a file.

    Args:
      path: of the file.
      writer: that the stages share.
      model: that the run starts from.
      rows: some with question, answer and rationale.
      modes: texts of the modes.
      options: of `UtilityScorer`.
      scored: tokens of a question that is scored with one rationale.
    """
    if path.exists():
        return read_json(path)
    log("measuring how fast the model writes and scores; on two CPU cores this takes a minute or more …")
    step = {**options, "rows": min(options["rows"], _PACKED)}
    count = max(1, int(_FULL * step["rows"] * step["row_length"] / scored))
    scoring = _scoring_pace(model, list(itertools.islice(itertools.cycle(rows), count)), modes, step)
    pace = {
        WRITE: writer.pace(model, [modes.prompt(RATIONALE, row["question"]) for row in rows]),
        SCORE: scoring,
        TRAIN: {"start": scoring["start"], "token": _BACKWARD * scoring["token"]},
    }
    write_json(path, pace)
    return pace


def _scoring_pace(model: str, rows: Sequence[Row], modes: Modes, options: Mapping[str, Any]) -> Mapping[str, float]:
    """Measures the seconds that loading and compiling take, and those of a token."""
    start = time.perf_counter()
    scorer = UtilityScorer(model, modes, options)
    texts = [[row["rationale"]] for row in rows]
    scorer(rows, texts)  # compiles
    first, before = time.perf_counter() - start, (scorer.tokens, scorer.seconds)
    scorer(rows, texts)
    seconds = scorer.seconds - before[1]
    return {"start": max(first - seconds, 0.0), "token": seconds / max(scorer.tokens - before[0], 1)}
