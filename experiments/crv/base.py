"""Makes a student from nothing: small, and pretrained on what every run of the ablation starts from.

It has seen single equations, and right rationales of all three styles (terse, fitted, involved) in equal parts, so that
it can read the questions, knows every style and prefers none. No held-out question is among them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from ml_collections import ConfigDict

from experiments.crv.arms import TrainSettings
from experiments.crv.questions import Questions
from smallr.core.stages import Stage, Stages, Stopped
from smallr.data.builtin.problems import solve
from smallr.data.builtin.rationales import STYLES, write
from smallr.data.saving import save_splits
from smallr.models.scratch import Size, train_tokenizer, write_scratch
from smallr.training.exporting import convert
from smallr.training.trainer import Trainer


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
      taught_later: templates that only its tokenizer has seen.
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
    taught_later: tuple[str, ...] = ()

    def run(self) -> Stage:
        """Gives its pretraining as a stage."""
        return Stage("base", {"seed": self.seed, **dataclasses.asdict(self)})

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Returns the folders of the untrained model and of its rows, made if they are not there."""
        rows, model = folder / "rows", folder / "untrained"
        if not rows.exists():
            save_splits(DatasetDict({"train": Dataset.from_list(self._rows())}), rows)
        if not (model / "config.json").exists():
            seen = [*Dataset.load_from_disk(str(rows / "train")), *self._rows_of(self.taught_later)]
            texts = (text for row in seen for text in row.values())
            write_scratch(model, train_tokenizer(texts, self.vocabulary), self.size, self.seed)
        return model, rows

    def _rows(self) -> list[dict[str, Any]]:
        equations = Questions(self.templates, self.largest).equations(f"base {self.seed}", self.equations)
        return equations + self._rows_of(self.templates)

    def _rows_of(self, templates: tuple[str, ...]) -> list[dict[str, Any]]:
        """Returns right rationales of all styles for questions of these templates; none for no template."""
        source, rng, rows = Questions(templates, self.largest), random.Random(f"base {self.seed}"), []
        held_out = source.draw("held out", self.held_out) if templates else []
        for question in source.draw(f"base {self.seed}", self.questions, held_out) if templates else []:
            lines = solve(question.problem)
            text = write(rng.choice(STYLES), question.problem, lines, rng, right=True)
            rows.append({"prompt": question.problem.question, "completion": text})
        return rows


def pretrained(wanted: Base, out: Path) -> str:
    """Returns the folder of the student, an exported model; it is trained on the first call, as a stage under `out`.

    Raises:
      Stopped: a signal ended the training.
    """

    def pretrain(stage: Stage, folder: Path, needs: list[Path]) -> dict[str, float]:
        del stage, needs
        from configs.sft import get_config

        untrained, rows = wanted.write(folder)
        config, how = get_config(), wanted.train
        config.model, config.compute.dtype, config.compute.remat = str(untrained), wanted.dtype, "none"
        config.data.train, config.data.train_split, config.data.eval = str(rows), "train", ""
        config.batch.rows, config.batch.row_length = how.rows, how.row_length
        config.optimizer.learning_rate, config.epochs, config.steps = how.rate, how.epochs, how.steps
        config.log_every = 10
        train(config, folder)
        shutil.rmtree(folder / "model", ignore_errors=True)
        convert(str(folder), folder / "model", dtype="float32", shard_size="5GB")
        shutil.rmtree(folder / "checkpoints")
        return {}

    stage, grid = wanted.run(), Stages(out / "base")
    grid.run([stage], pretrain)
    return str((grid.folder(stage) / "model").absolute())


def train(config: ConfigDict, folder: Path) -> None:
    """Trains in `folder`, or goes on there; what is printed goes to `log.txt`.

    Raises:
      Stopped: a signal ended it early.
    """
    with quiet(folder), Trainer(config, folder) as trainer:
        report = trainer.fit()
    if not report["finished"]:
        raise Stopped("stopped; the same command goes on from here")


@contextlib.contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """Writes prints and progress to `log.txt`."""
    with (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield
