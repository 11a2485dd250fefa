"""Reports a run: counts of each stage, utilities, accuracies, the chosen provider and the next commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from smallr.core.files import read_json, whole_file, write_json, write_text
from smallr.evals.statistics import pass_at_1
from smallr.methods.collate.data import opened
from smallr.methods.collate.modes import ANSWER, RATIONALE

if TYPE_CHECKING:
    from smallr.methods.collate.stages import Collate

REPORT, PLOT = "report.md", "utilities.png"
_SHOWN = {ANSWER: "I→A", RATIONALE: "I→R→A"}


def write_report(out: Path, config: ConfigDict, run: Collate) -> dict[str, Any]:
    """Writes report.md, report.json and, where matplotlib is installed, utilities.png.

    Returns:
      What report.json holds: `data`, `stages` (counts of each), `accuracy` and `choice`.
    """
    values = {stage.name: (run.stages.folder(stage), run.value(stage)) for stage in run.stages.named}
    report = {
        "data": run.data.counts,
        "stages": {name: value["counts"] for name, (folder, value) in values.items() if _has_rows(folder, value)},
        "training": {name: training_counts(value) for name, (folder, value) in values.items() if value == folder},
        "accuracy": _accuracies(run),
        "choice": {**run.value(run.choice), "model": run.value(run.chosen).name},
    }
    has_plot = _plot(out / PLOT, [opened(run.value(stage)) for stage in run.scored])
    write_json(out / "report.json", report)
    write_text(out / REPORT, "\n".join(_page(out, config, report, has_plot)) + "\n")
    return report


def _has_rows(folder: Path, value: Any) -> bool:
    """Returns whether a stage has written a data set of its own."""
    return isinstance(value, Mapping) and "rows" in value and value["rows"].parent == folder


def training_counts(folder: Path) -> dict[str, int]:
    """Returns the counts of a stage that trains: rows in, kept, those left out by reason, steps, and tokens in all steps."""
    found = read_json(folder / "report.json")
    rows = dict(found["rows"])
    counts = {"rows in": rows.pop("read"), "kept": rows.pop("examples"), **rows}
    epoch = found["epoch"]
    return {**counts, "steps": found["steps"], "tokens": round(epoch["tokens"] * found["steps"] / epoch["steps"])}


def _accuracies(run: Collate) -> list[dict[str, Any]]:
    stages = {(name, _SHOWN[mode]): stage for (name, mode), stage in run.answers.items()}
    if run.indirect is not None:
        stages["base fine-tuned on instruction and rationale", "[I;R]→A"] = run.indirect
    found = []
    for (name, mode), stage in stages.items():
        estimate = pass_at_1([[float(right)] for right in opened(run.value(stage))["correct"]])
        low, high = estimate.interval()
        found.append(
            {
                "model": name,
                "mode": mode,
                "accuracy": estimate.value,
                "low": low,
                "high": high,
                "questions": estimate.questions,
            }
        )
    return found


def _page(out: Path, config: ConfigDict, report: Mapping[str, Any], has_plot: bool) -> list[str]:
    choice = report["choice"]
    best = choice["chosen"]
    lines = ["# COLLATE", "", f"Provider {best} is chosen: behind its rationales the gold answers are likeliest.", ""]
    lines += _table(
        ["provider", "mean utility on the validation rows", ""],
        [
            *((s, f"{value:.4f}", "chosen" if s == best else "") for s, value in enumerate(choice["likelihood"])),
            ("no rationale (u_0)", f"{choice['u_0']:.4f}", ""),
        ],
    )
    lines += ["## Accuracy on the validation rows", "", "Wilson's 95 % intervals.", ""]
    lines += _table(
        ["model", "mode", "accuracy", "interval", "questions"],
        [
            (
                each["model"],
                each["mode"],
                f"{each['accuracy']:.3f}",
                f"{each['low']:.3f} … {each['high']:.3f}",
                each["questions"],
            )
            for each in report["accuracy"]
        ],
    )
    lines += agreement_lines(choice["agreement"])
    if has_plot:
        lines += ["## Utilities", "", f"![utilities of each round]({PLOT})", ""]
    lines += [
        "## Rows",
        "",
        *_counts(report["data"]),
        "## Stages",
        "",
        *_counts({**report["stages"], **report["training"]}),
    ]
    lines += [
        "## Next",
        "",
        "The run's folder is the chosen provider, and its tokenizer writes the prompts of the modes:",
        "",
    ]
    return [*lines, "```", *next_commands(out, config), "```"]


def next_commands(out: Path, config: ConfigDict) -> list[str]:
    """Returns the commands that take the run's folder as a model."""
    kind = config.training.dtype
    benchmark = "gsm8k" if "gsm8k" in config.data.rows.lower() else "BENCHMARK"  # other rows name none that we have
    return [
        f"smallr generate --model={out} --dtype={kind} 'QUESTION'",
        f"smallr evaluate {benchmark} --config.model={out} --config.compute.dtype={kind}",
        f"smallr convert --from={out} --to={out}/exported",
    ]


def agreement_lines(found: Mapping[str, float]) -> list[str]:
    """Returns the part of the page on likelihood and correctness."""
    lines = ["## Does likelihood agree with correctness?", ""]
    if found["pairs"]:
        share = found["agree"] / found["pairs"]
        lines.append(
            f"Of {found['pairs']} pairs of rationales of one question, one of which led its provider to the right answer, "
            f"the right one has the higher utility in {share:.0%} (95 %: {found['low']:.0%} … {found['high']:.0%})."
        )
    else:
        lines.append("No validation question was answered right by one provider and wrong by another.")
    right, wrong = found.get("right", 0), found.get("wrong", 0)  # runs of earlier versions did not count them
    if right and wrong:
        lines.append(
            f"Over all questions, for {right} right rationales beside {wrong} wrong ones, the probability is "
            f"{found['auc']:.2f} (area under the curve)."
        )
    return [*lines, ""]


def _counts(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    return _table(
        ["stage", "counts"],
        [(name, ", ".join(f"{reason} {number}" for reason, number in each.items())) for name, each in counts.items()],
    )


def _table(head: Sequence[str], body: Sequence[Sequence[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *body]
    return [*("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines), ""]


def _plot(path: Path, rounds: Sequence[Sequence[Mapping[str, Any]]]) -> bool:
    """Draws the utilities of each round beside u_0; says whether it did (it needs matplotlib and a round)."""
    try:
        from matplotlib.figure import Figure  # an extra, and a second
    except ImportError:
        return False
    if not rounds:
        return False
    figure = Figure(figsize=(5 * len(rounds), 3.2), layout="constrained")
    bins = np.linspace(0, 1, 21)
    for number, (axes, table) in enumerate(zip(np.atleast_1d(figure.subplots(1, len(rounds))), rounds, strict=True)):
        known = [row for row in table if row["u_0"] is not None]
        columns = {"no rationale": [row["u_0"] for row in known]}
        for s in range(len(known[0]["utilities"]) if known else 0):
            columns[f"provider {s}"] = [row["utilities"][s] for row in known if row["utilities"][s] is not None]
        axes.hist(list(columns.values()), bins, label=list(columns))
        axes.set(title=f"round {number}", xlabel="utility of a rationale", ylabel="questions")
        axes.legend()
    with whole_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=100)
    return True
