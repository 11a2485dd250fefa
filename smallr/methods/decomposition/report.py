"""Reports what a generation came to: report.json, and report.md for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from smallr.agents.agent import Agent
from smallr.agents.usage import COUNTS, Usage
from smallr.core.comparison import markdown
from smallr.core.files import write_json, write_text
from smallr.evals.statistics import pass_at_1
from smallr.methods.decomposition.problems import Problems
from smallr.methods.decomposition.raw import numbered
from smallr.methods.decomposition.rows import Decomposition, by_problem

REPORTS = ("report.json", "report.md")
_SAMPLES, _SHOWN = 3, 5


def write_report(
    folder: Path,
    config: ConfigDict,
    problems: Problems,
    entries: Mapping[str, Mapping[str, Any]],
    made: Mapping[str, Sequence[Decomposition]],
    counts: Mapping[str, Mapping[str, int]],
    agents: Mapping[str, Agent],
    unanswered: Sequence[str],
) -> dict[str, Any]:
    """Writes the files and returns what is in report.json.

    Args:
      folder: of the run.
      config: of the run.
      problems: as they were read.
      entries: of the journal, by the id of the problem.
      made: decompositions by split.
      counts: rows by data set and split.
      agents: for names and prices.
      unanswered: errors of the problems that got no reply.
    """
    usage = Usage()
    for entry in entries.values():
        usage.add(entry["usage"])
    drops = [drop for entry in entries.values() for drop in entry["row"]["drops"]]
    details = {drop["reason"]: drop["detail"] for drop in drops if drop["detail"]}
    report = {
        "source": config.data.source,
        "agents": {role: agent.model.name for role, agent in agents.items()},
        "problems": {
            "read": len(problems.rows) + sum(map(len, problems.left_out.values())),
            "left_out": {reason: len(places) for reason, places in problems.left_out.items()},
            "finished": len(entries),
            "without_a_set": sum(not entry["row"]["sets"] for entry in entries.values()),
        },
        "left_out_at": {reason: places[:_SHOWN] for reason, places in problems.left_out.items()},
        "open": len(unanswered),
        "open_errors": sorted(set(unanswered))[:_SHOWN],
        "sets": {"asked": config.sets * len(entries), "kept": sum(map(len, made.values()))},
        "drops": dict(Counter(drop["reason"] for drop in drops).most_common()),
        "drop_details": details,
        "figures": figures([row for rows in made.values() for row in rows]),
        "rows": {name: dict(by_split) for name, by_split in counts.items()},
        "usage": {"by_agent": usage.by_role(agents), "columns": list(COUNTS), "cost": usage.cost(agents)},
        "config": json.loads(json.dumps(config.to_dict())),
    }
    write_json(folder / "report.json", report)
    write_text(folder / "report.md", page(report, made))
    return report


def figures(rows: Sequence[Decomposition]) -> dict[str, Any]:
    """Computes figures of decompositions: correctness, usefulness, how the two go together, lengths."""
    if not rows:
        return {}
    correct = pass_at_1([[row.correctness for row in group] for group in by_problem(rows).values()])
    low, high = correct.interval()
    judged = [row for row in rows if row.usefulness]
    usefulness = Counter(round(value, 3) for row in judged for value in row.usefulness)
    lengths = Counter(len(row.sub_questions) for row in rows)
    return {
        "correctness": [correct.value, low, high],
        "usefulness": {f"{value:g}": count for value, count in sorted(usefulness.items())},
        "mean_usefulness": [
            _mean([row.mean_usefulness for row in judged if row.correctness == value]) for value in (0, 1)
        ],
        "correlation": _correlation(judged),
        "sub_questions": {str(count): number for count, number in sorted(lengths.items())},
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _correlation(rows: Sequence[Decomposition]) -> float | None:
    """Returns Pearson's correlation of mean usefulness and correctness; None where one does not vary."""
    pairs = np.array([[row.mean_usefulness, row.correctness] for row in rows]).reshape(-1, 2)
    if len(pairs) < 2 or not pairs.std(axis=0).all():
        return None
    return float(np.corrcoef(pairs.T)[0, 1])


def page(report: Mapping[str, Any], made: Mapping[str, Sequence[Decomposition]]) -> str:
    """Writes the report for people."""
    problems, sets = report["problems"], report["sets"]
    names = list(dict.fromkeys(split for by_split in report["rows"].values() for split in by_split))
    rows = [[name, *(str(by_split.get(split, 0)) for split in names)] for name, by_split in report["rows"].items()]
    return "\n".join(
        [
            "# Decompositions",
            "",
            f"{sets['kept']} of {sets['asked']} sets of sub-questions are kept, of {problems['finished']} problems of "
            f"{report['source']}. Teacher: {', '.join(dict.fromkeys(report['agents'].values()))}.",
            "",
            *_left_out(report),
            *_figures(report["figures"]),
            "## Data sets",
            "",
            markdown(["data set", *names], rows),
            "## Sets that are missing",
            "",
            markdown(["reason", "sets"], [[reason, str(count)] for reason, count in report["drops"].items()])
            if report["drops"]
            else "none\n",
            "## Requests",
            "",
            markdown(
                ["agent", "requests", "from the cache", "asked again", "prompt tokens", "completion tokens"],
                [[role, *map(str, used.values())] for role, used in report["usage"]["by_agent"].items()],
            ),
            f"Cost of all requests of finished problems at the given prices: {report['usage']['cost']:.4f}.",
            "",
            "## Samples",
            "",
            *_samples([row for rows in made.values() for row in rows]),
        ]
    )


def _left_out(report: Mapping[str, Any]) -> list[str]:
    found = [
        f"{count} rows are left out, {reason}: {'; '.join(report['left_out_at'][reason])}"
        for reason, count in report["problems"]["left_out"].items()
    ]
    if report["problems"]["without_a_set"]:
        found.append(f"{report['problems']['without_a_set']} problems have no set that could be used.")
    if report["open"]:
        found.append(
            f"{report['open']} problems got no reply; the same command asks them again. Errors: "
            f"{'; '.join(report['open_errors'])}"
        )
    found += [f"{reason}: {detail[:200]}" for reason, detail in report["drop_details"].items()]
    return [*(f"* {each}" for each in found), *([""] if found else [])]


def _figures(found: Mapping[str, Any]) -> list[str]:
    if not found:
        return []
    value, low, high = found["correctness"]
    wrong, right = found["mean_usefulness"]
    return [
        "## Rewards",
        "",
        f"Answers that are right: {100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}] (95 %, clustered by problem).",
        "",
        f"Mean usefulness of sets with a right answer {_number(right)}, with a wrong one {_number(wrong)}; correlation "
        f"{_number(found['correlation'])}.",
        "",
        markdown(["usefulness", "sub-questions"], [[name, str(count)] for name, count in found["usefulness"].items()])
        if found["usefulness"]
        else "Nobody was asked about usefulness.\n",
        markdown(["sub-questions", "sets"], [[name, str(count)] for name, count in found["sub_questions"].items()]),
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _samples(rows: Sequence[Decomposition]) -> list[str]:
    """Shows the first sets with a right and with a wrong answer."""
    lines = []
    for title, correctness in (("right", 1), ("wrong", 0)):
        for row in [row for row in rows if row.correctness == correctness][:_SAMPLES]:
            useful = ", ".join(f"{value:.2f}" for value in row.usefulness) or "not asked"
            text = f"{row.question}\n{numbered(row.sub_questions)}\nusefulness: {useful}"
            lines += [f"### {title} answer", "", *(f"    {line}" for line in text.splitlines()), ""]
    return lines
