"""Reports what a run came to: report.json, report.md for people, lengths.png."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from smallr.agents.agent import Agent
from smallr.agents.usage import COUNTS, Usage
from smallr.core.files import whole_file, write_json, write_text
from smallr.methods.crv.grades import HIGHEST, LOWEST, SCALES, UNKNOWN
from smallr.methods.crv.names import INCORRECT_SOURCES, LABELS, VERDICTS
from smallr.methods.crv.teacher_rows import Teacher

Row = Mapping[str, Any]
_SAMPLES = 2  # shown of each kind
_SHOWN = 20  # rows listed by name


def write_report(
    folder: Path,
    config: ConfigDict,
    teacher: Teacher,
    entries: Sequence[Mapping[str, Any]],
    agents: Mapping[str, Agent],
    unanswered: Sequence[str],
    selected: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:
    """Writes the files and returns what is in report.json.

    Args:
      folder: of the run.
      config: of the run.
      teacher: rows as they were read.
      entries: of the journal, in the order of the rows.
      agents: for names and prices.
      unanswered: errors of the rows that got no reply.
      selected: counts of each split, where rows were selected.
    """
    rows = [entry["row"] for entry in entries]
    report = {
        "source": config.data.source,
        "splits": list(teacher.splits),
        "student": config.student,
        "agents": {role: agent.model.name for role, agent in agents.items()},
        "rows": row_counts(teacher, rows),
        "open": len(unanswered),
        "open_errors": sorted(set(unanswered))[:5],
        "contaminated": [list(each) for each in teacher.contaminated[:_SHOWN]],
        **figures(rows),
        "selected": {split: dict(counts) for split, counts in selected.items()},
        "usage": _usage(entries, agents),
        "config": json.loads(json.dumps(config.to_dict())),
    }
    report["plot"] = _plot(folder / "lengths.png", rows)
    write_json(folder / "report.json", report)
    write_text(folder / "report.md", markdown(report, rows))
    return report


def row_counts(teacher: Teacher, rows: Sequence[Row]) -> dict[str, int]:
    """Counts what became of the rows that were read."""
    verified = sum(not row["reason"] for row in rows)
    return {
        "read": teacher.read,
        "duplicates": len(teacher.duplicates),
        "contaminated": len(teacher.contaminated),
        "no_question": len(teacher.no_question),
        "unreadable": len(teacher.unreadable),
        "without_gold": teacher.without_gold,
        "finished": len(rows),
        "verified": verified,
        "failed": len(rows) - verified,
    }


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Gives all counts of finished rows."""
    verified = [row for row in rows if not row["reason"]]
    return {
        "labels": {label: sum(row["label"] == label for row in rows) for label in LABELS},
        "relabels": {label: sum(row["relabel"] == label for row in rows) for label in LABELS},
        "grades": {name: _grade_counts(rows, name) for name in (*SCALES, *(f"{scale}_after" for scale in SCALES))},
        "rewritten": sum(row["rewritten"] for row in rows),
        "attempts_of_verified": dict(sorted(Counter(str(len(row["attempts"])) for row in verified).items())),
        "retries": sum(max(len(row["attempts"]) - 1, 0) for row in rows),
        "verdicts": {
            action: {verdict: count for verdict in VERDICTS if (count := found[action, verdict])}
            for found in [Counter((each["action"], each["verdict"]) for row in rows for each in row["attempts"])]
            for action in ("keep", "extend", "simplify", "repair")
            if any(found[action, verdict] for verdict in VERDICTS)
        },
        "failures": dict(Counter(row["reason"] for row in rows if row["reason"]).most_common()),
        "original_correct": sum(row["original_correct"] for row in rows),
        "original_verdicts": dict(Counter(row["original_verdict"] for row in rows if row["original_verdict"])),
        "lengths": {
            label: lengths
            for label in LABELS
            if (lengths := _lengths([row for row in verified if row["label"] == label])) is not None
        },
        "incorrect": {
            source: sum(each["source"] == source for row in verified for each in row["incorrect"])
            for source in INCORRECT_SOURCES
        },
        "verified_without_incorrect": sum(not row["incorrect"] for row in verified),
    }


