"""Compares every objective on the same pairs from the same start: one table, one plot.

    python -m experiments.objectives --out=runs/objectives                       # the built-in pairs, a tiny model
    python -m experiments.objectives --out=runs/objectives --model=smollm2-135m-instruct --steps=50
    python -m experiments.objectives --out=runs/gsm8k --data=FOLDER              # splits train and test of pairs

Runs that are finished are kept in `<out>/results.jsonl`; the same command goes on after an interruption, also within a
run. All runs are judged in one way: log-ratios to the starting model on held-out pairs, whatever the loss.
`<out>/table.md`, `table.csv` and `plot.png` are made anew each time.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from smallr.config import finish, preference, unpaired
from smallr.core.cache import cache_dir
from smallr.core.comparison import can_plot, say_if_no_plots
from smallr.core.sharding import make_mesh
from smallr.losses.preference import LOSSES, RECIPES
from smallr.models.loading import load_decoder, open_model
from smallr.training.cached_scores import cached_columns
from smallr.training.digest import tree_digest
from smallr.training.evaluation import collect
from smallr.training.objective import Preference
from smallr.training.policy import ModelFunctions
from smallr.training.splits import load_split
from smallr.training.step import Evaluation
from smallr.training.trainer import Trainer

METRICS = {
    "accuracy": "share of held-out pairs with a positive log-ratio margin",
    "per_token_accuracy": "share whose chosen completion has the higher log-prob per token",
    "log_ratio_margin": "log-ratio of chosen minus that of rejected, nats",
    "kl": "mean log ref - log pi, nats a completion",
    "length_drift": "slope of log pi - log ref over length, nats a token",
    "seconds_per_step": "median time of a step, s",
}


def objectives() -> list[str]:
    """Returns the names asked for: losses, published mixes, a beta per gap, KTO."""
    return OBJECTIVES.value or [*LOSSES, *(name for name in RECIPES if name != "dpo"), "cogpo", "kto"]


def config_of(name: str, seed: int) -> ConfigDict:
    """Returns the run of one objective; all others differ in `config.objective` (and KTO in its rows) only."""
    if name == "kto":
        config = unpaired()
    elif name == "cogpo":
        config = preference("sigmoid", beta={"small": 0.1, "medium": 0.2, "large": 0.5})
    else:
        config = preference(name, beta=2.0 if name == "simpo" else None)
    config.seed, config.model = seed, MODEL.value
    config.compute.dtype = DTYPE.value
    config.data.train, config.data.train_split = DATA.value, TRAIN.value
    config.data.eval, config.data.eval_split = "", TEST.value
    config.batch.rows, config.batch.row_length = ROWS.value, ROW_LENGTH.value
    config.optimizer.learning_rate = RATE.value
    config.epochs, config.steps = 0, STEPS.value
    config.checkpoint.every = 100
    return finish(config, None)


Judge = Callable[[Trainer], dict[str, float]]


def make_judge(mesh: Mesh) -> Judge:
    """Makes the metrics of trained models on the held-out pairs, relative to the model that every run starts from."""
    objective = Preference("sigmoid", 0.1, "cached")
    config = config_of("sigmoid", 0)
    with config.unlocked():
        config.data.eval = DATA.value
    source = open_model(config.model)
    graphdef, params = nnx.split(load_decoder(source, mesh, dtype=config.compute.dtype))
    evaluation = Evaluation(ModelFunctions(graphdef), objective, mesh, chunk=config.compute.logp_chunk)
    heldout = load_split(config, source.tokenizer(), objective, "eval")
    heldout = cached_columns(heldout, evaluation, params, tree_digest(params), mesh, lambda: params)

    def judge(trainer: Trainer) -> dict[str, float]:
        batches = heldout.one_pass(mesh)
        values = collect(lambda batch: evaluation(trainer.params, batch), batches, len(heldout.examples))
        return objective.summariser()(values, heldout.static_columns())

    return judge


def run(name: str, seed: int, judge: Judge, out: Path) -> dict[str, float] | None:
    """Trains and judges one run; None if a signal stopped it."""
    workdir = out / f"{name}-{seed}"
    with Trainer(config_of(name, seed), workdir) as trainer:
        trainer.fit()
        if trainer.stopped:
            return None
        found = {key: value for key, value in judge(trainer).items() if key in METRICS}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found["seconds_per_step"] = float(np.median([line["seconds_per_step"] for line in lines[1:]]))
    shutil.rmtree(workdir / "checkpoints")
    return found


def table(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the mean and standard deviation over seeds of each objective, best accuracy first."""
    rows = []
    for name in dict.fromkeys(result["objective"] for result in results):
        of_name = [result for result in results if result["objective"] == name]
        row: dict[str, Any] = {"objective": name, "seeds": len(of_name)}
        for metric in METRICS:
            values = [result[metric] for result in of_name]
            row[metric] = float(np.mean(values))
            row[f"{metric}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        rows.append(row)
    return sorted(rows, key=lambda row: -row["accuracy"])


def write(rows: list[dict[str, Any]], about: Mapping[str, Any], out: Path) -> None:
    """Writes table.csv, table.md and, if matplotlib is installed, plot.png."""
    with (out / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    lines = [", ".join(f"{key} {value}" for key, value in about.items()), ""]
    lines += [f"| objective | seeds | {' | '.join(METRICS)} |", "|---" * (len(METRICS) + 2) + "|"]
    for row in rows:
        spreads = [f" ± {row[f'{metric}_sd']:.3f}" if row["seeds"] > 1 else "" for metric in METRICS]
        cells = [f"{row[metric]:.3f}{spread}" for metric, spread in zip(METRICS, spreads, strict=True)]
        lines.append(f"| {row['objective']} | {row['seeds']} | {' | '.join(cells)} |")
    lines += [
        "",
        *(f"* {metric}: {meaning}" for metric, meaning in METRICS.items()),
        "* ±: standard deviation over seeds",
    ]
    (out / "table.md").write_text("\n".join(lines) + "\n")
    if can_plot():
        plot(rows, out / "plot.png")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plots one panel for each metric, one bar for each objective."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(METRICS), 1.5 + 0.28 * len(rows)), layout="constrained")
    names = [row["objective"] for row in rows][::-1]
    for i, (metric, meaning) in enumerate(METRICS.items()):
        axes = figure.add_subplot(1, len(METRICS), i + 1)
        values, spread = ([row[key] for row in rows][::-1] for key in (metric, f"{metric}_sd"))
        axes.barh(names, values, xerr=np.nan_to_num(spread), color="#4878a8", error_kw={"linewidth": 1})
        axes.set_title(f"{metric}\n{textwrap.fill(meaning, 40)}", fontsize=8)
        axes.tick_params(labelsize=8, labelleft=i == 0)
        axes.axvline(0.5 if metric in ("accuracy", "per_token_accuracy") else 0, color="grey", linewidth=0.8)
    figure.savefig(path, dpi=120)


def main(argv: list[str]) -> None:
    """Runs what is missing, then writes table and plot."""
    del argv
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_compilation_cache_dir", str(cache_dir("compiled")))
    out = Path(OUT.value)
    say_if_no_plots()
    about = {flag.name: flag.value for flag in (MODEL, DATA, TRAIN, TEST, STEPS, ROWS, ROW_LENGTH, RATE, DTYPE)}
    out = out / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:8]  # other settings, other results
    out.mkdir(parents=True, exist_ok=True)
    record = out / "results.jsonl"
    results = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    done = {(result["objective"], result["seed"]) for result in results}
    mesh = make_mesh(1, -1, 1)
    with jax.set_mesh(mesh):
        judge = None
        for seed in range(SEEDS.value):
            for name in objectives():
                if (name, seed) in done:
                    continue
                judge = judge or make_judge(mesh)
                found = run(name, seed, judge, out)
                if found is None:
                    print("stopped; the same command goes on from here")
                    return
                results.append({"objective": name, "seed": seed, **found})
                with record.open("a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
                print(
                    f"{name} seed {seed}: " + ", ".join(f"{key} {value:.3f}" for key, value in found.items()),
                    flush=True,
                )
    write(table(results), about, out)
    print((out / "table.md").read_text(), f"\n{out}/table.md, table.csv, plot.png")


if __name__ == "__main__":  # flags are global: two command lines cannot be imported together otherwise
    MODEL = flags.DEFINE_string("model", "tiny-random", "Any model that training takes")
    DATA = flags.DEFINE_string("data", "builtin:arithmetic/preference", "Pairs with splits train and test")
    OUT = flags.DEFINE_string("out", "runs/objectives", "Folder of results")
    OBJECTIVES = flags.DEFINE_list("objectives", [], "Losses, `cogpo` and `kto`; empty: all")
    SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each objective: they differ in the order of the pairs")
    TRAIN = flags.DEFINE_string("train", "train", "Split to train on, e.g. train[:200]")
    TEST = flags.DEFINE_string("test", "test", "Split to judge on")
    STEPS = flags.DEFINE_integer("steps", 60, "Steps of each run")
    ROWS = flags.DEFINE_integer("rows", 4, "Packed rows a step")
    ROW_LENGTH = flags.DEFINE_integer("row_length", 512, "Tokens a row")
    RATE = flags.DEFINE_float(
        "learning_rate", 1e-3, "Peak; the same for all, since Adam's steps do not scale with the loss"
    )
    DTYPE = flags.DEFINE_string("dtype", "float32", "float32 | bfloat16")
    app.run(main)
