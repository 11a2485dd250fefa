"""Recomputes the published table of decomposition policies from the responses that were released, in seconds.

    python -m experiments.decomposition.published --data=FOLDER --out=FOLDER

FOLDER holds the responses of GSM8K-AI-SubQ (github.com/DT6A/GSM8K-AI-SubQ, Apache-2.0; Tarasov and Shridhar, arXiv
2402.01812), as files `responses_SOLVER_POLICY.jsonl[.gz]`, or as in the repository `eval_responses/SOLVER/eval_POLICY.jsonl`,
and `qg_test_data_raw.jsonl[.gz]` with GSM8K's own answers. A policy wrote sub-questions for the 1,319 test problems, a solver
answered them. Prints accuracy with 95 % intervals, the exact McNemar test of each pair of policies with one solver, and what
the published parser of numbers changes: it takes the first number behind "final answer:" without its sign and without what
follows a thousands separator, of the gold answers too.
"""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from absl import app, flags

from smallr.core.comparison import markdown
from smallr.core.errors import UserError
from smallr.evals.graders.matching import close, to_decimal
from smallr.evals.statistics import mcnemar, pass_at_1
from smallr.methods.decomposition.answers import final_number, published_answer, published_number

POLICIES = {  # name in the files -> in the tables
    "finetune": "BC",
    "filtered_bc": "filtered BC",
    "iql": "ILQL full",
    "iql_sparse": "ILQL sparse",
    "chat": "ChatGPT's own",
}
SIZES = {"dist": "DistilGPT2", "": "GPT-2 small", "medium": "GPT-2 medium"}
SOLVERS = ("chatgpt", "llama7b", "llama13b", "mistral")


@dataclasses.dataclass(frozen=True)
class Policy:
    """Who wrote the sub-questions: a method and the size of the student (empty for ChatGPT)."""

    method: str
    size: str

    @classmethod
    def named(cls, name: str) -> Policy:
        """Reads the name of a file, e.g. `iql_medium_sparse`; the size stands before `sparse`, and none is GPT-2 small.

        Raises:
          UserError: a name that is none of the released ones.
        """
        parts = name.split("_")
        size = next((part for part in parts if part in SIZES), "")
        method = "_".join(part for part in parts if part != size)
        if method not in POLICIES:
            raise UserError(
                f"responses of {name!r}: the policy must be one of: {', '.join(POLICIES)}, with dist or medium"
            )
        return cls(POLICIES[method], "" if method == "chat" else SIZES[size])

    def __str__(self) -> str:
        return f"{self.method}, {self.size}" if self.size else self.method


def read_rows(path: Path) -> list[dict]:
    """Reads JSON lines, packed by gzip or not."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        return [json.loads(line) for line in lines]


def find_responses(folder: Path) -> Iterator[tuple[str, Policy, Path]]:
    """Yields solver, policy and file of each set of responses.

    Raises:
      UserError: there are none.
    """
    flat = [path for path in sorted(folder.glob("responses_*.jsonl*"))]
    found = [(path.name.split("_")[1], path.name.split("_", 2)[2].split(".")[0], path) for path in flat]
    for path in sorted(folder.glob("eval_responses/*/eval_*.jsonl")):
        found.append((path.parent.name, path.stem.removeprefix("eval_"), path))
    if not found:
        raise UserError(
            f"--data={folder}: no file responses_SOLVER_POLICY.jsonl[.gz] and no eval_responses/SOLVER in it"
        )
    for solver, policy, path in found:
        yield solver, Policy.named(policy), path


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
        if _key(row["problem"]) not in golds:
            raise UserError(f"row {index}: {row['problem'][:60]!r} is none of the problems of qg_test_data_raw.jsonl")
        gold, found = golds[_key(row["problem"])], final_number(row["answers"])
        number = to_decimal(found) if found is not None else None
        right.append(number is not None and close(number, to_decimal(gold)))
        published.append(published_answer(row["answers"]) == published_number(gold))
    return Graded(right, published)


def _key(problem: str) -> str:
    """Returns a problem without spaces: students that copied a problem into their output changed some of them."""
    return "".join(problem.split())


def gold_answers(folder: Path) -> dict[str, str]:
    """Reads GSM8K's answers behind "####", by the `_key` of their problems.

    Raises:
      UserError: the file is missing.
    """
    paths = [*folder.glob("qg_test_data_raw.jsonl*"), *folder.glob("dataset/qg_test_data_raw.jsonl*")]
    if not paths:
        raise UserError(f"--data={folder}: qg_test_data_raw.jsonl[.gz] is missing, which has the answers")
    return {_key(row["problem"]): row["answer"].rpartition("####")[2].strip() for row in read_rows(paths[0])}


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


def comparisons(graded: Table, solver: str, published: bool, level: float = 0.05) -> str:
    """Writes the exact McNemar test of each pair of policies of one size with one solver; the level is Holm's, over the table."""
    policies = [policy for name, policy in graded if name == solver and policy.size]
    tests = []
    for a, b in itertools.combinations(policies, 2):
        if a.size == b.size:
            pair = [graded[solver, p].published if published else graded[solver, p].right for p in (a, b)]
            better = sum(y and not x for x, y in zip(*pair, strict=True))
            worse = sum(x and not y for x, y in zip(*pair, strict=True))
            tests.append((mcnemar(better, worse), a, b, better, worse))
    lines, holds = [], True
    for rank, (p, a, b, better, worse) in enumerate(sorted(tests, key=lambda test: test[0])):
        holds = holds and p <= level / (len(tests) - rank)
        verdict = "differ" if holds else "alone" if p <= level else ""
        lines.append([a.size, b.method, a.method, str(better), str(worse), f"{p:.4f}", verdict])
    return markdown(["student", "policy", "against", "only it right", "only the other", "p", "verdict"], lines)


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
        parts += [f"## Pairs of policies, solver {solver}: exact McNemar test, our parser", ""]
        parts += ["differ: also after Holm's correction over the table; alone: only by itself.", ""]
        parts += [comparisons(graded, solver, published=False)]
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
