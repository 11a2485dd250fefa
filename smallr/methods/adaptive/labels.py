"""Rows of a router: which questions the student had better think about, by its own likelihoods. [smallr's own]

A row's label is 0, `answer`, if the log-perplexity of its gold answer given the question is at most that given the
question and the student's own rationale, plus a margin; else 1, `think`.

    python -m smallr.methods.adaptive.labels --model=RUN_OR_MODEL --data=ROWS --out=FOLDER

writes them as a data set; in a run of configs/adaptive/router.py `Labeller` does it on the way and keeps them in a cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from smallr.core.cache import cache_dir
from smallr.core.errors import UserError
from smallr.training.digest import tree_digest
from smallr.training.progress import log

if TYPE_CHECKING:
    from smallr.methods.adaptive.student import Student

VERSION = 1  # of what is cached
NEEDED = ("question", "answer")


def label_rows(
    student: Student, rows: datasets.Dataset, *, margin: float = 0.0, max_tokens: int = 256
) -> datasets.Dataset:
    """Rows of kind `choice`, with what they were judged by.

    Args:
      student: that is to be routed.
      rows: with `question` and `answer`.
      margin: nats a token by which thinking has to be better.
      max_tokens: of the student's own rationale and answer.

    Returns:
      The rows that could be judged, with `label`, `nll_answer` and `nll_think` (nats a token), `rationale` (the student's
      own, as far as it came) and `finished` (whether it came to an answer).

    Raises:
      UserError: a column is missing, or no row could be judged.
    """
    if missing := [name for name in NEEDED if name not in rows.column_names]:
        raise UserError(f"labels need the columns {', '.join(NEEDED)}; missing {missing[0]}")
    questions, answers = ([(text or "").strip() for text in rows[name]] for name in NEEDED)
    thought = student.answer(questions, ["think"] * len(questions), max_tokens=max_tokens).items
    first = np.asarray(student.answer_nll(questions, answers))
    second = np.asarray(student.answer_nll(questions, answers, [item.rationale for item in thought]))
    columns = {
        "question": questions,
        "answer": answers,
        "label": (first > second + margin).astype(int).tolist(),
        "nll_answer": first.tolist(),
        "nll_think": second.tolist(),
        "rationale": [item.rationale for item in thought],
        "finished": [item.complete for item in thought],
    }
    judged = np.flatnonzero(np.isfinite(first) & np.isfinite(second))
    if not judged.size:
        raise UserError(
            f"none of {len(questions)} rows could be labelled: they are empty, too long, or hold the separator"
        )
    return datasets.Dataset.from_dict(columns).select(judged.tolist())


def report(labelled: datasets.Dataset, total: int) -> str:
    """A line on what was found."""
    think, finished = np.asarray(labelled["label"]), np.asarray(labelled["finished"])
    gain = np.asarray(labelled["nll_answer"]) - np.asarray(labelled["nll_think"])
    return (
        f"labels: {len(think)} of {total} rows, {think.sum()} to think about ({think.mean():.1%}); thinking changes the answer's "
        f"log-perplexity by {-np.mean(gain):+.3f} nats a token; {np.sum(~finished)} rationales without an end"
    )


class Labeller:
    """Labels the rows of a run that has `config.labels`, with `config.model` as the student; the result is cached.

    After the last split of the run the student is freed.

    Args:
      config: of the run.
    """

    def __init__(self, config: ConfigDict):
        self._config, self._student = config, None
        self._left = 2 if config.data.eval else 1

    def __call__(self, rows: datasets.Dataset) -> datasets.Dataset:
        """Rows with `label`, as they are where they have one or nobody asked."""
        if "labels" not in self._config or "label" in rows.column_names:
            return rows
        if jax.process_count() > 1:
            raise UserError(
                "config.labels: rows are labelled in one process: write them with "
                "`python -m smallr.methods.adaptive.labels` and give its folder as config.data.train"
            )
        folder = cache_dir("labels") / self._name(rows)
        if folder.exists():
            found = datasets.load_from_disk(str(folder))
        else:
            fields = self._config.labels
            found = label_rows(self._opened(), rows, margin=fields.margin, max_tokens=fields.max_tokens)
            _save(found, folder)
        log(report(found, len(rows)))
        self._left -= 1
        if not self._left:
            self._student = None
        return found

    def _opened(self) -> Student:
        from smallr.methods.adaptive.opening import open_student

        if self._student is None:
            config = self._config
            self._student = open_student(
                config.model,
                tokenizer=config.tokenizer,
                formats=dict(config.student.formats.items()),
                chat=config.data.chat,
                prompts=config.student.prompts,
                slots=config.labels.slots,
            )
        return self._student

    def _name(self, rows: datasets.Dataset) -> str:
        """Hash of all that the labels depend on but the number of slots."""
        config, student = self._config, self._opened()
        with jax.set_mesh(student.mesh):
            weights = tree_digest(nnx.state(student.decoder))  # its soft prompts included
        texts = student.tokenizer.backend_tokenizer.to_str() + (student.tokenizer.chat_template or "")
        fields = [VERSION, weights, texts, config.data.chat, dict(config.student.formats.items())]
        fields += [config.labels.margin, config.labels.max_tokens, *(list(rows[name]) for name in NEEDED)]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]


def _save(rows: datasets.Dataset, folder: Path) -> None:
    """At once or not at all; another process that was faster has written the same."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as scratch:
        rows.save_to_disk(str(Path(scratch) / "rows"))
        with contextlib.suppress(OSError):
            os.replace(Path(scratch) / "rows", folder)


def _command(argv: list[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m smallr.methods.adaptive.labels", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", required=True, help="Run, checkpoint or model: the student")
    parser.add_argument("--data", required=True, help="Rows with question and answer, as config.data.train names them")
    parser.add_argument("--split", default="train")
    parser.add_argument("--out", required=True, type=Path, help="Folder to write; must not exist")
    parser.add_argument("--prompts", default="", help="Folder of mode prompts")
    parser.add_argument("--margin", type=float, default=0.0, help="Nats a token by which thinking has to be better")
    parser.add_argument("--max_tokens", type=int, default=256)
    parser.add_argument("--slots", type=int, default=32)
    args = parser.parse_args(argv)
    try:
        _write(**vars(args))
    except UserError as error:
        sys.exit(f"smallr: {error}")


def _write(*, model: str, data: str, split: str, out: Path, prompts: str, slots: int, **options: Any) -> None:
    from smallr.data.sources import load_rows
    from smallr.methods.adaptive.opening import open_student

    if out.exists():
        raise UserError(f"{out} exists: remove it, or write elsewhere with --out")
    rows = load_rows(data, split)
    found = label_rows(open_student(model, prompts=prompts, slots=slots), rows, **options)
    out.parent.mkdir(parents=True, exist_ok=True)
    _save(found, out)
    print(report(found, len(rows)))


if __name__ == "__main__":
    _command(sys.argv[1:])
