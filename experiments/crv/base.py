"""Makes a student from nothing: small, and pretrained on what every run of the ablation starts from.

It has seen single equations, and right rationales of all three styles (terse, fitted, involved) in equal parts, so that
it can read the questions, knows every style and prefers none. No held-out question is among them.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from experiments.crv.arms import TrainSettings
from experiments.crv.questions import Questions
from smallr.core.stages import Stage
from smallr.data.builtin.problems import solve
from smallr.data.builtin.rationales import STYLES, write
from smallr.data.saving import save_splits
from smallr.models.scratch import Size, train_tokenizer, write_scratch


@dataclasses.dataclass(frozen=True)
class Base:
    """Describes the student and its pretraining.

    Attributes:
      size: of the decoder.
      vocabulary: entries at most.
      questions, equations: rows of each kind; a row of equations has twelve.
      held_out: number of held-out questions, which are left out.
      templates, largest: see `Questions`.
      train: how it is trained.
      dtype: of the computation.
    """

    size: Size
    vocabulary: int
    questions: int
    equations: int
    held_out: int
    templates: tuple[str, ...]
    largest: int
    train: TrainSettings
    dtype: str
    seed: int = 0

    def run(self) -> Stage:
        """Gives its pretraining as a stage."""
        return Stage("base", {"seed": self.seed, **dataclasses.asdict(self)})

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Returns the folders of the untrained model and of its rows, made if they are not there."""
        rows, model = folder / "rows", folder / "untrained"
        if not rows.exists():
            save_splits(DatasetDict({"train": Dataset.from_list(self._rows())}), rows)
        if not (model / "config.json").exists():
            texts = (text for row in Dataset.load_from_disk(str(rows / "train")) for text in row.values())
            write_scratch(model, train_tokenizer(texts, self.vocabulary), self.size, self.seed)
        return model, rows

    def _rows(self) -> list[dict[str, Any]]:
        source, rng = Questions(self.templates, self.largest), random.Random(f"base {self.seed}")
        held_out = source.draw("held out", self.held_out)
        rows = source.equations(f"base {self.seed}", self.equations)
        for question in source.draw(f"base {self.seed}", self.questions, held_out):
            lines = solve(question.problem)
            text = write(rng.choice(STYLES), question.problem, lines, rng, right=True)
            rows.append({"prompt": question.problem.question, "completion": text})
        return rows
