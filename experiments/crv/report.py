"""Reports the finished runs: one CSV, one page of tables, two plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.crv.arms import COGPO, CRV, DPO, RAW, AblationPlan
from experiments.crv.judge import ANSWERS, read_answers
from experiments.crv.styles import styles
from smallr.core.comparison import Row, bars, can_plot, curves, difference, groups, markdown, table, write_csv
from smallr.core.stages import Stage, Stages
from smallr.data.rows import GAPS
from smallr.evals.statistics import paired_difference

# Students of Qwen2.5; theirs, not comparable with ours in anything but direction. docs/methods/cogpo_ablation.md has the same.
PUBLISHED = markdown(
    ["published", "AIME 2024", "MATH-500", "GPQA-Diamond", "LiveCodeBench v2"],
    [
        ["Qwen2.5-7B-Instruct", "10.0", "73.6", "33.3", "30.7"],
        ["Bespoke-Stratos-7B", "20.0", "82.0", "37.8", "36.1"],
        ["OpenThinker-7B", "31.3", "83.0", "42.4", "39.9"],
        ["DistilQwen2.5-R1-7B (CRV + CogPO)", "23.33", "77.8", "37.88", "36.40"],
        ["DistilQwen2.5-R1-14B (CRV + CogPO)", "26.67", "82.6", "45.45", "41.49"],
        ["DistilQwen2.5-R1-32B (CRV + CogPO)", "46.67", "87.0", "48.99", "55.97"],
        ["DistilQwen2.5-DS3-0324-7B (another teacher; not CRV + CogPO)", "43.3", "88.4", "42.9", "46.4"],
        ["DeepSeek-R1-Distill-Qwen-7B", "55.5", "92.8", "49.1", "–"],
    ],
)
SOURCE = "Source: Cai et al., arXiv 2504.09802, and its authors' pages; figures of 7B students and larger ones on real benchmarks."

METRICS = {
    "correct": "answers right",
    "nll": "NLL, nats/token",
    "tokens": "answer tokens",
    "truncated": "truncated",
    "per_token_accuracy": "per-token accuracy",
    "accuracy": "preference accuracy",
    "log_ratio_margin": "log-ratio margin, nats",
}
PER_GAP = {
    **{f"per_token_accuracy/{gap}": f"per-token accuracy, {gap}" for gap in GAPS},
    **{f"accuracy/{gap}": f"accuracy, {gap}" for gap in GAPS},
    **{f"log_ratio_margin/{gap}": f"log-ratio margin, {gap}" for gap in GAPS},
}
LEGEND = """\
* answers right: share of held-out questions whose greedy answer is right by rule; NLL: of fitted held-out rationales.
* per-token accuracy: share of held-out pairs whose chosen completion has the higher log-prob per token, under the model alone.
* preference accuracy, log-ratio margin: relative to the SFT model that the run started from. The log-ratio margin is the
  log-ratio of chosen minus that of rejected, without beta, so that arms compare; accuracy is the share of pairs above 0.
