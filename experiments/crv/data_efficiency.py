"""Measures data efficiency: the same student on 10, 25, 50 and 100 % of the rows, with the teacher's rationales and with CRV's.

    python -m experiments.crv.data_efficiency --out=runs/data_efficiency

The student is made from nothing and knows single equations and a few rationales. All its runs take the same number of steps,
so a smaller share of the rows is repeated more often: the shares differ in rows alone, not in compute. The rows of a smaller
share are among those of a larger one. What is finished is kept, and the same command goes on after an interruption.
docs/methods/trust_agreement.md says what has been run.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import jax
import numpy as np
from absl import app, flags, logging

from experiments.crv.ablation import Worker
from experiments.crv.arms import CRV, RAW, AblationPlan, TrainSettings
from experiments.crv.base import Base, pretrained
from experiments.crv.report import METRICS, compared
from smallr.core.cache import cache_dir
from smallr.core.comparison import Row, can_plot, markdown, means, say_if_no_plots, table, write_csv
from smallr.core.errors import UserError
from smallr.core.stages import Stage, Stages, Stopped
from smallr.models.scratch import Size

SHOWN = {name: METRICS[name] for name in ("correct", "nll", "tokens")}


@dataclasses.dataclass(frozen=True)
class Shares:
    """Says which runs are compared.

    Attributes:
      plan: of the ablation, whose `rows["train"]` is the number of all rows.
      shares: of these rows, each above 0 and at most 1.
      seeds: runs of each arm at each share; they differ in questions and order.
    """

    plan: AblationPlan
    shares: tuple[float, ...]
    seeds: int

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise UserError(f"shares: {', '.join(map(str, self.shares))} must each be above 0 and at most 1")

    def counts(self) -> list[int]:
        """Returns the numbers of rows, the smallest first."""
        return sorted({max(round(share * self.plan.rows["train"]), 1) for share in self.shares})

    def runs(self) -> dict[tuple[str, int], list[Stage]]:
        """Returns the runs of each arm and number of rows, one a seed."""
        return {
            (arm, count): [self.plan.sft_run(arm, seed, train=count) for seed in range(self.seeds)]
            for count in self.counts()
            for arm in (RAW, CRV)
        }


def write_report(grid: Stages, wanted: Shares, out: Path) -> str:
    """Writes runs.csv, table.md and data_efficiency.png of what is finished; returns the page."""
    runs = wanted.runs()
    rows = {key: _rows(grid, members, key[1]) for key, members in runs.items()}
    everything = [row for members in rows.values() for row in members]
    if not everything:
        return "nothing is finished yet"
    write_csv(everything, out / "runs.csv")
    total = sum(map(len, runs.values()))
    sections = [
        f"{len(everything)} of {total} runs finished",
        table(everything, ["rows.train", "arm"], SHOWN),
        "## CRV − raw\n\n" + _differences(grid, wanted, runs),
        "## Rows of the teacher for the same share of right answers\n\n" + _equivalents(wanted.counts(), rows),
    ]
    page = "\n\n".join(sections) + "\n"
    (out / "table.md").write_text(page)
    if can_plot():
        _plot(wanted.counts(), rows, out / "data_efficiency.png")
    return page


def _rows(grid: Stages, runs: Sequence[Stage], count: int) -> list[Row]:
    return [{**row, "rows.train": count} for row in grid.rows([run for run in runs if grid.is_done(run)])]


def _differences(grid: Stages, wanted: Shares, runs: dict[tuple[str, int], list[Stage]]) -> str:
    """Returns a line for each number of rows: CRV minus raw, paired by seed and question by question."""
    lines = []
    for count in wanted.counts():
        before, after = (dict(enumerate(runs[arm, count])) for arm in (RAW, CRV))
        seeds = [seed for seed in before if grid.is_done(before[seed]) and grid.is_done(after[seed])]
        if seeds:
            right, over_questions, nll, _, tokens = compared(grid, before, after, seeds)
            lines.append([str(count), str(len(seeds)), right, over_questions, nll, tokens])
    headers = ["rows", "seeds", "answers right, over seeds", "over questions, 95 %", "NLL", "tokens"]
    return markdown(headers, lines) + (
        "\nOver seeds: mean ± half of Student's interval, paired by seed. Over questions: bootstrap interval; a question "
        "is drawn with its answers of all seeds.\n"
    )


def _equivalents(counts: Sequence[int], rows: dict[tuple[str, int], list[Row]]) -> str:
    """Returns a line for each number of rows that CRV has: how many rows of the teacher's do as well."""
    curve = [means(rows[RAW, count], "correct").value for count in counts]
    lines = [
        [str(count), f"{reached:.3f}", equivalent(counts, curve, reached)]
        for count in counts
        if not math.isnan(reached := means(rows[CRV, count], "correct").value)
    ]
    return markdown(["rows of CRV", "answers right", "rows of the teacher"], lines)


def equivalent(counts: Sequence[int], curve: Sequence[float], reached: float) -> str:
    """Reads off a curve at how many rows a value is first reached, between two points linearly in the log of the rows.

    Args:
      counts: numbers of rows, rising.
      curve: the value at each; NaN where it is not known.
      reached: the value looked for.
    """
    known = [(count, value) for count, value in zip(counts, curve, strict=True) if not math.isnan(value)]
    if not known:
        return "–"
    if known[0][1] >= reached:
        return f"{known[0][0]} or fewer"
    for (low, below), (high, above) in itertools.pairwise(known):
        if above >= reached:
            part = (reached - below) / (above - below)
            return f"{math.exp(math.log(low) + part * (math.log(high) - math.log(low))):.0f}"
    return f"more than {known[-1][0]}"


