"""Compares answering first, thinking first and deciding: accuracy, tokens and time; amplified losses; slips in rationales.

    python -m experiments.adaptive.answer_first --data=FOLDER --out=runs/answer_first            # coin flips, from scratch
    python -m experiments.adaptive.answer_first --data=FOLDER --out=runs/svamp --model=smollm2-135m-instruct --tasks=palm_svamp \
        --steps=60 --rows=4 --learning_rate=2e-5 --dtype=bfloat16 --seeds=1 --shares=0,0.5

FOLDER holds the published files that `experiments.adaptive.teacher_rows` reads. Finished runs are kept; the same command goes
on after an interruption, also within a run. `<out>/<digest>/` gets report.md, runs.csv and plots.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from jax.sharding import Mesh

from experiments.adaptive import amplifier, report
from experiments.adaptive import modules as adaptive
from experiments.adaptive.corruption import corrupt
from experiments.adaptive.small_tasks import MORE
from experiments.adaptive.students import Asker, Recipe, config_of, train
from experiments.adaptive.teacher_rows import Row, more, read
from smallr.core.cache import cache_dir
from smallr.core.comparison import say_if_no_plots
from smallr.core.sharding import make_mesh
from smallr.core.stages import Stage, Stages, Stopped
from smallr.models.loading import open_model
from smallr.models.scratch import Size, train_tokenizer, write_scratch
from smallr.training.trainer import Trainer

SCRATCH = "scratch"
STAGES = (0.25, 1.0)  # shares of the steps after which the amplifier claim is looked at
# What a module is trained on. Its student is not: of what it has learned it is certain, and few labels would be `think`.
HELD_BACK = 500  # rows, at most a quarter of all
LONGER = "@"  # coin_flip@8: questions of the same form about 8 people, which are not in the published file


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Holds all that the results depend on, besides the arms.

    Attributes:
      tasks: name of a task (`name@people`: longer questions of its form) -> rows to train on; 0: those of the file. More than
        the file has are made in the same form.
      test: most test questions of a task.
      recipe: of the students; its model is a name, or `scratch` with `size` and `vocabulary`.
      size: layers, width, heads and vocabulary of a student from scratch.
      shares: of steps with a slip.
      seeds: number of runs of each arm; they differ in weights (from scratch), in the order of rows and in the slips.
      examples: whose gradients are looked at.
      adaptive: soft tokens and steps of the modules that decide; empty: no such arms.
      margin: nats a token by which thinking has to be better for a router's label to be `think`.
    """

    tasks: dict[str, int]
    test: int
    recipe: Recipe
    size: tuple[int, int, int, int]
    shares: tuple[float, ...]
    seeds: int
    examples: int
    adaptive: tuple[int, ...] = ()
    margin: float = 0.0

    def settings(self) -> dict[str, Any]:
        """Returns what a student depends on, whatever the arms and the number of seeds."""
        found = dataclasses.asdict(self)
        for name in ("shares", "seeds", "adaptive", "margin"):
            del found[name]
        return found | {"size": list(self.size)}


def rows_of(experiment: Experiment, data: Path) -> tuple[list[Row], list[Row]]:
    """Reads training rows, mixed, and test rows of all tasks; groups are told apart over all tasks."""
    train_rows: list[Row] = []
    test_rows: list[Row] = []
    for name, wanted in experiment.tasks.items():
        task, _, people = name.partition(LONGER)
        rows = read(task, data)
        if people:
            own = more(task, rows.train, wanted, 0, people=int(people))
            held_out = more(task, rows.test, experiment.test, 1, own, people=int(people))
        else:
            own, held_out = rows.train[: wanted or None], rows.test
            if wanted > len(own) and task in MORE:
                own = own + more(task, own, wanted - len(own), 0, [*own, *held_out])
        train_rows += [dataclasses.replace(row, task=name) for row in own]
        test_rows += [dataclasses.replace(row, task=name) for row in held_out[: experiment.test]]
    random.Random("mixed").shuffle(train_rows)
    numbers: dict[tuple[str, int], int] = {}
    test_rows = [
        dataclasses.replace(row, group=numbers.setdefault((row.task, row.group), len(numbers))) for row in test_rows
    ]
    return train_rows, test_rows


