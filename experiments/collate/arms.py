"""Defines the arms: COLLATE with a part changed, and what it is compared with, all behind the same instruction tuning."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.core.stages import Stage
from smallr.evals.statistics import majority_is_right
from smallr.methods.collate import config as fields
from smallr.methods.collate.answers import answer_questions
from smallr.methods.collate.data import NothingLeftError, Row, opened, written
from smallr.methods.collate.modes import GIVEN, RATIONALE, Modes
from smallr.methods.collate.pairs import gold_over_own
from smallr.methods.collate.report import training_counts
from smallr.methods.collate.stages import Collate, train_on
from smallr.methods.collate.writer import Writer
from smallr.training.objective import make_objective
from smallr.training.opening import open_trained
from smallr.training.splits import make_split

SAMPLES = 5  # of the majority
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "two rounds": {"rounds": 2},
    "no distinct providers": {"distinct": False, "generation.temperature": 1.0},
    "random winner": {"pairs.winner": "random"},
    "no filter": {"pairs.filter": False},
    "S = 1": {"providers": 1, "rounds": 0},  # the task stage refuses one provider
    "S = 3": {"providers": 3},
    "refinement": {"refine": True},
    "sum": {"utility.form": "sum"},
}


@dataclasses.dataclass(frozen=True)
class Budget:
    """Says what an arm has spent behind instruction tuning, its measurement left out.

    Attributes:
      trained: tokens of all steps; a pair counts once, though its reference is computed too.
      written: tokens of rationales.
      rationales: their number.
    """

    trained: int
    written: int
    rationales: int


def spent(arm: Collate) -> Budget:
    """Returns what an arm that has run has spent."""
    trained = written = rationales = 0
    for stage in arm.stages.named:
        value = arm.value(stage)
        if value == arm.stages.folder(stage) and stage != arm.tuned:
            trained += training_counts(value)["tokens"]
        elif isinstance(value, Mapping) and "tokens" in value and stage not in arm.answers.values():
            written += value["tokens"]
            rationales += value["counts"]["rows in"]
    return Budget(trained, written, rationales)


class Baseline(Collate):
    """Trains one model on other rows for the tokens that COLLATE trains on, in as many rounds.

    Args:
      config, out: as of `Collate`.
      budget: of COLLATE with the same config.
    """

    def __init__(self, config: ConfigDict, out: Path, budget: Budget):
        self.budget = budget
        super().__init__(config, out)

    def train_for(self, name: str, kind: str, rows: Stage, start: str | Stage) -> Stage:
        """Names a stage that trains for a round's part of the budget."""
        config, tokens = fields.training_config(self.config, kind, self.config.seed), self.budget.trained
        own = tokens // self.config.rounds
        return self.stages.do(name, train_for, self.writer, config, rows, start, self.tokenizer, own)

    def passes(self, number: int) -> range:
        """Returns the passes over the task rows in which the rationales of a round are written."""
        count, rounds = round(self.budget.rationales / len(self.data.task)), self.config.rounds
        return range(count * number // rounds, count * (number + 1) // rounds)


def train_for(
    folder: Path,
    writer: Writer,
    config: ConfigDict,
    rows: Mapping[str, Any],
    start: str | Path,
    tokenizer: Mapping[str, Any],
    tokens: int,
) -> Path:
    """Trains as `train_on` does, for the steps that hold as many tokens."""
    config = config.copy_and_resolve_references()
    opened_tokenizer = open_trained(str(start), str(tokenizer["tokenizer"])).tokenizer()
    split = make_split(config, opened_tokenizer, make_objective(config), opened(rows), "train", str(rows["rows"]))
    epoch = split.plan.stats(0)
    with config.unlocked():
        config.epochs, config.steps = 0, max(1, round(tokens * epoch.steps / epoch.tokens))
    return train_on(folder, writer, config, rows, start, tokenizer)


class GoldRationales(Baseline):
    """SFT on the gold rationales of the task rows."""

    def build(self) -> None:
        """Trains on gold rationales, then measures."""
        rows = self.stages.do("gold_rows", gold_rows, self.data.task, self.modes)
        model = self.tuned
        for number in range(self.config.rounds):
            model = self.train_for(f"gold_{number}", "tuning", rows, model)
        self.measure([model])


class SelfTraining(Baseline):
    """STaR-like: SFT on the model's own rationales that reached the gold answer, in rounds."""

    def build(self) -> None:
        """Samples, keeps right answers, trains on them from M_IFT, as STaR does, and measures."""
        model, task = self.tuned, self.data.task
        for number in range(self.config.rounds):
            own = [
                self.stages.do(
                    f"star_answers_{number}_{k}",
                    answer_questions,
                    self.writer,
                    model,
                    task,
                    RATIONALE,
                    self.modes,
                    self.sampling(self.config.generation.answer_tokens, k + 1, 1.0),
                )
                for k in self.passes(number)
            ]
            rows = self.stages.do(f"star_rows_{number}", right_rows, own, self.modes)
            model = self.train_for(f"star_{number}", "tuning", rows, self.tuned)
        self.measure([model])


class SelfPlay(Baseline):
    """SPIN-like: DPO of the gold rationale over the model's own samples, in rounds."""

    def build(self) -> None:
        """Trains on gold over own rationales of the task rows, then measures."""
        model, task = self.tuned, [row for row in self.data.task if row["rationale"]]
        for number in range(self.config.rounds):
            pairs = []
            for k in self.passes(number):
                own = self.rationales(f"spin_own_{number}_{k}", model, task, k + 1, 1.0)
                pairs.append(self.stages.do(f"spin_pairs_{number}_{k}", gold_over_own, task, own, self.modes))
            rows = self.stages.do(f"spin_rows_{number}", joined, pairs)
            model = self.train_for(f"spin_{number}", "task", rows, model)
        self.measure([model])


class Majority(Collate):
    """M_IFT, with the majority of as many samples as there are providers."""

    def build(self) -> None:
        """Samples answers of the validation questions."""
        self.ask({"M_IFT": self.tuned})
        samples = [
            self.stages.do(
                f"sample_{s}",
                answer_questions,
                self.writer,
                self.tuned,
                self.data.validation,
                RATIONALE,
                self.modes,
                self.sampling(self.config.generation.answer_tokens, s + 1, 1.0),
            )
            for s in range(SAMPLES)
        ]
        self.votes = self.stages.do("majority", majority, samples)

    def correct(self) -> list[bool]:
        """Returns whether the majority is right, question by question."""
        return opened(self.value(self.votes))["correct"]


BASELINES: Mapping[str, type[Baseline]] = {
    "SFT on gold": GoldRationales,
    "self-training": SelfTraining,
    "gold over own": SelfPlay,
}
MAJORITY = "majority"
ARMS = ("M_IFT", *CHANGES, *BASELINES, MAJORITY)


def open_arm(name: str, config: ConfigDict, out: Path, budget: Budget | None = None) -> Collate:
    """Returns the graph of an arm. Arms of one folder share the stages that are the same.

    Args:
      name: of the arm; M_IFT is measured in each graph.
      config: of COLLATE, which the arm changes.
      out: folder of the stages.
      budget: of COLLATE; baselines need it.

    Raises:
      UserError: no such arm.
    """
    if name not in ARMS:
        raise UserError(f"--arms: {name!r} must be one of: {', '.join(ARMS)}")
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict(dict(CHANGES.get(name, {})))
    if name in BASELINES:
        return BASELINES[name](config, out.absolute(), budget)
    return (Majority if name == MAJORITY else Collate)(config, out.absolute())


def gold_rows(folder: Path, rows: Sequence[Row], modes: Modes) -> dict[str, Any]:
    """Writes rows of modes I→R and [I;R]→A with the gold rationales."""
    made = [
        each
        for row in rows
        if row["rationale"]
        for each in taught(row["question"], row["rationale"], row["answer"], modes)
    ]
    return written(folder, made, {"rows in": len(rows), "kept": len(made) // 2})


def right_rows(folder: Path, own: Sequence[Mapping[str, Any]], modes: Modes) -> dict[str, Any]:
    """Writes the same rows with a model's own rationales, each once, where its answer is right.

    Raises:
      NothingLeftError: none is.
    """
    answers = [row for each in own for row in opened(each)]
    right = [row for row in answers if row["correct"] and row["usable"]]
    kept = list({(row["question"], row["text"]): row for row in right}.values())
    if not kept:
        raise NothingLeftError(f"{folder.name}: no answer of {len(answers)} is right, so there is nothing to train on")
    made = [each for row in kept for each in taught(row["question"], row["text"], row["answer"], modes)]
    return written(folder, made, {"rows in": len(answers), "kept": len(kept)})


def joined(folder: Path, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Writes the rows of several stages as one data set."""
    rows = [row for part in parts for row in opened(part)]
    return written(folder, rows, {"rows in": len(rows), "kept": len(rows)})


def taught(question: str, rationale: str, answer: str, modes: Modes) -> list[dict[str, str]]:
    """Returns the two rows of instruction tuning that a rationale makes."""
    return [
        {"prompt": modes.prompt(RATIONALE, question), "completion": modes.written_rationale(rationale)},
        {"prompt": modes.prompt(GIVEN, question, rationale), "completion": modes.written_answer(answer)},
    ]


def majority(folder: Path, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Writes whether the most frequent answer of each question is right."""
    tables = [opened(each) for each in samples]
    rows = [
        {"correct": majority_is_right([each["predicted"] or None for each in row], [each["correct"] for each in row])}
        for row in zip(*tables, strict=True)
    ]
    return written(folder, rows, Counter({"rows in": len(rows), "correct": sum(row["correct"] for row in rows)}))
