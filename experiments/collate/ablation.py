"""Runs the ablation of COLLATE: its parts one by one, and what else the same tokens could have bought.

    python -m experiments.collate.ablation --out=runs/collate_ablation           # a student made from nothing
    python -m experiments.collate.ablation --out=runs/smollm --model=smollm2-135m-instruct \
        --rows=gsm8k@train[:2000] --validation=gsm8k@train[7000:7400] --answer_mark='####'

Arms of a seed live in one folder and share the stages that are the same: instruction tuning, the first providers, their
first rationales. What is finished is kept, and the same command goes on after an interruption, also within a stage.
docs/methods/collate.md says what is compared and what was found.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.collate.arms import ARMS, BASELINES, Majority, open_arm, spent
from experiments.collate.sums import draw_sums, write_student
from experiments.crv.arms import TrainSettings
from experiments.crv.base import Base, pretrained, quiet
from experiments.crv.questions import Questions
from smallr.core.comparison import markdown, table, write_csv
from smallr.core.errors import UserError
from smallr.core.programs import keep_programs
from smallr.core.stages import Stage, Stages, Stopped
from smallr.data.builtin import rationale_rows
from smallr.data.saving import save_rows
from smallr.evals.graders.base import Job
from smallr.evals.graders.matching import numbers
from smallr.evals.statistics import paired_difference, pass_at_1
from smallr.methods.collate.answers import pair_scores
from smallr.methods.collate.config import base as fields
from smallr.methods.collate.data import NothingLeftError, opened
from smallr.methods.collate.modes import ANSWER, RATIONALE
from smallr.methods.collate.stages import Collate
from smallr.models.scratch import Size

METRICS = {
    "correct": "right, I→R→A",
    "every": "right, all providers",
    "at_once": "right, I→A",
    "likelihood": "mean utility",
}
SPENT = {"spent trained": "tokens trained", "spent written": "tokens written"}
AGREEING = ("full", "no distinct providers", "S = 3")  # arms whose agreement of likelihood with correctness is shown


def config_of(options: argparse.Namespace, seed: int, model: str, rows: str, validation: str) -> ConfigDict:
    """Returns the config that all arms of a seed change."""
    config = fields()
    config.seed, config.model, config.indirect = seed, model, False
    config.data.rows, config.data.validation, config.data.answer_mark = rows, validation, options.answer_mark
    config.marks.answer = "\n\nResult:"  # rationales of the built-in rows may hold "Answer:"
    config.rounds = options.rounds
    training = config.training
    training.dtype, training.remat, training.rows, training.row_length = (
        options.dtype,
        "none",
        options.batch,
        options.length,
    )
    training.scored, training.examples = options.length, options.length // 16
    config.utility.row_length = 4 * options.length
    config.generation.max_tokens, config.generation.decode_slots = options.max_tokens, options.decode_slots
    config.generation.temperature = options.temperature
    config.tuning.epochs, config.tuning.learning_rate = options.tuning_epochs, options.tuning_rate
    config.provider.epochs, config.task.epochs = options.provider_epochs, options.task_epochs
    config.provider.learning_rate = config.task.learning_rate = options.rate
    config.lock()
    return config


def student(options: argparse.Namespace, out: Path) -> str:
    """Returns the model that all arms start from; one made from nothing is trained on the first call."""
    if options.model != "scratch":
        return options.model
    if options.task == "sums":
        marks = list(config_of(options, 0, "", "", "").marks.values())
        return write_student(out / "student", marks, options.layers, options.width)
    size = Size("llama", options.layers, options.width, 4, 1024)
    wanted = Base(
        size=size,
        vocabulary=640,
        questions=options.base_questions,
        equations=options.base_questions // 5,
        held_out=options.held_out,
        templates=options.templates,
        largest=options.largest,
        train=TrainSettings(0, options.base_steps, 3e-3, 12, 256),
        dtype="float32",
    )
    return pretrained(wanted, out)


def sets(options: argparse.Namespace, seed: int, out: Path) -> tuple[str, str]:
    """Returns the sources of the rows and of the validation rows; those of built-in questions are written first."""
    if options.rows:
        return options.rows, options.validation
    asked = options.asked or options.held_out
    folder = (out / f"questions-{seed}-{options.questions}-{asked}").absolute()
    if options.task == "sums":
        held_out = draw_sums("held out", options.held_out, [])
        rows, validation = draw_sums(f"collate {seed}", options.questions, held_out), held_out[:asked]
    else:
        source = Questions(options.templates, options.largest)
        held_out = source.draw("held out", options.held_out)
        rows = list(rationale_rows(source.draw(f"collate {seed}", options.questions, held_out), "rows"))
        validation = list(rationale_rows(held_out[:asked], "validation"))
    for name, found in (("rows", rows), ("validation", validation)):
        if not (folder / name).exists():
            save_rows(found, folder / name)
    return str(folder / "rows"), str(folder / "validation")


def measured(arm: Collate, name: str) -> dict[str, Any]:
    """Returns the metrics of an arm that has run: accuracies, agreement, what it has spent, the counts of its pairs."""
    if isinstance(arm, Majority):
        right = [float(each) for each in arm.correct()]
        budget = {f"spent {key}": value for key, value in dataclasses.asdict(spent(arm)).items()}
        return {"correct": float(np.mean(right)), **budget, "right": right}
    choice = arm.value(arm.choice)
    trained = [f"provider {s}" for s in range(len(choice["likelihood"]))]
    model = "M_IFT" if name == "M_IFT" else f"provider {choice['chosen']}"
    of = {each: opened(arm.value(arm.answers[each, RATIONALE]))["correct"] for each in ("M_IFT", *trained)}
    correct = of[model]
    found = {"correct": float(np.mean(correct)), "at_once": float(np.mean(at_once(arm, model)))}
    if name != "M_IFT":
        found["every"] = float(np.mean([of[each] for each in trained]))
        found["likelihood"] = choice["likelihood"][choice["chosen"]]
        found |= {f"spent {key}": value for key, value in dataclasses.asdict(spent(arm)).items()}
    for number, pairs in enumerate(arm.pairs):
        found |= {f"pairs {number}: {reason}": count for reason, count in arm.value(pairs)["counts"].items()}
    if name in AGREEING:
        held = pair_scores(opened(arm.value(arm.held_out)), [of[each] for each in trained])
        rounds = [scores for scored in arm.scored for scores in own_answers(opened(arm.value(scored)))]
        found["agreements"] = {"held-out, by the provider's answer": held, "rounds, by the rationale's number": rounds}
    return {**found, "right": [float(each) for each in correct]}


def at_once(arm: Collate, model: str) -> list[bool]:
    """Returns whether a model answers right without a rationale."""
    return opened(arm.value(arm.answers[model, ANSWER]))["correct"]


def own_answers(table: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Returns `pair_scores` of the rationales of a round; one is right if its last number is the gold answer."""
    grader, count = numbers(), len(table[0]["rationales"])
    correct = [
        [grader.grade([Job(row["rationales"][s] or "", row["answer"])])[0].correct for row in table]
        for s in range(count)
    ]
    return pair_scores(table, correct)


