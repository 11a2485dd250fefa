"""Makes the data sets of a seed: what the teacher wrote, what CRV makes of it, pairs of three gaps, and what models are judged on.

Folders, all for `datasets.load_from_disk`:

  teacher     split train: prompt and completion as the teacher wrote it, right or wrong (SFT on raw rationales)
  fitted      split train: the questions whose rationales CRV let through, with these (SFT on CRV rationales)
  pairs       split train: pairs with gaps
  questions   split test: prompt and answer of questions that are in no training set
  held_out    split test: pairs of those questions
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from rich.console import Console

from configs.crv.annotate import get_config
from experiments.crv.questions import Questions, taught
from smallr.core.errors import UserError
from smallr.data.saving import save_splits
from smallr.methods.crv.pairs import make_pairs
from smallr.methods.crv.pipeline import run_crv

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Says what rows are made of; equal recipes give equal rows.

    Attributes:
      seed: of the training questions, of the agents' errors, and of the choice among pairs. The held-out questions are the
        same for all seeds, and their agents make no errors.
      train, test: numbers of questions.
      critic: share of the oracle critic's labels that are wrong, as a number, or the model that is the critic, as
        `smallr.methods.crv` takes it (http://HOST/v1#MODEL, local:NAME).
      templates, largest: see `Questions`.
      mix: shares of the gaps, as `smallr.methods.crv.pairs` takes them.
      pairs: number of pairs; 0: as many as the questions give.
      data: folder of a finished CRV run with splits train and test, in place of the built-in questions; the fields
        `critic`, `templates` and `largest` are then not used.
    """

    seed: int
    train: int
    test: int
    critic: str = "0"
    templates: tuple[str, ...] = ()
    largest: int = 9999
    mix: str = "balanced"
    pairs: int = 0
    data: str = ""

    def build(self, out: Path) -> Path:
        """Returns the folder of the five data sets under `out`, made if it is not there."""
        folder = out / f"rows-{self.seed}-{digest(dataclasses.asdict(self))}"
        if (folder / "complete").exists():
            return folder
        training, held_out = self._from_data() if self.data else self._built_in(out)
        fitted = [row for row in training if not row["reason"]]
        wrong_or_not = [{"prompt": row["prompt"], "completion": row["original"]} for row in training]
        sets = {
            "teacher": ("train", wrong_or_not),
            "fitted": ("train", [{"prompt": row["prompt"], "completion": row["rationale"]} for row in fitted]),
            "pairs": ("train", self._pairs(fitted)),
            "questions": ("test", [{"prompt": row["prompt"], "answer": row["answer"]} for row in held_out]),
            "held_out": ("test", make_pairs([row for row in held_out if not row["reason"]]).pairs),
        }
        for name, (split, found) in sets.items():
            if not found:
                raise UserError(f"{self.data or 'built-in questions'}: no rows for {name}")
            save_splits(DatasetDict({split: Dataset.from_list(found)}), folder / name)
        (folder / "complete").touch()
        return folder

    def _pairs(self, fitted: Sequence[Row]) -> list[Row]:
        found = make_pairs(fitted, self.mix, seed=self.seed).pairs
        count = min(self.pairs or len(found), len(found))
        return random.Random(f"pairs {self.seed}").sample(found, count)  # the shares of the mix, but for chance

    def _built_in(self, out: Path) -> tuple[list[Row], list[Row]]:
        source = Questions(self.templates, self.largest)
        questions = source.draw("held out", self.test)
        training = source.draw(f"training {self.seed}", self.train, questions)
        held_out = crv(taught(questions, "test"), out, "oracle:arithmetic", "0")
        return crv(taught(training, "train"), out, f"oracle:arithmetic?seed={self.seed}", self.critic), held_out

    def _from_data(self) -> tuple[list[Row], list[Row]]:
        folder = Path(self.data)
        if not (folder / "verified").is_dir():
            raise UserError(f"data {self.data}: no finished run of smallr crv")
        return read(folder, "train")[: self.train], read(folder, "test")[: self.test]


def crv(teacher: Sequence[Mapping[str, Any]], out: Path, agents: str, critic: str) -> list[Row]:
    """Runs CRV over rows of the teacher; returns the verified rows and those that failed, in order.

    It has a folder under `out`, where recipes that differ in their pairs alone find it.
    """
    folder = out / f"crv-{digest([list(teacher), agents, critic])}"
    save_splits(DatasetDict({"train": Dataset.from_list([dict(row) for row in teacher])}), folder / "source")
    config = get_config()
    config.data.source, config.data.splits = str(folder / "source"), "train"
    config.model, config.cache, config.check = agents, not is_number(critic), "number"
    joint = "&" if "?" in agents else "?"
    config.agents.critic.model = f"{agents}{joint}critic_error={critic}" if is_number(critic) else critic
    run_crv(config, folder / "run", Console(file=io.StringIO()))
    return read(folder / "run", "train")


def is_number(text: str) -> bool:
    """Returns whether a critic is given by its rate of errors."""
    return re.fullmatch(r"[\d.]+", text) is not None


def digest(settings: Any) -> str:
    """Returns a digest of eight hex digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def read(folder: Path, split: str) -> list[Row]:
    """Returns the verified rows of a CRV run and those that failed, in the teacher's order.

    Raises:
      UserError: no such split.
    """
    parts = [folder / name / split for name in ("verified", "failed")]
    if not parts[0].is_dir():
        raise UserError(f"{folder}: the CRV run has no split {split!r}; run it with --config.data.splits=train,test")
    filled = [part for part in parts if list(part.glob("*.arrow"))]  # `datasets` cannot open a split without rows
    rows = [row for part in filled for row in Dataset.load_from_disk(str(part)).to_list()]
    return sorted(rows, key=lambda row: row["row"])
