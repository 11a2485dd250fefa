"""Recomputes the published table of decomposition policies from the responses that were released, in seconds.

    python -m experiments.decomposition.published --data=FOLDER --out=FOLDER

FOLDER holds the responses of GSM8K-AI-SubQ (github.com/DT6A/GSM8K-AI-SubQ, Apache-2.0; Tarasov and Shridhar, arXiv
2402.01812), as files `responses_SOLVER_POLICY.jsonl[.gz]`, or as in the repository `eval_responses/SOLVER/eval_POLICY.jsonl`,
and `qg_test_data_raw.jsonl[.gz]` with GSM8K's own answers. A policy wrote sub-questions for the 1,319 test problems, a solver
answered them. Prints accuracy with 95 % intervals, the exact McNemar test of each pair of policies with one solver, figures
that need no solver, and what the published parser of numbers changes: it takes the first number behind "final answer:" without
its sign and without what follows a thousands separator, of the gold answers too.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import app, flags

from experiments.decomposition.released import SOLVERS, Policy, find_responses, gold_answers, key_of, read_rows
from experiments.decomposition.text_scores import text_scores
from smallr.core.comparison import markdown
from smallr.core.errors import UserError
from smallr.evals.graders.matching import close, to_decimal
from smallr.evals.statistics import mcnemar, pass_at_1
from smallr.methods.decomposition.answers import final_number, published_answer, published_number


@dataclasses.dataclass(frozen=True)
class Graded:
    """Which of the problems a policy and a solver got right, by our parser and by the published one."""

    right: list[bool]
    published: list[bool]


def grade(rows: Sequence[Mapping], golds: Mapping[str, str]) -> Graded:
    """Grades responses.

    Args:
      rows: with `problem` and `answers`, the solver's reply.
      golds: as `gold_answers` gives them.

    Raises:
      UserError: a problem that is none of the test set's.
    """
    right, published = [], []
    for index, row in enumerate(rows):
        if key_of(row["problem"]) not in golds:
            raise UserError(f"row {index}: {row['problem'][:60]!r} is none of the problems of qg_test_data_raw.jsonl")
        gold, found = golds[key_of(row["problem"])], final_number(row["answers"])
        number = to_decimal(found) if found is not None else None
        right.append(number is not None and close(number, to_decimal(gold)))
        published.append(published_answer(row["answers"]) == published_number(gold))
    return Graded(right, published)


Table = dict[tuple[str, Policy], Graded]


def accuracies(graded: Table, published: bool) -> str:
    """Writes accuracy in percent with its 95 % interval, one line a policy and one column a solver."""
    solvers = [solver for solver in SOLVERS if any(key[0] == solver for key in graded)]
    lines = []
    for policy in dict.fromkeys(key[1] for key in graded):
        cells = []
        for solver in solvers:
            found = graded.get((solver, policy))
            scores = (found.published if published else found.right) if found else []
            estimate = pass_at_1([[float(score)] for score in scores])
            low, high = estimate.interval()
            cells.append(f"{100 * estimate.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]" if scores else "–")
        lines.append([str(policy), *cells])
    return markdown(["policy", *solvers], lines)


def comparisons(graded: Table, solver: str, *, one_size: bool, level: float = 0.05) -> str:
    """Writes the exact McNemar test of pairs of policies with one solver, by our parser; the level is Holm's, over the table.

    Args:
      graded: every set of responses.
      solver: whose.
      one_size: pairs of policies of one student; else all other pairs.
      level: of significance.
    """
    policies = [policy for name, policy in graded if name == solver]
    tests = []
    for a, b in itertools.combinations(policies, 2):
        if (a.size == b.size) == one_size:
            pair = [graded[solver, policy].right for policy in (a, b)]
            better = sum(y and not x for x, y in zip(*pair, strict=True))
            worse = sum(x and not y for x, y in zip(*pair, strict=True))
            tests.append((mcnemar(better, worse), a, b, better, worse))
    lines, holds = [], True
    for rank, (p, a, b, better, worse) in enumerate(sorted(tests, key=lambda test: test[0])):
        holds = holds and p <= level / (len(tests) - rank)
        verdict = "differ" if holds else "alone" if p <= level else ""
        lines.append([str(b), str(a), str(better), str(worse), f"{p:.2g}", verdict])
    return markdown(["policy", "against", "only it right", "only the other", "p", "verdict"], lines)


def report(folder: Path) -> str:
    """Writes the page."""
    golds = gold_answers(folder)
    graded = {(solver, policy): grade(read_rows(path), golds) for solver, policy, path in find_responses(folder)}
    lost = [
        (gold, published_number(gold)) for gold in golds.values() if published_number(gold) != float(to_decimal(gold))
    ]
    parts = ["# The published decomposition policies, recomputed", ""]
    for published in (False, True):
        parts += [f"## Accuracy in percent, {'the published parser' if published else 'our parser'}", ""]
        parts += [accuracies(graded, published)]
    parts += [f"## {len(lost)} gold answers that the published parser changes", ""]
    parts += [", ".join(f"{gold} → {found:g}" for gold, found in lost), ""]
    for solver in dict.fromkeys(key[0] for key in graded):
        for name, one_size in (("of one student", True), ("of different students, and ChatGPT", False)):
            parts += [f"## Pairs of policies {name}, solver {solver}: exact McNemar test, our parser", ""]
            parts += ["differ: also after Holm's correction over the table; alone: only by itself.", ""]
            parts += [comparisons(graded, solver, one_size=one_size)]
    parts += ["## Without a solver: sub-questions against ChatGPT's own", "", text_scores(folder)]
    return "\n".join(parts)


def main(argv: list[str]) -> None:
    """Prints the page, and writes it where asked."""
    del argv
    try:
        page = report(Path(DATA.value))
    except UserError as error:
        raise SystemExit(str(error)) from None
    print(page)
    if OUT.value:
        Path(OUT.value).mkdir(parents=True, exist_ok=True)
        (Path(OUT.value) / "report.md").write_text(page)


if __name__ == "__main__":
    DATA = flags.DEFINE_string("data", None, "Folder of the released responses", required=True)
    OUT = flags.DEFINE_string("out", None, "Folder for report.md")
    app.run(main)
