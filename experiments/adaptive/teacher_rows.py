"""Reads published teacher data (question, rationale, answer) from the files as they were published.

    python -m experiments.adaptive.teacher_rows --data=FOLDER --task=palm_svamp --out=FOLDER

Files are found by name anywhere below FOLDER, gzipped or not:

  palm_cqa    cqa_train.jsonl, cqa_test.jsonl: CommonsenseQA with rationales of PaLM 540B (Hsieh et al., arXiv 2305.02301)
  palm_svamp  svamp_train.jsonl, svamp_test.jsonl: SVAMP, likewise
  gsm8k       train.jsonl and test.jsonl in a folder gsm8k (Cobbe et al., arXiv 2110.14168), solutions written by people
  coin_flip, last_letter_concatenation, tracking_shuffled_objects, date_understanding
              .json of Fine-tune-CoT (Ho et al., arXiv 2212.10071); rationales by rule, see `small_tasks`

Training rows without a rationale that leads to the right answer (a quarter of PaLM's do not) are left out and counted; test rows
are all there. The small tasks have one file: 30 % of it, drawn once, is held out. Questions about the same story stay on one
side, and share a `group`.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.adaptive.small_tasks import MORE, RULES, Groups
from smallr.core.errors import UserError

SPLITS = ("train", "test")
HELD_OUT = 0.3  # of a small task: 150 of 500 coin flips, as in the paper


@dataclasses.dataclass(frozen=True)
class Row:
    """Holds a row of teacher data.

    Attributes:
      question, answer: text.
      rationale: None where the teacher has none for this question.
      task: name of the task.
      group: rows of a task with the same group are not independent.
      items: groups of texts of which one may be mistaken for another of its group (`corruption`).
    """

    question: str
    rationale: str | None
    answer: str
    task: str
    group: int
    items: Groups = ()


@dataclasses.dataclass(frozen=True)
class Rows:
    """Holds both splits of a task, and what was left out and why."""

    train: list[Row]
    test: list[Row]
    left_out: Counter[str]


def read(task: str, data: Path) -> Rows:
    """Reads both splits of a task.

    Raises:
      UserError: an unknown task, or a file that is missing or has other fields.
    """
    if task not in READERS:
        raise UserError(f"task {task!r} must be one of: {', '.join(READERS)}")
    left_out: Counter[str] = Counter()
    if task in RULES:
        path = find(data, READERS[task])
        try:
            train, test = _by_rule(task, path)
        except KeyError as error:
            raise UserError(f"{path}: a row without the field {error}") from error
        return Rows(_usable(train, left_out), test, left_out)
    splits = []
    for split in SPLITS:
        path = find(data, READERS[task].format(split=split))
        lines = [json.loads(line) for line in _text(path).splitlines() if line.strip()]
        try:
            splits.append([_MAKERS[task](index, row) for index, row in enumerate(lines)])
        except KeyError as error:
            raise UserError(f"{path}: a row without the field {error}") from error
    return Rows(_usable(splits[0], left_out), splits[1], left_out)


def find(data: Path, name: str) -> Path:
    """Returns the file of that name (`folder/name`, if given so) below `data`, gzipped or not.

    Raises:
      UserError: there is none.
    """
    for wanted in (name, f"{name}.gz"):
        found = sorted(data.glob(f"**/{wanted}"))
        if found:
            return found[0]
    raise UserError(f"{data}: no {name} or {name}.gz below it")


def more(
    task: str, rows: Sequence[Row], count: int, seed: int, avoid: Sequence[Row] = (), people: int = 4
) -> list[Row]:
    """Returns rows of the same form as those of a small task, with their names and stories.

    Args:
      task: one of `small_tasks.MORE`.
      rows: from which names and stories are taken.
      count: how many; no two are equal.
      seed: of the draws.
      avoid: no question of these is made.
      people: that flip a coin or are spelt.
    """
    rng = random.Random(f"{task} {seed} {people}")
    questions, taken = [row.question for row in rows], {row.question for row in avoid}
    made: list[Row] = []
    while len(made) < count:
        question = MORE[task](questions, people, rng)
        derived = RULES[task](question, "")
        assert derived is not None
        if question not in taken:
            taken.add(question)
            made.append(Row(question, derived.rationale, derived.answer, task, len(made), derived.items))
    return made


def _usable(rows: Sequence[Row], left_out: Counter[str]) -> list[Row]:
    left_out["no rationale that leads to the answer"] += sum(row.rationale is None for row in rows)
    return [row for row in rows if row.rationale is not None]


def _by_rule(task: str, path: Path) -> tuple[list[Row], list[Row]]:
    rows: list[Row] = []
    groups: dict[str, int] = {}
    for row in json.loads(_text(path)):
        derived = RULES[task](row["question"], row["answer"])
        if derived is None or derived.answer != row["answer"]:
            derived = None
        story = groups.setdefault(_story(task, row["question"]), len(groups))
        rationale, items = (derived.rationale, derived.items) if derived else (None, ())
        rows.append(Row(row["question"], rationale, row["answer"], task, story, items))
    order = list(groups.values())
    random.Random(task).shuffle(order)
    held_out = set(order[: round(HELD_OUT * len(order))])
    return [row for row in rows if row.group not in held_out], [row for row in rows if row.group in held_out]


def _story(task: str, question: str) -> str:
    """Returns what several questions of a task have in common."""
    separator = {"tracking_shuffled_objects": " At the end of", "date_understanding": " What is the date"}.get(task)
    return question.rpartition(separator)[0] if separator else question


def _palm_cqa(index: int, row: dict[str, Any]) -> Row:
    listed = ", ".join(f"({letter}) {choice}" for letter, choice in zip("abcde", row["choices"], strict=False))
    question, choices = f"{row['question']} Answer choices: {listed}", tuple(dict.fromkeys(row["choices"]))
    return Row(question, _if_right(row), row["answer"], "palm_cqa", index, (choices,))


def _palm_svamp(index: int, row: dict[str, Any]) -> Row:
    return Row(" ".join(row["question"].split()), _if_right(row), f"{row['answer']:g}", "palm_svamp", index)


def _if_right(row: dict[str, Any]) -> str | None:
    return (row["palm_rationale"].strip() or None) if row["palm_correct"] else None


def _gsm8k(index: int, row: dict[str, Any]) -> Row:
    solution, _, answer = row["answer"].rpartition("####")
    rationale = re.sub(r"<<[^>]*>>", "", solution).strip()  # the calculator's annotations
    return Row(row["question"], rationale or None, answer.strip().replace(",", ""), "gsm8k", index)


_MAKERS = {"palm_cqa": _palm_cqa, "palm_svamp": _palm_svamp, "gsm8k": _gsm8k}
READERS = {
    "palm_cqa": "cqa_{split}.jsonl",
    "palm_svamp": "svamp_{split}.jsonl",
    "gsm8k": "gsm8k/{split}.jsonl",
    **{task: f"{task}.json" for task in RULES},
}


def _text(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Writes JSON lines with the columns `question`, `rationale`, `answer`, and the task."""
    fields = ("question", "rationale", "answer", "task")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({name: getattr(row, name) for name in fields}) + "\n" for row in rows))


def main(argv: list[str]) -> None:
    """Writes train.jsonl and test.jsonl, for config.data.kind=rationale."""
    del argv
    rows = read(TASK.value, Path(DATA.value))
    for split in SPLITS:
        write_rows(getattr(rows, split), Path(OUT.value) / f"{split}.jsonl")
    print(
        f"{len(rows.train)} train, {len(rows.test)} test rows in {OUT.value}; left out of train: {dict(rows.left_out)}"
    )


if __name__ == "__main__":
    DATA = flags.DEFINE_string("data", None, "Folder of the published files", required=True)
    TASK = flags.DEFINE_enum("task", None, list(READERS), "Which", required=True)
    OUT = flags.DEFINE_string("out", None, "Folder to write", required=True)
    app.run(main)
