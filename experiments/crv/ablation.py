"""Runs the ablation of CogPO: raw SFT, CRV SFT, CRV SFT + DPO, CRV SFT + CogPO, and sweeps of what they depend on.

    python -m experiments.crv.ablation --out=runs/cogpo                          # a student made from nothing
    python -m experiments.crv.ablation --out=runs/cogpo --sweeps=beta,small,medium,large,mix,critic
    python -m experiments.crv.ablation --out=runs/smollm --model=smollm2-135m-instruct --seeds=2
    python -m experiments.crv.ablation --out=runs/mine --model=NAME --data=FOLDER  # rows of smallr crv

A run has a folder of its own under --out; what is finished is kept, and the same command goes on after an interruption, also
within a run. On several machines with a common disk give each its part: --share=0/4 … --share=3/4 (experiments/launch has
templates for SLURM, SkyPilot and xpk). docs/methods/cogpo_ablation.md says what is compared and what was found.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import jax
from absl import app, flags, logging

from experiments.crv.arms import ARMS, BASE, CRV, RAW, SWEEPS, AblationPlan, TrainSettings, config_of, with_needs
from experiments.crv.base import Base, pretrained, quiet, train
from experiments.crv.judge import PAIRS, Examination, Judge, against
from experiments.crv.report import write_report
from experiments.crv.rows import Recipe
from smallr.core.cache import cache_dir
from smallr.core.comparison import say_if_no_plots
from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.core.stages import Stage, Stages, Stopped
from smallr.models.scratch import Size
from smallr.training.exporting import convert

MIXES = ("1:0:0", "0:1:0", "0:0:1", "balanced")


def plan(model: str) -> AblationPlan:
    """Returns what the flags ask for."""
    gaps = ("small", "medium", "large")
    if len(BETAS.value) != 3:
        raise UserError(f"--betas has a number for each of {', '.join(gaps)}")
    batch = {"rows": ROWS.value, "row_length": ROW_LENGTH.value}
    return AblationPlan(
        model=model,
        rows={
            "train": QUESTIONS.value,
            "test": HELD_OUT.value,
            "critic": CRITIC.value,
            "templates": tuple(TEMPLATES.value),
            "largest": LARGEST.value,
            "mix": MIX.value,
            "pairs": PAIR_COUNT.value,
            "data": DATA.value,
        },
        exam={
            "limit": HELD_OUT.value if ASKED.value < 0 else ASKED.value,
            "max_tokens": MAX_TOKENS.value,
            "decode_slots": DECODE_SLOTS.value,
            **batch,
            "dtype": DTYPE.value,
        },
        sft=TrainSettings(SFT_EPOCHS.value, STEPS.value, SFT_RATE.value, **batch),
        preference=TrainSettings(EPOCHS.value, STEPS.value, RATE.value, **batch),
        dtype=DTYPE.value,
        betas=dict(zip(gaps, map(float, BETAS.value), strict=True)),
        dpo_beta=DPO_BETA.value,
        grid=tuple(map(float, GRID.value)),
        mixes=MIXES,
        critics=tuple(CRITICS.value),
    )


def base() -> Base:
    """Returns the student made from nothing that the flags ask for."""
    stage = TrainSettings(0, BASE_STEPS.value, BASE_RATE.value, ROWS.value, ROW_LENGTH.value)
    return Base(
        size=Size("llama", LAYERS.value, WIDTH.value, 4, 512),
        vocabulary=640,
        questions=BASE_QUESTIONS.value,
        equations=BASE_QUESTIONS.value // 5,
        held_out=HELD_OUT.value,
        templates=tuple(TEMPLATES.value),
        largest=LARGEST.value,
        train=stage,
        dtype=DTYPE.value,
    )


class Worker:
    """Does a run: data, training, export, examination."""

    def __init__(self, out: Path, model: str):
        self._out, self._model = out, model
        self._judge = Judge(make_mesh(1, -1, 1))

    def __call__(self, run: Stage, folder: Path, needs: list[Path]) -> dict[str, float]:
        rows = Recipe(seed=run.settings["seed"], **run.settings["rows"]).build(self._out / "rows")
        start = str(needs[0] / "model") if needs else self._model
        model, untrained = folder / "model", run.settings["arm"] == BASE
        if not untrained:
            train(config_of(run, rows, start), folder)
        if run.settings["arm"] in (RAW, CRV) and not model.exists():
            convert(str(folder), model, dtype="float32", shard_size="5GB")
        exam = Examination(str(rows / "questions"), str(rows / "held_out"), **run.settings["exam"])
        with quiet(folder):
            metrics = self._judge(start if untrained else str(folder), exam, folder)
        if needs:
            metrics |= against(folder / PAIRS, needs[0] / PAIRS)
        shutil.rmtree(folder / "checkpoints", ignore_errors=untrained)
        return metrics


def student(out: Path) -> str:
    """Returns the model that all runs start from; one made from nothing is trained on the first call."""
    return pretrained(base(), out) if MODEL.value == "scratch" else MODEL.value


def main(argv: list[str]) -> None:
    """Runs what is missing, then writes tables and plots."""
    del argv
    logging.set_verbosity(logging.WARNING)
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    out = Path(OUT.value)
    say_if_no_plots()
    index, _, count = SHARE.value.partition("/")
    try:
        model = student(out)
        wanted = plan(model)
        groups = {"arms": wanted.arms(ARM.value, SEEDS.value)}
        groups |= {name: wanted.sweep(name, SWEEP_SEEDS.value) for name in SWEEP.value}
        runs, grid = with_needs(run for group in groups.values() for run in group), Stages(out)
        if not REPORT.value:
            grid.run(runs, Worker(out, model), (int(index), int(count or 1)))
        print(write_report(grid, groups, wanted, out))
    except Stopped:
        print("stopped; the same command goes on from here")
    except UserError as error:
        sys.exit(f"smallr: {error}")


if __name__ == "__main__":  # flags are global: two command lines cannot be imported together otherwise
    OUT = flags.DEFINE_string("out", "runs/cogpo", "Folder of the grid")
    MODEL = flags.DEFINE_string(
        "model", "scratch", "Any model that training takes; scratch: a small one, pretrained first"
    )
    ARM = flags.DEFINE_list("arms", list(ARMS), f"Of {', '.join(ARMS)}")
    SWEEP = flags.DEFINE_list("sweeps", [], f"Of {', '.join(SWEEPS)}")
    SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each arm: other training questions, other order", lower_bound=1)
    SWEEP_SEEDS = flags.DEFINE_integer("sweep_seeds", 2, "Runs of each point of a sweep", lower_bound=1)
    SHARE = flags.DEFINE_string("share", "0/1", "I/N: the I-th of N parts of the grid")
    REPORT = flags.DEFINE_bool("report_only", False, "Make tables and plots of what is finished, and run nothing")
    DATA = flags.DEFINE_string(
        "data", "", "Folder of a finished CRV run with splits train and test; empty: built-in rows"
    )
    QUESTIONS = flags.DEFINE_integer("questions", 600, "Training questions of a seed", lower_bound=10)
    HELD_OUT = flags.DEFINE_integer("held_out", 200, "Held-out questions, answered and made into pairs", lower_bound=10)
    TEMPLATES = flags.DEFINE_list("templates", ["change", "ages", "stickers", "recipe"], "Of the questions; empty: all")
    LARGEST = flags.DEFINE_integer("largest", 200, "Largest number in a question or its solution")
    CRITIC = flags.DEFINE_string(
        "critic", "0", "Share of the critic's labels that are wrong, or a model: http://HOST/v1#MODEL"
    )
    MIX = flags.DEFINE_string("mix", "balanced", "natural | balanced | shares of small, medium, large like 1:1:2")
    PAIR_COUNT = flags.DEFINE_integer("pairs", 600, "Pairs of the preference stage; 0: all")
    DTYPE = flags.DEFINE_string("dtype", "bfloat16", "float32 | bfloat16")
    ROWS = flags.DEFINE_integer("rows", 12, "Packed rows a step")
    ROW_LENGTH = flags.DEFINE_integer("row_length", 256, "Tokens a row")
    SFT_RATE = flags.DEFINE_float("sft_rate", 5e-4, "Peak of the learning rate of SFT")
    SFT_EPOCHS = flags.DEFINE_integer("sft_epochs", 2, "Epochs of SFT")
    RATE = flags.DEFINE_float("rate", 1e-4, "Peak of the learning rate of DPO and CogPO")
    EPOCHS = flags.DEFINE_integer("epochs", 1, "Epochs of DPO and CogPO")
    STEPS = flags.DEFINE_integer("steps", 0, "Most steps of each stage, for a quick look; 0: as the epochs say")
    BETAS = flags.DEFINE_list("betas", ["0.1", "0.2", "0.5"], "CogPO's beta of small, medium and large gaps")
    DPO_BETA = flags.DEFINE_float("dpo_beta", 0.2, "DPO's beta")
    GRID = flags.DEFINE_list("grid", ["0.05", "0.2", "1.0"], "Values of the betas that are swept")
    CRITICS = flags.DEFINE_list("critics", ["0", "0.25", "0.5"], "As --critic, those that are swept")
    MAX_TOKENS = flags.DEFINE_integer("max_tokens", 128, "Of an answer")
    DECODE_SLOTS = flags.DEFINE_integer("decode_slots", 50, "Answers written at once")
    ASKED = flags.DEFINE_integer("asked", -1, "Held-out questions that are answered; -1: all")
    LAYERS = flags.DEFINE_integer("layers", 3, "Of the student made from nothing")
    WIDTH = flags.DEFINE_integer("width", 128, "Of the student made from nothing")
    BASE_QUESTIONS = flags.DEFINE_integer("base_questions", 8000, "Questions of its pretraining")
    BASE_STEPS = flags.DEFINE_integer("base_steps", 1200, "Steps of its pretraining")
    BASE_RATE = flags.DEFINE_float("base_rate", 3e-3, "Peak of the learning rate of its pretraining")
    app.run(main)
