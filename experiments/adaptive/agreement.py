"""Measures whether rationale and answer agree, in both orders, for students made from nothing.

    python -m experiments.adaptive.agreement --data=FOLDER --out=runs/agreement     # coin flips, as `answer_first` has them
    python -m experiments.adaptive.agreement --out=runs/agreement [--model=NAME]    # built-in arithmetic

A student is trained on `question ### answer --> rationale` and another on `question ### rationale --> answer`, from the same
weights and rows. Rationales are steps alone: what states the answer is cut off. Both answer the same held-out questions, and
`smallr.evals.trust.agreement` reads what each rationale comes to, by rule and by the student, which is shown `### rationale -->`
and no question. What is finished is kept. docs/methods/trust_agreement.md has a table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict

from experiments.adaptive import answer_first
from experiments.adaptive.students import SEPARATOR, Recipe, config_of, train
from experiments.adaptive.teacher_rows import Row
from experiments.crv.questions import Questions
from smallr.core.cache import cache_dir
from smallr.core.comparison import markdown
from smallr.core.errors import UserError
from smallr.core.journal import Journal
from smallr.core.sharding import make_mesh
from smallr.core.stages import Stage, Stages, Stopped
from smallr.data.builtin.rationales import Rationales
from smallr.data.orders import ORDERS
from smallr.evals.benchmarks.base import Question
from smallr.evals.graders.base import Grader, Job
from smallr.evals.graders.matching import Match, numbers
from smallr.evals.questions import Item
from smallr.evals.running import Asked, run_generation
from smallr.evals.trust import agreement
from smallr.evals.trust.agreement import AGREES, DISAGREES, READERS
from smallr.evals.trust.parts import split
from smallr.evals.trust.reading import add_agreement
from smallr.language.base import LanguageModel
from smallr.language.opening import open_language_model
from smallr.models.scratch import Size, train_tokenizer, write_scratch
from smallr.sampling.requests import SamplingParams

SCRATCH = "scratch"
READING = "### {rationale} " + SEPARATOR


def side_up(text: str) -> str | None:
    """Returns what the last word on a coin comes to: heads is up still, tails is not."""
    found = re.findall(r"\b(heads|tails|yes|no)\b", text.lower())
    return {"heads": "yes", "tails": "no"}.get(found[-1], found[-1]) if found else None


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Holds all that the figures depend on, besides order and seed.

    Attributes:
      recipe: of the students.
      tasks: coin flips, as `answer_first.Experiment` takes them; empty: built-in arithmetic.
      data: folder of the published files, for coin flips.
      templates, largest, train: of arithmetic, see `Questions`; the number of training questions.
      test: most held-out questions of a task.
      size: layers, width and vocabulary of a student from scratch.
    """

    recipe: Recipe
    tasks: dict[str, int]
    data: str
    templates: tuple[str, ...]
    largest: int
    train: int
    test: int
    size: tuple[int, int, int]

    def rows(self, seed: int) -> tuple[list[Row], list[Row]]:
        """Returns training and held-out rows; the held-out ones are the same for all seeds."""
        if self.tasks:
            wanted = answer_first.Experiment(self.tasks, self.test, self.recipe, (0, 0, 0, 0), (0.0,), 1, 1)
            return answer_first.rows_of(wanted, Path(self.data))
        source = Questions(self.templates, self.largest)
        held_out = source.draw("agreement held out", self.test)
        return _arithmetic(source.draw(f"agreement {seed}", self.train, held_out)), _arithmetic(held_out)

    def grader(self) -> Grader:
        """Returns what says which answer a text comes to."""
        return Match(side_up, str) if self.tasks else numbers()

    def start(self, rows: Sequence[Row], folder: Path, seed: int) -> str:
        """Returns the weights that a student starts from."""
        if self.recipe.model != SCRATCH:
            return self.recipe.model
        if not (folder / "config.json").exists():
            layers, width, vocabulary = self.size
            texts = (text for row in rows for text in (row.question, row.rationale, row.answer))
            size = Size("llama", layers, width, 4, 512)
            write_scratch(folder, train_tokenizer(texts, vocabulary), size, seed)
        return str(folder)

    def runs(self, seeds: int) -> list[Stage]:
        """Returns a student of each order and seed."""
        settings = json.loads(json.dumps(dataclasses.asdict(self)))
        del settings["data"]
        return [
            Stage(f"{order}-{seed}", {"order": order, "seed": seed, **settings})
            for seed in range(seeds)
            for order in ORDERS
        ]


def _arithmetic(drawn: Sequence[Rationales]) -> list[Row]:
    """Returns rows of built-in questions; of a rationale the steps alone."""
    steps = [split(each.fitted, "rationale_first").rationale for each in drawn]
    return [
        Row(each.problem.question, text, str(each.answer), "arithmetic", number)
        for number, (each, text) in enumerate(zip(drawn, steps, strict=True))
    ]


def measure(
    model: LanguageModel, rows: Sequence[Row], order: str, max_tokens: int, grader: Grader, journal: Journal
) -> dict[str, dict[str, Any]]:
    """Asks a student, and returns the figures of agreement by reader."""
    items = [Item(str(number), {}, Question(f"{row.question} ###", row.answer)) for number, row in enumerate(rows)]
    asked = Asked(SamplingParams(max_tokens=max_tokens), chat=False)
    records = run_generation(items, model, asked, grader, journal, lambda text: split(text, order, SEPARATOR))
    found = {}
    for reader in READERS:
        fields = {"order": order, "separator": SEPARATOR, "reader": reader, "prompt": READING, "max_tokens": 16}
        add_agreement(records, {item.id: item for item in items}, ConfigDict(fields), grader, model, asked, journal)
        found[reader] = agreement.report(records, order, reader)
    right = sum(record["correct"] for record in records) / len(records)
    texts = [split(record["output"], order, SEPARATOR).rationale for record in records]
    led = grader.grade([Job(text, row.answer) for text, row in zip(texts, rows, strict=True)])
    more = {"right": right, "right_by_rationale": sum(verdict.correct for verdict in led) / len(led)}
    return {reader: figures | more for reader, figures in found.items()}