def _grade_counts(rows: Sequence[Row], column: str) -> list[int]:
    """Counts the rows of each grade; empty where none was graded."""
    counts = Counter(row[column] for row in rows if row[column] != UNKNOWN)
    return [counts[grade] for grade in range(LOWEST, HIGHEST + 1)] if counts else []


def _lengths(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Counts words of a rationale before and after: median, with the 10th and the 90th percentile."""
    if not rows:
        return None
    both = {"before": [row["original"] for row in rows], "after": [row["rationale"] for row in rows]}
    return {
        "rows": len(rows),
        **{
            name: [
                round(float(value), 1) for value in np.percentile([len(text.split()) for text in texts], (10, 50, 90))
            ]
            for name, texts in both.items()
        },
    }


def _usage(entries: Sequence[Mapping[str, Any]], agents: Mapping[str, Agent]) -> dict[str, Any]:
    usage = Usage()
    for entry in entries:
        usage.add(entry["usage"])
    return {
        "by_agent": usage.by_role(agents),
        **{name: usage.total(name) for name in COUNTS},
        "cost": usage.cost(agents),
    }


def markdown(report: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Writes the report for people."""
    agents = "; ".join(f"{role}: `{name}`" for role, name in report["agents"].items())
    lines = [
        f"# CRV of {report['source']}",
        "",
        f"For a student with {report['student']}. {agents}.",
        "",
        *_table(("rows", ""), [(name.replace("_", " "), count) for name, count in report["rows"].items()]),
        *_remarks(report),
        *_labels_section(report),
        *_attempts_section(report),
        *_lengths_section(report),
        "## Incorrect rationales",
        "",
        f"{_listed(report['incorrect'])}; {report['verified_without_incorrect']} verified rows have none.",
        "",
        "## Requests",
        "",
        *_table(
            ("agent", "requests", "from the cache", "asked again", "prompt tokens", "completion tokens"),
            [(role, *used.values()) for role, used in report["usage"]["by_agent"].items()],
        ),
        f"Cost of all requests of finished rows at the given prices: {report['usage']['cost']:.4f}.",
        "",
        "## Samples",
        "",
        *_samples(rows),
    ]
    return "\n".join(lines) + "\n"


def _labels_section(report: Mapping[str, Any]) -> list[str]:
    labels, after = report["labels"], report["relabels"]
    total, asked_again = max(sum(labels.values()), 1), any(after.values())
    body = [
        (label, count, f"{count / total:.0%}", after[label] if asked_again else "") for label, count in labels.items()
    ]
    return [
        "## Labels",
        "",
        *_table(("label", "before", "share", "after"), body),
        "before: the critic on the teacher's rationales. after: on the verified ones, if `config.recheck` is set.",
        "",
        *_grades_section(report),
    ]


def _grades_section(report: Mapping[str, Any]) -> list[str]:
    """Lists how many rationales have each grade, and what was selected by grades."""
    graded = [(name.replace("_", " "), *counts) for name, counts in report["grades"].items() if counts]
    found = ["Rationales by grade:", "", *_table(("", *range(LOWEST, HIGHEST + 1)), graded)] if graded else []
    for split, counts in report["selected"].items():
        found += [f"Selected of {split}: {_listed(counts)}.", ""]
    return found


def _attempts_section(report: Mapping[str, Any]) -> list[str]:
    body = [(action, *(found.get(verdict, 0) for verdict in VERDICTS)) for action, found in report["verdicts"].items()]
    by_number = ", ".join(f"{number}: {count}" for number, count in report["attempts_of_verified"].items()) or "none"
    return [
        "## Attempts",
        "",
        *_table(("", *VERDICTS), body),
        f"Verified rows by the number of attempts: {by_number}. Retries: {report['retries']}.",
        "",
        "## Failures",
        "",
        *_table(("reason", "rows"), list(report["failures"].items())),
    ]


def _lengths_section(report: Mapping[str, Any]) -> list[str]:
    body = [
        (label, each["rows"], " / ".join(map(str, each["before"])), " / ".join(map(str, each["after"])))
        for label, each in report["lengths"].items()
    ]
    return [
        "## Lengths",
        "",
        "Words of a rationale of the verified rows: 10th percentile, median, 90th percentile.",
        "",
        *_table(("label", "rows", "before", "after"), body),
        *(["![lengths](lengths.png)", ""] if report["plot"] else []),
    ]


def _remarks(report: Mapping[str, Any]) -> list[str]:
    """Lists what a reader must not overlook."""
    counts, found = report["rows"], []
    if counts["without_gold"]:
        found.append(f"{counts['without_gold']} rows have no gold answer: the verifier alone decided on them.")
    if report["config"]["check"] == "none":
        found.append("There was no rule check (`config.check = none`): the verifier alone decided.")
    if report["open"]:
        found.append(
            f"{report['open']} rows got no reply and are in neither data set; the same command asks them again. "
            f"Errors: {'; '.join(report['open_errors'])}"
        )
    if counts["unreadable"]:
        found.append(
            f"{counts['unreadable']} rows hold text that cannot be written (half a character) and were left out."
        )
    if counts["duplicates"]:
        found.append(f"{counts['duplicates']} rows repeat the question of an earlier row and were left out.")
    if counts["contaminated"]:
        named = "; ".join(f"{split} {row}: {question[:80]!r}" for split, row, question in report["contaminated"])
        found.append(f"{counts['contaminated']} rows have a question of the evaluation set and were left out: {named}.")
    labelled = sum(report["labels"].values())
    most = max(report["labels"], key=report["labels"].get)
    if labelled >= 10 and report["labels"][most] > 0.95 * labelled:
        found.append(f"The critic says {most} of nearly every rationale: its labels tell little.")
    if verdicts := report["original_verdicts"]:
        found.append(f"The verifier on the teacher's rationales: {_listed(verdicts)}.")
    return [*(f"* {remark}" for remark in found), *([""] if found else [])]


def _samples(rows: Sequence[Row]) -> list[str]:
    lines = []
    for title, chosen in (
        *((f"{label}, verified", [r for r in rows if r["label"] == label and not r["reason"]]) for label in LABELS),
        ("failed", [row for row in rows if row["reason"]]),
    ):
        for row in chosen[:_SAMPLES]:
            lines += [f"### {title}: row {row['row']}", "", *_quoted("question", row["question"])]
            lines += [f"gold answer: {row['answer'] or 'none'}", "", *_quoted("teacher", row["teacher_rationale"])]
            if row["reason"]:
                lines += [f"failed: {row['reason']}. {row['detail']}", ""]
                attempts = [each for each in row["attempts"] if each["rationale"]]
                lines += _quoted("last attempt", attempts[-1]["rationale"]) if attempts else []
            elif row["rewritten"]:
                lines += _quoted("rethought", row["rationale"])
            for each in row["incorrect"][:1]:
                lines += _quoted(f"incorrect ({each['source']})", each["rationale"])
    return lines


def _quoted(title: str, text: str) -> list[str]:
    """Puts a text into an indented block, which it cannot break out of."""
    return [f"{title}:", "", *(f"    {line}" for line in text[:2000].splitlines()), ""]


def _table(head: Sequence[str], body: Sequence[Sequence[Any]]) -> list[str]:
    if not body:
        return ["none", ""]
    lines = [head, ["---"] * len(head), *body]
    return [*("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines), ""]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _plot(path: Path, rows: Sequence[Row]) -> bool:
    """Draws lengths before and after, by label; says whether it did (it needs matplotlib and rows)."""
    try:
        from matplotlib.figure import Figure  # an extra, and a second
    except ImportError:
        return False
    verified = [row for row in rows if not row["reason"]]
    labels = [label for label in LABELS if any(row["label"] == label for row in verified)]
    if not labels:
        return False
    figure = Figure(figsize=(4 * len(labels), 3), layout="constrained")
    for axes, label in zip(np.atleast_1d(figure.subplots(1, len(labels))), labels, strict=True):
        chosen = [row for row in verified if row["label"] == label]
        lengths = [[len(row[column].split()) for row in chosen] for column in ("original", "rationale")]
        bins = np.linspace(0, max(map(max, lengths)) + 1, 1 + math.ceil(math.sqrt(len(chosen)) + 4))
        axes.hist(lengths, bins, label=("before", "after"))
        axes.set(title=f"{label} ({len(chosen)})", xlabel="words", ylabel="rationales")
        axes.legend()
    with whole_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=100)
    return True
