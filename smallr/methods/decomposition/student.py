"""Gets the sub-questions of a student: a model writes them, or they stand in rows."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from smallr.agents.agent import encodable, is_at_fault, sampling_params
from smallr.core.errors import UserError
from smallr.core.journal import Journal
from smallr.core.stage_values import identity_of
from smallr.core.stages import Stopped
from smallr.data.errors import DataError
from smallr.data.sources import load_part
from smallr.language.base import LanguageModel
from smallr.language.opening import open_configured
from smallr.methods.decomposition.config import markers_of
from smallr.methods.decomposition.problems import ProblemRow
from smallr.methods.decomposition.raw import read_numbered
from smallr.sampling.requests import Request, Result, SamplingParams


@dataclasses.dataclass(frozen=True)
class Student:
    """Describes a student and its problems, as an input of a stage."""

    config: ConfigDict
    problems: Sequence[ProblemRow]

    @property
    def digest(self) -> str:
        """Returns a digest of all that the sub-questions depend on."""
        config = self.config
        content = [
            [row.question for row in self.problems],
            config.student.to_dict(),
            model_identity(config.student.model or config.student.rows),
            model_identity(config.student.advantage),
            config.markers.to_dict(),
            config.seed,
            {name: config.compute[name] for name in ("dtype", "max_length")},
        ]
        return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]


def model_identity(name: str) -> object:
    """Returns what tells a model or a file from another one: its content, or its name where it is not here."""
    path = Path(name).expanduser()
    return identity_of(path) if name and path.exists() else name


def write_sub_questions(folder: Path, student: Student) -> list[dict[str, Any]]:
    """Gives `sub_questions` and the `text` that they were read from, for each problem; replies are kept as they come.

    Raises:
      Stopped: some problems got no reply for no fault of their own.
      DataError: the rows that are to hold the sub-questions lack a problem.
    """
    if student.config.student.rows:
        return _from_rows(student)
    markers, journal = markers_of(student.config), Journal(folder / "journal.jsonl", ("text", "error"))
    todo = [row for row in student.problems if row.id not in journal]
    unanswered: list[str] = []
    with tqdm(total=len(student.problems), initial=len(student.problems) - len(todo), disable=None) as bar:

        def received(index: int, result: Result) -> None:
            bar.update()
            if result.error is not None and not is_at_fault(result.error):
                unanswered.append(result.error)
            else:
                text = encodable(result.samples[0].text) if result.samples else ""
                reason = result.samples[0].finish_reason if result.samples else ""
                journal.add(todo[index].id, {"text": text, "finish_reason": reason, "error": result.error or ""})

        if todo:
            with contextlib.closing(open_student(student.config)) as model:
                model.complete_sync([_request(row, student.config) for row in todo], progress=received)
    if unanswered:
        raise Stopped(f"{len(unanswered)} problems got no reply ({unanswered[0]}); the same command asks them again")
    entries = [journal[row.id] for row in student.problems]
    return [{**entry, "sub_questions": markers.read(entry["text"])} for entry in entries]


def open_student(config: ConfigDict) -> LanguageModel:
    """Opens the student, which continues plain text; with `advantage` steered by the values of that run."""
    student = config.student
    spec = student.model or ("local:" if student.advantage else "")
    return open_configured(config, spec, advantage=student.advantage, beta=student.beta)


def _request(row: ProblemRow, config: ConfigDict) -> Request:
    seed = hashlib.sha256(f"{config.seed}:{row.question}".encode()).digest()
    fields = {name: config.student[name] for name in ("temperature", "top_p", "max_tokens")}
    params: SamplingParams = sampling_params("config.student", **fields, seed=int.from_bytes(seed[:4], "big") >> 1)
    return Request(prompt=markers_of(config).prompt(row.question), params=params)


def _from_rows(student: Student) -> list[dict[str, Any]]:
    """Finds the sub-questions of each problem in rows, the first ones where there are several."""
    config = student.config.student
    found: dict[str, list[str]] = {}
    loaded, _, numbers = load_part(config.rows, config.split)
    for row, number in zip(loaded, numbers, strict=True):
        question, sub_questions = _published_or_response(row, f"{config.rows}, row {number}")
        found.setdefault(key_of(question), sub_questions)
    missing = [row for row in student.problems if key_of(row.question) not in found]
    if missing:
        raise DataError(
            f"config.student.rows = {config.rows}: no sub-questions for {len(missing)} of the problems, the first one "
            f"{missing[0].question[:80]!r}: give rows for all of them, or other problems (config.data.splits, config.data.limit)"
        )
    return [
        {"text": "", "finish_reason": "", "error": "", "sub_questions": found[key_of(row.question)]}
        for row in student.problems
    ]


def _published_or_response(row: dict[str, Any], where: str) -> tuple[str, list[str]]:
    if isinstance(row.get("question"), str) and isinstance(row.get("answers"), Sequence):
        return row["question"], list(row["answers"])
    if isinstance(row.get("problem"), str) and isinstance(row.get("questions"), str):
        return row["problem"], read_numbered(row["questions"])
    raise DataError(
        f"{where}: expected question and answers (sub-questions in a list), or problem and questions (lines Qn: …), found "
        f"{', '.join(row)}"
    )


def key_of(question: str) -> str:
    """Returns a problem without spaces: students that copied a problem into their output changed some of them."""
    return "".join(question.split())


def check_student(config: ConfigDict) -> None:
    """Refuses a file of rows that is not there before anything is loaded.

    Raises:
      UserError: it is not there.
    """
    for name in ("student", "reference"):
        rows = config[name].rows
        if rows and rows != "builtin":
            try:
                load_part(rows, config[name].split)
            except UserError as error:
                raise UserError(f"config.{name}.rows: {error}") from error