class Worker:
    """Runs an arm in the folder of its seed."""

    def __init__(self, options: argparse.Namespace, out: Path, model: str):
        self._options, self._out, self._model = options, out, model

    def __call__(self, stage: Stage, folder: Path, needs: list[Path]) -> dict[str, Any]:
        """Runs what is missing of an arm; returns its metrics, or why it cannot go on, such as that no pair is left."""
        del needs
        try:
            return self._run(stage, folder)
        except NothingLeftError as error:
            return {"ended": str(error)}

    def _run(self, stage: Stage, folder: Path) -> dict[str, Any]:
        name, seed = stage.settings["arm"], stage.settings["seed"]
        config = config_of(self._options, seed, self._model, *sets(self._options, seed, self._out))
        (self._out / f"seed{seed}").mkdir(exist_ok=True)
        with quiet(folder):
            arm = open_arm("full", config, self._out / f"seed{seed}")
            if name in ("M_IFT", *BASELINES):
                arm.stages.run()
            if name != "M_IFT":
                budget = spent(arm) if name in BASELINES else None
                arm = open_arm(name, config, self._out / f"seed{seed}", budget)
                arm.stages.run()
        return measured(arm, name)


def report(rows: list[dict[str, Any]], out: Path) -> str:
    """Writes runs.csv and table.md of the finished arms; returns the page."""
    ended = [[row["arm"], str(row["seed"]), row["ended"]] for row in rows if "ended" in row]
    rows = [row for row in rows if "ended" not in row]
    if not rows and not ended:
        return "nothing is finished yet"
    shown = [{key: value for key, value in row.items() if key not in ("right", "agreements")} for row in rows]
    write_csv(shown, out / "runs.csv")
    lines = []
    by_arm = {row["arm"]: [each for each in rows if each["arm"] == row["arm"]] for row in rows}
    for name, runs in by_arm.items():
        low, high = pass_at_1(np.transpose([run["right"] for run in runs]).tolist()).interval()
        against = {run["seed"]: run for run in by_arm.get("M_IFT", [])}
        both = [(against[run["seed"]]["right"], run["right"]) for run in runs if run["seed"] in against]
        cell = "–"
        if both and name != "M_IFT":
            gap = paired_difference(*(np.transpose(each).tolist() for each in zip(*both, strict=True)))
            cell = f"{gap.difference:+.3f} ({gap.low:+.3f} … {gap.high:+.3f})"
        lines.append([name, str(len(runs)), f"{low:.3f} … {high:.3f}", cell])
    page = "## Arms, over seeds\n\n" + table(shown, ["arm"], METRICS)
    page += "\n## I→R→A, over questions\n\n" + markdown(["arm", "seeds", "right, 95 %", "against M_IFT, paired"], lines)
    page += "\n## What was spent behind instruction tuning\n\n" + table(shown, ["arm"], SPENT, digits=0)
    page += "\n## Does likelihood agree with correctness?\n\n" + agreements(by_arm)
    if ended:
        page += "\n## Arms that could not go on\n\n" + markdown(["arm", "seed", "why"], ended)
    (out / "table.md").write_text(page)
    return page