class Worker:
    """Trains and asks one student."""

    def __init__(self, experiment: Experiment):
        self._experiment = experiment

    def __call__(self, run: Stage, folder: Path, needs: Sequence[Path]) -> dict[str, Any]:
        """Returns its figures, by reader."""
        del needs
        experiment, order, seed = self._experiment, run.settings["order"], run.settings["seed"]
        training, held_out = experiment.rows(seed)
        start = experiment.start(training, folder / "untrained", seed)
        recipe = dataclasses.replace(experiment.recipe, model=start)
        with jax.set_mesh(make_mesh(1, -1, 1)):
            train(config_of(recipe, order, seed, folder / "rows.jsonl"), training, folder)
        opened = open_language_model(str(folder), cache=False, dtype=recipe.dtype, decode_slots=recipe.decode_slots)
        with contextlib.closing(opened):
            journal = Journal(folder / "answers.jsonl", ("samples",))
            return measure(opened, held_out, order, recipe.max_tokens, experiment.grader(), journal)


def table(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Returns a line for each student and reader."""
    shown = agreement.shown
    unknown = {"value": None}
    lines = [
        [
            name,
            reader,
            f"{figures['right']:.3f}",
            f"{figures['right_by_rationale']:.3f}",
            "{} of {}".format(
                sum(figures["counts"][state] for state in (AGREES, DISAGREES)), sum(figures["counts"].values())
            ),
            shown(figures["rate"]),
            shown(figures["accuracy"].get(AGREES, unknown)),
            shown(figures["accuracy"].get(DISAGREES, unknown)),
            *(shown(figures["errors"][key]) for key in ("precision", "recall", "auroc")),
        ]
        for name, by_reader in found.items()
        for reader, figures in by_reader.items()
    ]
    headers = [
        "student",
        "read by",
        "right",
        "its rationale's answer right",
        "compared",
        "agreement",
        "right where they agree",
        "right where they do not",
    ]
    return markdown([*headers, "precision", "recall", "AUROC"], lines)


def main(argv: list[str]) -> None:
    """Runs what is missing, then prints the table."""
    del argv
    logging.set_verbosity(logging.WARNING)
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir("compiled")))
    recipe = Recipe(
        MODEL.value, False, STEPS.value, 8, 256, RATE.value, DTYPE.value, max_tokens=MAX_TOKENS.value, decode_slots=50
    )
    size = (LAYERS.value, WIDTH.value, VOCABULARY.value)
    tasks = {name: int(count) for name, _, count in (each.partition(":") for each in TASKS.value)} if DATA.value else {}
    wanted = Experiment(
        recipe, tasks, DATA.value, tuple(TEMPLATES.value), LARGEST.value, QUESTIONS.value, HELD_OUT.value, size
    )
    out = Path(OUT.value)
    runs, grid = wanted.runs(SEEDS.value), Stages(out)
    try:
        grid.run(runs, Worker(wanted))
    except Stopped:
        print("stopped; the same command goes on from here")
        return
    except UserError as error:
        sys.exit(f"smallr: {error}")
    page = table({run.name: grid.value(run) for run in runs})
    (out / "table.md").write_text(page)
    print(page)


if __name__ == "__main__":  # flags are global: two command lines cannot be imported together otherwise
    OUT = flags.DEFINE_string("out", "runs/agreement", "Folder of the grid")
    DATA = flags.DEFINE_string("data", "", "Folder of the published files; empty: built-in arithmetic")
    TASKS = flags.DEFINE_list("tasks", ["coin_flip@2:2500", "coin_flip@3:2500", "coin_flip:2500"], "TASK[@PEOPLE]:ROWS")
    MAX_TOKENS = flags.DEFINE_integer("max_tokens", 128, "Of an answer with its rationale")
    MODEL = flags.DEFINE_string("model", SCRATCH, "Any model that training takes, or `scratch`")
    SEEDS = flags.DEFINE_integer("seeds", 1, "Students of each order", lower_bound=1)
    TEMPLATES = flags.DEFINE_list("templates", ["change", "ages", "stickers", "recipe"], "Of the questions; empty: all")
    LARGEST = flags.DEFINE_integer("largest", 100, "Largest number in a question or its solution")
    QUESTIONS = flags.DEFINE_integer("questions", 1500, "Training questions", lower_bound=10)
    HELD_OUT = flags.DEFINE_integer("held_out", 150, "Held-out questions of a task", lower_bound=10)
    STEPS = flags.DEFINE_integer("steps", 500, "Steps of training", lower_bound=1)
    RATE = flags.DEFINE_float("rate", 3e-3, "Peak of the learning rate")
    DTYPE = flags.DEFINE_string("dtype", "bfloat16", "float32 | bfloat16")
    VOCABULARY = flags.DEFINE_integer("vocabulary", 2048, "From scratch: entries of the vocabulary")
    LAYERS = flags.DEFINE_integer("layers", 2, "From scratch: layers")
    WIDTH = flags.DEFINE_integer("width", 128, "From scratch: width")
    app.run(main)