* ±: half of Student's 95 % interval over runs, which differ in training questions and order.
"""
SETTINGS = {
    "beta": ("DPO: beta", "betas"),
    **{gap: (f"CogPO: beta of {gap} gaps", f"betas.{gap}") for gap in GAPS},
    "mix": ("CogPO: shares small, medium, large", "rows.mix"),
    "critic": ("CogPO: the critic's wrong labels", "rows.critic"),
}


def write_report(grid: Stages, wanted: Mapping[str, Sequence[Stage]], plan: AblationPlan, out: Path) -> str:
    """Writes `runs.csv`, `table.md`, `arms.png` and `sweeps.png` from what is finished; returns the page.

    Args:
      grid: of the runs.
      wanted: `arms` and the sweeps by name -> their runs.
      plan: of the ablation.
      out: folder of the files.
    """
    everything = list({run.digest: run for runs in wanted.values() for run in runs}.values())
    rows = grid.rows(everything)
    if not rows:
        return "nothing is finished yet"
    write_csv(rows, out / "runs.csv")
    arms = grid.rows(wanted["arms"])
    sections = [
        f"model {plan.model}, {len(rows)} of {len(everything)} runs finished",
        "## Arms\n\n" + table(arms, ["arm"], METRICS),
        "Per gap:\n\n" + table(arms, ["arm"], PER_GAP),
        LEGEND,
        "## Differences\n\n" + differences(grid, wanted["arms"]),
    ]
    if written := styles(grid, wanted["arms"]):
        sections.append("## Styles of the answers\n\n" + written + "\nAll runs of an arm together.\n")
    sweeps = {name: swept(grid, name, runs) for name, runs in wanted.items() if name != "arms"}
    for name, found in sweeps.items():
        title, setting = SETTINGS[name]
        sections.append(f"## {title}\n\n" + table(found, [setting], {**METRICS, **PER_GAP}))
    sections.append("## Published\n\n" + PUBLISHED + "\n" + SOURCE)
    page = "\n\n".join(sections) + "\n"
    (out / "table.md").write_text(page)
    if not can_plot():
        return page
    shown = {name: METRICS[name] for name in ("correct", "per_token_accuracy", "accuracy", "tokens")}
    bars(arms, "arm", shown | {"nll": METRICS["nll"]}, out / "arms.png")
    panels = {SETTINGS[name][0]: (found, SETTINGS[name][1]) for name, found in sweeps.items() if found}
    if panels:
        lines = {name: METRICS[name] for name in ("correct", "accuracy")} | PER_GAP_SHOWN
        curves(panels, lines, out / "sweeps.png", note="points: means over seeds; bars: 95 % intervals")
    return page


PER_GAP_SHOWN = {f"accuracy/{gap}": f"accuracy, {gap} gap" for gap in GAPS}


def swept(grid: Stages, name: str, runs: Sequence[Stage]) -> list[Row]:
    """Returns rows of a sweep's own runs, without those that they merely need."""
    arm = DPO if name == "beta" else COGPO
    return grid.rows([run for run in runs if run.settings["arm"] == arm])


def differences(grid: Stages, runs: Sequence[Stage]) -> str:
    """Answers right, one arm against another: over seeds, and over questions."""
    by_arm: dict[str, dict[int, Stage]] = {}
    for run in runs:
        if grid.is_done(run):
            by_arm.setdefault(run.settings["arm"], {})[run.settings["seed"]] = run
    lines = []
    for before, after in ((RAW, CRV), (CRV, DPO), (CRV, COGPO), (DPO, COGPO), (RAW, COGPO)):
        seeds = sorted(set(by_arm.get(before, {})) & set(by_arm.get(after, {})))
        if seeds:
            lines.append(
                [f"{after} − {before}", str(len(seeds)), *compared(grid, by_arm[before], by_arm[after], seeds)]
            )
    headers = [
        "difference",
        "seeds",
        "answers right, over seeds",
        "over questions, 95 %",
        "NLL",
        "per-token accuracy",
        "tokens",
    ]
    return markdown(headers, lines) + (
        "\nOver seeds: mean ± half of Student's interval of the differences of runs with the same seed. Over questions: "
        "bootstrap interval; a question is drawn with its answers of all seeds.\n"
    )


def compared(grid: Stages, before: Mapping[int, Stage], after: Mapping[int, Stage], seeds: Sequence[int]) -> list[str]:
    """Returns cells of a line of `differences`."""
    rows = [grid.rows([arm[seed] for seed in seeds]) for arm in (before, after)]
    over_questions = "–"
    scores = [[scored(grid, arm[seed]) for seed in seeds] for arm in (before, after)]
    if all(each is not None for arm in scores for each in arm):
        found = paired_difference(*(np.transpose(arm).tolist() for arm in scores))
        over_questions = f"{found.low:+.3f} … {found.high:+.3f}"
    cells = {
        metric: difference(rows[1], rows[0], metric).show(1 if metric == "tokens" else 3, signed=True)
        for metric in ("correct", "nll", "per_token_accuracy", "tokens")
    }
    return [cells["correct"], over_questions, cells["nll"], cells["per_token_accuracy"], cells["tokens"]]


def scored(grid: Stages, run: Stage) -> Any:
    """Returns 1 or 0 of each question; None for a run that answered none."""
    path = grid.folder(run) / ANSWERS
    return [float(row["correct"]) for row in read_answers(path)] if path.exists() else None


__all__ = ["METRICS", "PER_GAP", "PUBLISHED", "differences", "groups", "write_report"]
