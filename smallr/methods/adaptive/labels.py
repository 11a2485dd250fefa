"""Makes a router's rows: which questions the student had better think about, by its own likelihoods. [smallr's own]

A row's label is 0, `answer`, if the log-perplexity of its gold answer given the question is at most that given the
question and the student's own rationale, plus a margin; else 1, `think`.

    smallr labels --model=RUN_OR_MODEL --data=ROWS --out=FOLDER

writes them as a data set; in a run of configs/adaptive/router.py `labelled_rows` does it before training and keeps them in a cache.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import jax
import numpy as np
from ml_collections import ConfigDict

from smallr.core.cache import cache_dir, cached_folder
from smallr.core.errors import UserError
from smallr.models.loading import RANDOM_SEED, open_model
from smallr.models.peft import CONFIG, base_of
from smallr.training.opening import open_trained
from smallr.training.progress import log
from smallr.training.rows import read_rows
from smallr.training.saved import find_run

if TYPE_CHECKING:
    from smallr.methods.adaptive.student import Student

NEEDED = ("question", "answer")


def label_rows(
    student: Student, rows: datasets.Dataset, *, margin: float = 0.0, max_tokens: int = 256
) -> datasets.Dataset:
    """Returns rows of kind `choice`, with what they were judged by.

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
    """Returns a line on what was found."""
    think, finished = np.asarray(labelled["label"]), np.asarray(labelled["finished"])
    gain = np.asarray(labelled["nll_answer"]) - np.asarray(labelled["nll_think"])
    return (
        f"labels: {len(think)} of {total} rows, {think.sum()} to think about ({think.mean():.1%}); thinking changes the answer's "
        f"log-perplexity by {-np.mean(gain):+.3f} nats a token; {np.sum(~finished)} rationales without an end"
    )


def labelled_rows(config: ConfigDict) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Returns the training and held-out rows of a run with `config.labels`, labelled by `config.model` as the student.

    Rows that have a label already are left as they are. Labels are kept in a cache: the student is loaded only if some
    are not there yet, and freed when this returns.

    Args:
      config: of the run.

    Raises:
      UserError: rows that cannot be labelled, or several processes.
    """
    splits = {name: found.rows for name in ("train", "eval") if (found := read_rows(config, name)) is not None}
    open_it, found = functools.cache(lambda: _opened(config)), {}
    key = _student_key(config) if any("label" not in rows.column_names for rows in splits.values()) else ""
    for name, rows in splits.items():
        found[name] = rows if "label" in rows.column_names else _labelled(rows, config, key, open_it)
    return found["train"], found.get("eval")


def _labelled(rows: datasets.Dataset, config: ConfigDict, key: str, student: Callable[[], Student]) -> datasets.Dataset:
    if jax.process_count() > 1:
        raise UserError(
            "config.labels: rows are labelled in one process: write them with "
            "`smallr labels` and give its folder as config.data.train"
        )
    if missing := [name for name in NEEDED if name not in rows.column_names]:
        raise UserError(f"labels need the columns {', '.join(NEEDED)}; missing {missing[0]}")
    content = hashlib.sha256(json.dumps([key, *(list(rows[name]) for name in NEEDED)]).encode())
    folder = cache_dir("labels") / content.hexdigest()[:32]

    def build(target: Path) -> None:
        labelled = label_rows(student(), rows, margin=config.labels.margin, max_tokens=config.labels.max_tokens)
        labelled.save_to_disk(str(target))

    found = datasets.load_from_disk(str(cached_folder(folder, build)))
    log(report(found, len(rows)))
    return found


def _opened(config: ConfigDict) -> Student:
    from smallr.methods.adaptive.opening import open_student

    return open_student(
        config.model,
        tokenizer=config.tokenizer,
        formats=dict(config.student.formats.items()),
        chat=config.data.chat,
        prompts=config.student.prompts,
        decode_slots=config.labels.decode_slots,
    )


def _student_key(config: ConfigDict) -> str:
    """Names all that the labels depend on but the rows; the number of decode slots is not among it."""
    tokenizer = open_trained(config.model, config.tokenizer).tokenizer()
    prompts = _content(sorted(Path(config.student.prompts).rglob("*"))) if config.student.prompts else ""
    parts = [_weights_key(config.model), prompts, tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template or ""]
    parts += [config.data.chat, dict(config.student.formats.items()), config.labels.margin, config.labels.max_tokens]
    return json.dumps(parts, sort_keys=True)


def _weights_key(name: str) -> str:
    """Names the weights of a model by the content of its files, without loading them."""
    path = Path(name).expanduser()
    if run := find_run(path):
        base = _weights_key(run.config["model"]) if run.checkpoint.metadata["frozen"] else ""
        return f"{run.checkpoint.digest} {base}"
    if (path / CONFIG).exists():
        return f"{_content(sorted(path.iterdir()))} {_weights_key(base_of(path))}"
    source = open_model(name)
    if source.folder is not None:
        return _content(sorted(source.folder.glob("*.safetensors")))
    if source.make_reader is None:
        return f"{name} {json.dumps(source.hf, sort_keys=True)} {RANDOM_SEED} {jax.__version__}"
    return _content([source.make_reader().path])


def _content(files: Iterable[Path]) -> str:
    """Hashes files."""
    total = hashlib.sha256()
    for path in files:
        if path.is_file():
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
