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
import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.collate.arms import ARMS, Majority, open_arm
from experiments.crv.arms import TrainSettings
from experiments.crv.base import Base
from experiments.crv.questions import Questions
from smallr.core.comparison import markdown, table, write_csv
from smallr.core.errors import UserError
from smallr.core.programs import keep_programs
from smallr.core.stages import Stage, Stages, Stopped
from smallr.data.builtin import rationale_rows
from smallr.data.saving import save_rows
from smallr.evals.statistics import paired_difference, pass_at_1
from smallr.methods.collate.config import base as fields
from smallr.methods.collate.data import opened
from smallr.methods.collate.modes import ANSWER, RATIONALE
from smallr.methods.collate.stages import Collate
from smallr.models.scratch import Size

METRICS = {"correct": "right, I→R→A", "at_once": "right, I→A", "likelihood": "mean utility", "agreement": "agreement"}


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
    config.tuning.epochs, config.tuning.learning_rate = options.tuning_epochs, options.tuning_rate
    config.provider.epochs, config.task.epochs = options.provider_epochs, options.task_epochs
    config.provider.learning_rate = config.task.learning_rate = options.rate
    config.lock()
    return config


def student(options: argparse.Namespace, out: Path) -> str:
    """Returns the model that all arms start from; one made from nothing is trained on the first call."""
    if options.model != "scratch":
        return options.model

    def pretrain(stage: Stage, folder: Path, needs: list[Path]) -> dict[str, float]:
        from configs.sft import get_config
        from smallr.training.trainer import Trainer

        untrained, rows = wanted.write(folder)
        config, how = get_config(), wanted.train
        config.model, config.compute.dtype, config.compute.remat = str(untrained), wanted.dtype, "none"
        config.data.train, config.data.train_split, config.data.eval = str(rows), "train", ""
        config.batch.rows, config.batch.row_length = how.rows, how.row_length
        config.optimizer.learning_rate, config.epochs, config.steps = how.rate, how.epochs, how.steps
        config.log_every = 10
        with quiet(folder), Trainer(config, folder / "run") as trainer:
            if not trainer.fit()["finished"]:
                raise Stopped("stopped; the same command goes on from here")
        return {}

    how = TrainSettings(0, options.base_steps, 3e-3, 12, 256)
    size = Size("llama", options.layers, options.width, 4, 1024)
    questions = options.base_questions
    wanted = Base(
        size, 640, questions, questions // 5, options.held_out, options.templates, options.largest, how, "float32"
    )
    grid = Stages(out / "base")
    grid.run([wanted.run()], pretrain)
    return str((grid.folder(wanted.run()) / "run").absolute())


def sets(options: argparse.Namespace, seed: int, out: Path) -> tuple[str, str]:
    """Returns the sources of the rows and of the validation rows; those of built-in questions are written first."""
    if options.rows:
        return options.rows, options.validation
    source = Questions(options.templates, options.largest)
    held_out = source.draw("held out", options.held_out)
    folder = (out / f"questions-{seed}-{options.questions}-{options.held_out}").absolute()
    for name, questions in (
        ("rows", source.draw(f"collate {seed}", options.questions, held_out)),
        ("validation", held_out),
    ):
        if not (folder / name).exists():
            save_rows(list(rationale_rows(questions, name)), folder / name)
    return str(folder / "rows"), str(folder / "validation")


@contextlib.contextmanager
def quiet(folder: Path):
    """Prints and progress to `log.txt`."""
    with (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


def measured(arm: Collate, name: str) -> dict[str, Any]:
    """Returns the metrics of an arm that has run: those of the chosen provider, and the counts of the last pairs."""
    choice = arm.value(arm.choice)
    model = "M_IFT" if name == "M_IFT" else f"provider {choice['chosen']}"
    correct = (
        arm.correct() if isinstance(arm, Majority) else opened(arm.value(arm.answers[model, RATIONALE]))["correct"]
    )
    found, agreement = {"correct": float(np.mean(correct))}, choice["agreement"]
    found["at_once"] = float(np.mean(opened(arm.value(arm.answers[model, ANSWER]))["correct"]))
    found["likelihood"] = choice["likelihood"][choice["chosen"]] if name not in ("M_IFT", "majority") else None
    found["agreement"] = agreement["agree"] / agreement["pairs"] if agreement["pairs"] else None
    found["auc"] = agreement["auc"]
    for number, pairs in enumerate(arm.pairs):
        found |= {f"pairs {number}: {reason}": count for reason, count in arm.value(pairs)["counts"].items()}
    return {**found, "right": [float(each) for each in correct]}


class Worker:
    """Runs an arm in the folder of its seed."""

    def __init__(self, options: argparse.Namespace, out: Path, model: str):
        self._options, self._out, self._model = options, out, model

    def __call__(self, stage: Stage, folder: Path, needs: list[Path]) -> dict[str, Any]:
        """Runs what is missing of an arm; returns its metrics."""
        del needs
        name, seed = stage.settings["arm"], stage.settings["seed"]
        config = config_of(self._options, seed, self._model, *sets(self._options, seed, self._out))
        (self._out / f"seed{seed}").mkdir(exist_ok=True)
        with quiet(folder):
            arm = open_arm("full" if name == "M_IFT" else name, config, self._out / f"seed{seed}")
            arm.stages.run()
        return measured(arm, name)


def report(rows: list[dict[str, Any]], out: Path) -> str:
    """Writes runs.csv and table.md of the finished arms; returns the page."""
    if not rows:
        return "nothing is finished yet"
    shown = [{key: value for key, value in row.items() if key != "right"} for row in rows]
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
    (out / "table.md").write_text(page)
    return page


def flags() -> argparse.ArgumentParser:
    """Names the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, meaning in (
        ("out", "runs/collate_ablation", "folder of the grid"),
        ("model", "scratch", "any model that training takes; scratch: a small one, pretrained first"),
        ("arms", ",".join(ARMS), "of these, separated by commas"),
        ("seeds", 3, "runs of each arm: other questions, other order"),
        ("rows", "", "SOURCE@SPLIT of rows; empty: built-in arithmetic"),
        ("validation", "", "SOURCE@SPLIT of held-out rows"),
        ("answer_mark", "", "what divides rationale and answer in the column answer"),
        ("questions", 300, "built-in training questions"),
        ("held_out", 200, "built-in held-out questions"),
        ("templates", "change,ages,stickers,recipe", "of built-in questions"),
        ("largest", 100, "largest number in a built-in question or its solution"),
        ("rounds", 2, "of COLLATE, and of the arms beside it"),
        ("dtype", "float32", "float32 | bfloat16"),
        ("batch", 8, "packed rows a step"),
        ("length", 256, "tokens a row"),
        ("max_tokens", 128, "of a rationale"),
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
