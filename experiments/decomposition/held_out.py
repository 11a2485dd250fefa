"""Splits the published test half into problems to train on and problems to measure on, and scores students on the latter.

    python -m experiments.decomposition.held_out --data=FOLDER --out=FOLDER                          writes train.jsonl, test.jsonl
    python -m experiments.decomposition.held_out --data=FOLDER --out=FOLDER --students=BC=FOLDER,…   and report.md

The published training half is larger than what copies of the repository hold, so students of our own can only learn from
ChatGPT's sub-questions of test problems, one set each, without usefulness. FOLDER of --data is that of
`experiments.decomposition.published`. A student is a name and the folder of `smallr decompose --solve` on test.jsonl; the first
one is what the others are compared with. The released policies are scored beside them on the same problems. They learned from
the training half: three sets of sub-questions of each of 7,473 problems.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from experiments.decomposition.released import key_of, read_rows, teacher_rows
from experiments.decomposition.text_scores import sets_of
from smallr.core.comparison import markdown
from smallr.core.errors import UserError
from smallr.core.files import write_text
from smallr.evals.statistics import bootstrap, paired_difference
from smallr.methods.decomposition.metrics import score_texts
from smallr.methods.decomposition.raw import read_numbered

Written = Mapping[str, Sequence[str]]  # sub-questions by `key_of` their problem
MEASURES = ("granularity", "bleu", "repeated", "sub-questions")


def split_rows(folder: Path, held_out: int) -> tuple[list[dict], list[dict]]:
    """Returns rows in the published layout, with GSM8K's answer: those to train on, and `held_out` that a digest draws.

    Raises:
      UserError: the file is missing, or it has fewer problems.
    """
    paths = [*folder.glob("qg_test_dataset.jsonl*"), *folder.glob("dataset/qg_test_dataset.jsonl*")]
    if not paths:
        raise UserError(f"--data={folder}: qg_test_dataset.jsonl[.gz] is missing, which has the rewards")
    golds = {key_of(row["problem"]): row["answer"] for row in teacher_rows(folder)}
    rows = [row | {"answer": golds[key_of(row["question"])]} for row in read_rows(paths[0])]
    if not 0 < held_out < len(rows):
        raise UserError(f"--test={held_out} must leave some of the {len(rows)} problems on both sides")
    rows.sort(key=lambda row: hashlib.sha256(f"held out {row['question']}".encode()).digest())
    return rows[held_out:], rows[:held_out]


def read_student(folder: Path) -> Written:
    """Reads what a student wrote.

    Raises:
      UserError: nothing is there.
    """
    path = folder / "solved.jsonl"
    if not path.exists():
        raise UserError(f"--students: {path} is missing; smallr decompose --solve --out={folder} writes it")
    return {key_of(row["problem"]): read_numbered(row["questions"]) for row in read_rows(path)}


def released_policies(folder: Path) -> dict[str, Written]:
    """Returns the sub-questions of the released students; of a policy whose solvers got different ones, each set."""
    sets = {key: solvers for key, solvers in sets_of(folder).items() if key[0].size}
    count = Counter(policy for policy, _ in sets)
    found: dict[str, Written] = {}
    for (policy, texts), solvers in sets.items():
        name = str(policy) if count[policy] == 1 else f"{policy}, asked of {', '.join(solvers)}"
        found[name] = {key: read_numbered(text) for key, text in texts}
    return found


def values_of(written: Written, test: Sequence[Mapping]) -> dict[str, list[float]]:
    """Returns each measure of each problem.

    Raises:
      UserError: a problem is missing.
    """
    found: dict[str, list[float]] = {name: [] for name in MEASURES}
    for row in test:
        texts = written.get(key_of(row["question"]))
        if texts is None:
            raise UserError(f"no sub-questions of {row['question'][:60]!r}: were they written for this test.jsonl?")
        scores = score_texts(texts, row["answers"])
        each = (scores.granularity, scores.bleu, float(scores.repeated), float(len(texts)))
        for name, value in zip(MEASURES, each, strict=True):
            found[name].append(value)
    return found


def shown(values: Sequence[float]) -> str:
    """Writes a mean with the 95 % interval of a bootstrap over problems."""
    low, high = bootstrap(np.array(values)[:, None], lambda sums: sums[..., 0] / len(values))
    return f"{np.mean(values):.3f} [{low:.3f}, {high:.3f}]"


def scores_table(policies: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Writes each policy's measures."""
    lines = [[name, *(shown(values[measure]) for measure in MEASURES)] for name, values in policies.items()]
    return markdown(["policy", *MEASURES], lines)


def differences_table(policies: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Writes what each policy has more than the first one, with the interval of a paired bootstrap over problems."""
    (first, before), *others = policies.items()
    lines = []
    for name, values in others:
        cells = []
        for measure in MEASURES:
            found = paired_difference(*([[value] for value in each[measure]] for each in (before, values)))
            cells.append(f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")
        lines.append([name, *cells])
    return markdown([f"minus {first}", *MEASURES], lines)


def report(folder: Path, students: Mapping[str, Path], test: Sequence[Mapping]) -> str:
    """Writes the page."""
    ours = {name: values_of(read_student(path), test) for name, path in students.items()}
    theirs = {name: values_of(written, test) for name, written in released_policies(folder).items()}
    title = f"# Sub-questions of {len(test)} held-out problems against ChatGPT's own, without a solver"
    return "\n".join([title, "", scores_table(ours | theirs), differences_table(ours | theirs)])


def main(argv: list[str]) -> None:
    """Writes the rows, and the page where there are students."""
    del argv
    folder, out = Path(DATA.value), Path(OUT.value)
    pairs = [each.partition("=") for each in STUDENTS.value]
    if wrong := [name for name, equals, path in pairs if not (name and equals and path)]:
        raise SystemExit(f"--students: {wrong[0]!r} must be NAME=FOLDER")
    try:
        train, test = split_rows(folder, TEST.value)
        out.mkdir(parents=True, exist_ok=True)
        for name, rows in (("train", train), ("test", test)):
            write_text(out / f"{name}.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
        if pairs:
            page = report(folder, {name: Path(path) for name, _, path in pairs}, test)
            write_text(out / "report.md", page)
            print(page)
        else:
            print(f"{len(train)} problems to train on and {len(test)} to measure on: {out}")
    except UserError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    DATA = flags.DEFINE_string("data", None, "Folder of the released responses", required=True)
    OUT = flags.DEFINE_string("out", None, "Folder for train.jsonl, test.jsonl and report.md", required=True)
    TEST = flags.DEFINE_integer("test", 400, "Problems to measure on")
    STUDENTS = flags.DEFINE_list("students", [], "NAME=FOLDER of smallr decompose --solve; the first is the baseline")
    app.run(main)