def runs_of(experiment: Experiment) -> list[Stage]:
    """Returns students of each order and share of slips; thinking first needs answering first, which tells what is hard."""
    runs = []
    for seed in range(experiment.seeds):
        for share in experiment.shares:
            common = {"experiment": experiment.settings(), "share": share, "seed": seed}
            post = Stage(f"post-{share:g}-{seed}", {"arm": "post", **common})
            runs += [post, Stage(f"pre-{share:g}-{seed}", {"arm": "pre", **common}, needs=(post,))]
            if experiment.adaptive and not share:
                common |= {"held_back": HELD_BACK}
                both = Stage(f"both-{seed}", {"arm": "both", **common})
                soft = {**common, "adaptive": list(experiment.adaptive)}
                runs.append(both)
                router = {"arm": "router", **soft} | ({"margin": experiment.margin} if experiment.margin else {})
                runs += [Stage(f"router-{seed}", router, needs=(both,))]
                runs += [Stage(f"prompts-{seed}", {"arm": "prompts", **soft}, needs=(both,))]
    return runs


ORDERS = {"pre": "rationale_first", "post": "answer_first"}


class Laboratory:
    """Does runs: keeps rows, models and the compiled sampler between them.

    Args:
      experiment: what is compared.
      data: folder of published files.
      out: folder of models from scratch.
      mesh: the current one.
    """

    def __init__(self, experiment: Experiment, data: Path, out: Path, mesh: Mesh):
        self.experiment, self.mesh, self._out = experiment, mesh, out
        self.train_rows, self.test_rows = rows_of(experiment, data)
        self._asker: Asker | None = None

    def __call__(self, run: Stage, folder: Path, needs: Sequence[Path]) -> dict[str, float]:
        """Runs one student: trains it, measures gradients, asks the test questions."""
        settings = run.settings
        recipe = dataclasses.replace(self.experiment.recipe, model=self.model(settings["seed"]))
        if settings["arm"] in ORDERS:
            return self._one_order(run, folder, needs, recipe)
        rows_file = folder / "rows.jsonl"
        held_back = min(settings["held_back"], len(self.train_rows) // 4)
        if settings["arm"] == "both":
            config = adaptive.student_config(recipe, settings["seed"], rows_file)
            adaptive.fit_module(config, self.train_rows[held_back:], folder)
            return adaptive.ask_modes(folder, recipe, self.test_rows)
        student, (length, steps) = str(needs[0]), self.experiment.adaptive
        common = (recipe, settings["seed"], rows_file, student, length, steps)
        if settings["arm"] == "router":
            config = adaptive.router_config(*common, margin=self.experiment.margin)
        else:
            config = adaptive.prompts_config(*common)
        adaptive.fit_module(config, self.train_rows[:held_back], folder)
        return adaptive.ask_module(folder, recipe, self.test_rows)

    def _one_order(self, run: Stage, folder: Path, needs: Sequence[Path], recipe: Recipe) -> dict[str, float]:
        settings, order = run.settings, ORDERS[run.settings["arm"]]
        rows = corrupt(self.train_rows, settings["share"], settings["seed"])
        config = config_of(recipe, order, settings["seed"], folder / "rows.jsonl")
        looks = {} if settings["share"] else {stage: self._look(stage, folder, needs) for stage in STAGES}
        decoder = jax.block_until_ready(train(config, rows, folder, looks).decoder())
        self._asker = self._asker or Asker(decoder, recipe, open_model(recipe.model).tokenizer(), self.mesh)
        written = self._asker(decoder, self.test_rows, order)
        written.save(folder / "written.jsonl")
        metrics = report.metrics_of(written, self.test_rows)
        if settings["arm"] == "post" and not settings["share"]:
            whole = self._asker(decoder, self.test_rows, order, early_stop=False)
            metrics |= report.early_stop(written, whole)
        for stage in STAGES if not settings["share"] else ():
            found = json.loads((folder / f"amplifier-{stage:g}.json").read_text())
            metrics |= {f"{name}@{stage:g}": value for name, value in found.items()}
        return metrics

    def _look(self, stage: float, folder: Path, needs: Sequence[Path]):
        """Measures once what belongs to a stage; thinking first sorts samples by what its answering-first twin says."""

        def look(trainer: Trainer) -> None:
            path = folder / f"amplifier-{stage:g}.json"
            if path.exists():
                return
            values = amplifier.measure(trainer, self.experiment.examples)
            hardness = values["nll_answer"]
            if needs:
                hardness = np.load(needs[0] / f"hardness-{stage:g}.npy")
            np.save(folder / f"hardness-{stage:g}.npy", hardness)
            path.write_text(json.dumps(amplifier.summary(values, hardness)))

        return look

    def model(self, seed: int) -> str:
        """Returns the student's start; from scratch each seed has its own weights."""
        recipe = self.experiment.recipe
        if recipe.model != SCRATCH:
            return recipe.model
        folder = self._out / f"{SCRATCH}-{seed}"
        if not folder.exists():
            layers, width, heads, vocabulary = self.experiment.size
            texts = (text for row in self.train_rows for text in (row.question, row.rationale, row.answer))
            size = Size("gpt2", layers, width, heads, recipe.row_length * 2)
            write_scratch(folder, train_tokenizer(texts, vocabulary), size, seed)
        return str(folder)


def main(argv: list[str]) -> None:
    """Does what is missing, then writes the report."""
    say_if_no_plots()
    del argv
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_compilation_cache_dir", str(cache_dir("compiled")))
    experiment = from_flags()
    digest = hashlib.sha256(json.dumps(experiment.settings(), sort_keys=True).encode()).hexdigest()[:8]
    out = Path(OUT.value) / digest  # other settings, other results
    out.mkdir(parents=True, exist_ok=True)
    runs, grid, mesh = runs_of(experiment), Stages(out), make_mesh(1, -1, 1)
    with jax.set_mesh(mesh):
        laboratory = Laboratory(experiment, Path(DATA.value), out, mesh)
        try:
            grid.run(runs, laboratory)
        except Stopped:
            print("stopped; the same command goes on from here")
            return
    text = report.write(grid, runs, laboratory.test_rows, out)
    print(f"{text}\n{out}/report.md")


def from_flags() -> Experiment:
    """Returns the experiment that the command line asks for."""
    tasks = {name: int(count or 0) for name, _, count in (each.partition(":") for each in TASKS.value)}
    scratch = MODEL.value == SCRATCH
    recipe = Recipe(
        MODEL.value, not scratch, STEPS.value, ROWS.value, ROW_LENGTH.value, RATE.value, DTYPE.value, MAX_TOKENS.value
    )
    size = (LAYERS.value, WIDTH.value, HEADS.value, VOCABULARY.value) if scratch else (0, 0, 0, 0)
    shares = tuple(map(float, SHARES.value))
    modules = (SOFT.value, MODULE_STEPS.value) if MODULE_STEPS.value else ()
    return Experiment(tasks, TEST.value, recipe, size, shares, SEEDS.value, EXAMPLES.value, modules, MARGIN.value)


if __name__ == "__main__":
    DATA = flags.DEFINE_string("data", None, "Folder of the published files", required=True)
    OUT = flags.DEFINE_string("out", "runs/answer_first", "Folder of results")
    TASKS = flags.DEFINE_list("tasks", ["coin_flip:1500", "coin_flip@8:1500"], "TASK[@PEOPLE][:TRAINING ROWS]")
    MODEL = flags.DEFINE_string("model", SCRATCH, "Any model that training takes, or `scratch`")
    LAYERS = flags.DEFINE_integer("layers", 3, "From scratch: layers")
    WIDTH = flags.DEFINE_integer("width", 128, "From scratch: width")
    HEADS = flags.DEFINE_integer("heads", 4, "From scratch: heads")
    VOCABULARY = flags.DEFINE_integer("vocabulary", 1024, "From scratch: entries of the vocabulary")
    STEPS = flags.DEFINE_integer("steps", 400, "Steps of each run")
    ROWS = flags.DEFINE_integer("rows", 8, "Packed rows a step")
    ROW_LENGTH = flags.DEFINE_integer("row_length", 256, "Tokens a row")
    RATE = flags.DEFINE_float("learning_rate", 3e-3, "Peak")
    DTYPE = flags.DEFINE_string("dtype", "float32", "float32 | bfloat16")
    MAX_TOKENS = flags.DEFINE_integer("max_tokens", 128, "Of an answer with its rationale")
    TEST = flags.DEFINE_integer("test", 150, "Most test questions of a task")
    SHARES = flags.DEFINE_list("shares", ["0", "0.1", "0.3", "0.5"], "Shares of the rationales' steps with a slip")
    SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each arm")
    EXAMPLES = flags.DEFINE_integer("examples", 96, "Training samples whose gradients are looked at")
    SOFT = flags.DEFINE_integer("soft", 10, "Soft tokens of the modules that decide")
    MODULE_STEPS = flags.DEFINE_integer("module_steps", 60, "Their steps; 0: no such arms")
    MARGIN = flags.DEFINE_float("margin", 0.0, "Nats a token by which thinking has to be better for a label `think`")
    app.run(main)