def _plot(counts: Sequence[int], rows: dict[tuple[str, int], list[Row]], path: Path) -> None:
    """Plots each metric over the number of rows, one line an arm, with intervals and a dot for each run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(SHOWN), 2.8), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, len(SHOWN)), SHOWN.items(), strict=True):
        for arm, colour in ((RAW, "#b5651d"), (CRV, "#1f3b57")):
            averages = [means(rows[arm, count], metric) for count in counts]
            halves = np.nan_to_num([average.half for average in averages])
            values = [average.value for average in averages]
            axes.errorbar(counts, values, yerr=halves, marker="o", markersize=4, capsize=3, color=colour, label=arm)
            for count in counts:
                known = [row[metric] for row in rows[arm, count] if row.get(metric) is not None]
                axes.plot([count] * len(known), known, ".", markersize=3, color=colour, alpha=0.6)
        axes.set(title=title, xscale="log", xlabel="training rows")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def student() -> Base:
    """Returns the student that the flags ask for: it knows equations, and rationales of every style for some questions."""
    known, asked = tuple(BASE_TEMPLATES.value), tuple(TEMPLATES.value)
    train = TrainSettings(0, BASE_STEPS.value, BASE_RATE.value, ROWS.value, ROW_LENGTH.value)
    return Base(
        size=Size("llama", LAYERS.value, WIDTH.value, 4, 512),
        vocabulary=640,
        questions=BASE_QUESTIONS.value,
        equations=BASE_EQUATIONS.value,
        held_out=HELD_OUT.value,
        templates=known or asked,
        largest=LARGEST.value,
        train=train,
        dtype=DTYPE.value,
        taught_later=tuple(name for name in asked if known and name not in known),
    )


def wanted_of(model: str) -> Shares:
    """Returns the runs that the flags ask for."""
    batch = {"rows": ROWS.value, "row_length": ROW_LENGTH.value}
    train = TrainSettings(0, STEPS.value, RATE.value, **batch)
    plan = AblationPlan(
        model=model,
        rows={
            "train": QUESTIONS.value,
            "test": HELD_OUT.value,
            "critic": "0",
            "templates": tuple(TEMPLATES.value),
            "largest": LARGEST.value,
            "data": "",
        },
        exam={"limit": HELD_OUT.value, "max_tokens": 128, "decode_slots": 50, **batch, "dtype": DTYPE.value},
        sft=train,
        preference=train,
        dtype=DTYPE.value,
        betas={},
        dpo_beta=0.0,
    )
    return Shares(plan, tuple(map(float, SHARES.value)), SEEDS.value)


def main(argv: list[str]) -> None:
    """Runs what is missing, then writes the table and the plot."""
    del argv
    logging.set_verbosity(logging.WARNING)
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir("compiled")))
    say_if_no_plots()
    out = Path(OUT.value)
    try:
        model = pretrained(student(), out) if MODEL.value == "scratch" else MODEL.value
        wanted, grid = wanted_of(model), Stages(out)
        # Seed by seed, so that what is finished early is a whole comparison.
        runs = [run for seed in zip(*wanted.runs().values(), strict=True) for run in seed]
        grid.run(runs, Worker(out, model))
        print(write_report(grid, wanted, out))
    except Stopped:
        print("stopped; the same command goes on from here")
    except UserError as error:
        sys.exit(f"smallr: {error}")


if __name__ == "__main__":  # flags are global: two command lines cannot be imported together otherwise
    OUT = flags.DEFINE_string("out", "runs/data_efficiency", "Folder of the grid")
    MODEL = flags.DEFINE_string(
        "model", "scratch", "Any model that training takes; scratch: one made and pretrained first"
    )
    SHARES = flags.DEFINE_list("shares", ["0.1", "0.25", "0.5", "1"], "Shares of the rows")
    SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each arm at each share", lower_bound=1)
    QUESTIONS = flags.DEFINE_integer("questions", 1200, "Training questions, all of them", lower_bound=20)
    HELD_OUT = flags.DEFINE_integer("held_out", 200, "Held-out questions", lower_bound=10)
    TEMPLATES = flags.DEFINE_list("templates", ["change", "recipe"], "Of the questions; empty: all")
    BASE_TEMPLATES = flags.DEFINE_list(
        "base_templates", [], "Of the questions that the student is pretrained on; empty: those of --templates"
    )
    LARGEST = flags.DEFINE_integer("largest", 200, "Largest number in a question or its solution")
    STEPS = flags.DEFINE_integer("steps", 250, "Steps of every run", lower_bound=1)
    RATE = flags.DEFINE_float("rate", 2e-3, "Peak of the learning rate")
    ROWS = flags.DEFINE_integer("rows", 8, "Packed rows a step")
    ROW_LENGTH = flags.DEFINE_integer("row_length", 256, "Tokens a row")
    DTYPE = flags.DEFINE_string("dtype", "bfloat16", "float32 | bfloat16")
    LAYERS = flags.DEFINE_integer("layers", 3, "Of the student")
    WIDTH = flags.DEFINE_integer("width", 128, "Of the student")
    BASE_STEPS = flags.DEFINE_integer("base_steps", 500, "Steps of its pretraining")
    BASE_RATE = flags.DEFINE_float("base_rate", 3e-3, "Peak of the learning rate of its pretraining")
    BASE_EQUATIONS = flags.DEFINE_integer("base_equations", 3000, "Rows of twelve equations that it is pretrained on")
    BASE_QUESTIONS = flags.DEFINE_integer("base_questions", 300, "Questions with rationales that it is pretrained on")
    app.run(main)