def agreements(by_arm: Mapping[str, list[dict[str, Any]]]) -> str:
    """Returns a table of how often the right one of two rationales has the higher utility, over seeds and questions."""
    lines = []
    for name in AGREEING:
        for kind in ("held-out, by the provider's answer", "rounds, by the rationale's number"):
            scores = [each for row in by_arm.get(name, []) for each in row["agreements"][kind]]
            if scores:
                low, high = pass_at_1(scores).interval()
                share = pass_at_1(scores).value
                lines.append([name, kind, str(sum(map(len, scores))), f"{share:.3f} ({low:.3f} … {high:.3f})"])
    return markdown(["arm", "rationales", "pairs", "agreement, 95 %"], lines)


def flags() -> argparse.ArgumentParser:
    """Names the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, meaning in (
        ("out", "runs/collate_ablation", "folder of the grid"),
        ("model", "scratch", "any model that training takes; scratch: a small one, pretrained first"),
        (
            "task",
            "stories",
            "stories: questions of the built-in generator | sums: of two numbers, for a student of 0.1 M",
        ),
        ("arms", ",".join(ARMS), "of these, separated by commas"),
        ("seeds", 3, "runs of each arm: other questions, other order"),
        ("rows", "", "SOURCE@SPLIT of rows; empty: built-in arithmetic"),
        ("validation", "", "SOURCE@SPLIT of held-out rows"),
        ("answer_mark", "", "what divides rationale and answer in the column answer"),
        ("questions", 300, "built-in training questions"),
        ("held_out", 200, "built-in held-out questions"),
        ("asked", 0, "held-out questions that are answered; 0: all"),
        ("templates", "change,ages,stickers,recipe", "of built-in questions"),
        ("largest", 100, "largest number in a built-in question or its solution"),
        ("rounds", 1, "of COLLATE, and of the arms beside it; one arm has two"),
        ("dtype", "float32", "float32 | bfloat16"),
        ("batch", 8, "packed rows a step"),
        ("length", 256, "tokens a row"),
        ("max_tokens", 128, "of a rationale"),
        ("temperature", 0.0, "of rationales; samples differ where greedy ones are all right"),
        ("decode_slots", 50, "rationales written at once"),
        ("tuning_epochs", 2, "of instruction tuning"),
        ("tuning_rate", 1e-3, "of instruction tuning and SFT"),
        ("provider_epochs", 1, "of the providers' DPO"),
        ("task_epochs", 1, "of the rounds' DPO"),
        ("rate", 2e-5, "of DPO"),
        ("layers", 3, "of the student made from nothing"),
        ("width", 128, "of the same"),
        ("base_questions", 8000, "questions of its pretraining"),
        ("base_steps", 1200, "steps of its pretraining"),
    ):
        parser.add_argument(f"--{name}", default=default, type=type(default), help=f"{meaning} (default: {default})")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Runs what is missing, then writes the tables."""
    options = flags().parse_args(argv)
    options.templates = tuple(filter(None, options.templates.split(",")))
    keep_programs()
    out = Path(options.out)
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "arms", "seeds")}
    try:
        names = options.arms.split(",")
        grid = Stages(out)
        runs = [
            Stage(f"{arm.replace(' ', '_')}-s{seed}", {"arm": arm, "seed": seed, "options": settings})
            for seed in range(options.seeds)
            for arm in names
        ]
        model = student(options, out)
        grid.run(runs, Worker(options, out, model))
        print(report(grid.rows(runs), out))
    except Stopped:
        print("stopped; the same command goes on from here")
    except UserError as error:
        sys.exit(f"smallr: {error}")


if __name__ == "__main__":
    main()
