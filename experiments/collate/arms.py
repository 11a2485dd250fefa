"""Defines the arms: COLLATE with a part changed, and what it is compared with, all behind the same instruction tuning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.evals.statistics import majority_is_right
from smallr.methods.collate.answers import answer_questions
from smallr.methods.collate.data import Row, opened, written
from smallr.methods.collate.modes import GIVEN, RATIONALE, Modes
from smallr.methods.collate.pairs import gold_over_own
from smallr.methods.collate.stages import Collate

CHANGES: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "no distinct providers": {"distinct": False, "generation.temperature": 1.0},
    "random winner": {"pairs.winner": "random"},
    "no filter": {"pairs.filter": False},
    "S = 3": {"providers": 3},
    "refinement": {"refine": True},
    "sum": {"utility.form": "sum"},
}


class GoldRationales(Collate):
    """SFT on the gold rationales of the task rows, as many passes as COLLATE has rounds."""

    def build(self) -> None:
        """Trains on gold rationales, then measures."""
        rows = self.stages.do("gold_rows", gold_rows, self.data.task, self.modes)
        model = self.tuned
        for number in range(self.config.rounds):
            model = self.train(f"gold_{number}", "tuning", rows, model)
        self.measure([model])


class SelfTraining(Collate):
    """STaR-like: SFT on the model's own rationales that reached the gold answer, in rounds."""

    def build(self) -> None:
        """Keeps right answers, trains on them from M_IFT, as STaR does, and measures."""
        model = self.tuned
        for number in range(self.config.rounds):
            options = self.sampling(self.config.generation.answer_tokens, number + 1)
            own = self.stages.do(
                f"star_answers_{number}",
                answer_questions,
                self.writer,
                model,
                self.data.task,
                RATIONALE,
                self.modes,
                options,
            )
            rows = self.stages.do(f"star_rows_{number}", right_rows, own, self.modes)
            model = self.train(f"star_{number}", "tuning", rows, self.tuned)
        self.measure([model])


class SelfPlay(Collate):
    """SPIN-like: DPO of the gold rationale over the model's own, in rounds."""

    def build(self) -> None:
        """Trains on gold over own rationales of the task rows, then measures."""
        model, rows = self.tuned, [row for row in self.data.task if row["rationale"]]
        for number in range(self.config.rounds):
            own = self.rationales(f"spin_own_{number}", model, rows, number + 1)
            pairs = self.stages.do(f"spin_pairs_{number}", gold_over_own, rows, own, self.modes)
            model = self.train(f"spin_{number}", "task", pairs, model)
        self.measure([model])


class Majority(Collate):
    """M_IFT, with the majority of as many samples as there are providers."""

    def build(self) -> None:
        """Draws samples, then measures them."""
        self.measure([self.tuned])
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
            for s in range(self.config.providers)
        ]
        self.votes = self.stages.do("majority", majority, samples)

    def correct(self) -> list[bool]:
        """Returns whether the majority is right, question by question."""
        return opened(self.value(self.votes))["correct"]


BASELINES: Mapping[str, type[Collate]] = {
    "SFT on gold": GoldRationales,
    "self-training": SelfTraining,
    "gold over own": SelfPlay,
    "majority": Majority,
}
ARMS = ("M_IFT", *CHANGES, *BASELINES)


def open_arm(name: str, config: ConfigDict, out: Path) -> Collate:
    """Returns the graph of an arm. Arms of one folder share the stages that are the same.

    Raises:
      UserError: no such arm.
    """
    if name not in (*CHANGES, *BASELINES):
        raise UserError(f"--arms: {name!r} must be one of: {', '.join(ARMS)}")
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict(dict(CHANGES.get(name, {})))
    return BASELINES.get(name, Collate)(config, out.absolute())


def gold_rows(folder: Path, rows: Sequence[Row], modes: Modes) -> dict[str, Any]:
    """Writes rows of modes I→R and [I;R]→A with the gold rationales."""
    made = [
        each
        for row in rows
        if row["rationale"]
        for each in taught(row["question"], row["rationale"], row["answer"], modes)
    ]
    return written(folder, made, {"rows in": len(rows), "kept": len(made) // 2})


def right_rows(folder: Path, own: Mapping[str, Any], modes: Modes) -> dict[str, Any]:
    """Writes the same rows with a model's own rationales, where its answer is right.

    Raises:
      UserError: none is.
    """
    answers = opened(own)
    kept = [row for row in answers if row["correct"] and row["usable"]]
    if not kept:
        raise UserError(f"{folder.name}: no answer of {len(answers)} is right, so there is nothing to train on")
    made = [each for row in kept for each in taught(row["question"], row["text"], row["answer"], modes)]
    return written(folder, made, {"rows in": len(answers), "kept": len(kept)})


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
