"""Estimates how long the stages of a run take, before the first one begins.

The work of a stage is a number of tokens, which follows from the number of rows and the mean lengths of their texts. A
short measurement gives the seconds that a token takes to be written and to be scored. A trained token costs three times a
scored one: the backward pass is twice the forward pass. As soon as stages of a kind are finished, the table of stages takes
their own seconds instead (`smallr.core.stage_table`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smallr.core.files import read_json, write_json
from smallr.methods.collate.modes import ANSWER, GIVEN, RATIONALE, Modes
from smallr.methods.collate.utility import UtilityScorer
from smallr.methods.collate.writer import Writer
from smallr.training.progress import log

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PACE = "pace.json"
WRITE, SCORE, TRAIN, ROWS = "writing", "scoring", "training", "rows"  # kinds of stages
REFERENCE = 1 / 3  # of an epoch: the forward pass of a reference
_SAMPLED = 200  # rows whose lengths are measured
_TOKENS = 16  # that are written to measure the speed
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

    def answered(self, mode: str) -> float:
        """Returns the tokens that a model writes where it answers in a mode."""
        return {ANSWER: self.answer, GIVEN: self.answer, RATIONALE: self.rationale + self.answer}[mode]


def measured_pace(path: Path, writer: Writer, model: str, rows: Sequence[Row], modes: Modes, options: Any) -> Pace:
    """Returns how fast a model writes, scores and trains here; measured once and kept in a file.

    Args:
      path: of the file.
      writer: that the stages share.
      model: that the run starts from.
      rows: some with question, answer and rationale.
      modes: texts of the modes.
      options: of `UtilityScorer`.
    """
    if path.exists():
        return read_json(path)
    log("measuring how fast the model writes and scores …")
    start = time.perf_counter()
    scorer = UtilityScorer(model, modes, options)
    texts = [[row["rationale"]] for row in rows]
    scorer(rows, texts)  # compiles
    started = time.perf_counter() - start
    before = scorer.tokens, scorer.seconds
    scorer(rows, texts)
    token = (scorer.seconds - before[1]) / max(scorer.tokens - before[0], 1)
    del scorer
    pace = {
        WRITE: writer.pace(model, [modes.prompt(RATIONALE, row["question"]) for row in rows], _TOKENS),
        SCORE: {"start": started, "token": token},
        TRAIN: {"start": _BACKWARD * started, "token": _BACKWARD * token},
    }
    write_json(path, pace)
    return pace


def seconds_of(pace: Pace, kind: str, tokens: float) -> float:
    """Returns the estimated time of a stage: that of loading and compiling, and that of its tokens."""
    if kind == ROWS:
        return 1.0
    return pace[kind]["start"] + tokens * pace[kind]["token"]
