"""Keeps what an evaluation leaves in its folder, so that a killed one goes on where it was.

run.json         what was asked, of which model, how
answers.jsonl    what the model gave, a line a question, written as it comes
samples.jsonl    every sample with its verdict, written at the end
results.json     the figures
result.json      says that the evaluation is finished
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from smallr.core.errors import UserError
from smallr.core.files import FileError, read_json, read_json_lines, write_json, write_text
from smallr.core.stage_values import differences
from smallr.core.stages import RUN, StageFolder

ANSWERS, SAMPLES, RESULTS = "answers.jsonl", "samples.jsonl", "results.json"


def open_folder(folder: Path, identity: Mapping[str, Any]) -> StageFolder:
    """Returns a new folder, or one of the same evaluation, to be entered; its journal holds answers by the question's key."""
    return StageFolder(folder, identity, what="evaluation", pieces=ANSWERS, files=(SAMPLES, RESULTS))


def check_logprobs(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuses a folder whose answers differ from what is asked in their log-probs alone.

    Raises:
      UserError: says which measure of confidence would do without.
    """
    try:
        before = dict(read_json(folder / RUN)["settings"])
    except (FileError, KeyError, TypeError, ValueError):
        return  # a new folder, or one that is refused when it is entered
    if "logprobs" in identity and "logprobs" not in before and not differences(before | {"logprobs": True}, identity):
        raise UserError(
            f"{folder} holds answers without log-probs, which this measure of confidence is made of: choose another folder "
            "with --out, or a --config.confidence.measure that answers alone suffice for: majority and p_true can be had"
        )


def write_results(folder: Path, samples: Iterable[Mapping[str, Any]], results: Mapping[str, Any]) -> None:
    """Writes samples and results, each whole or not at all."""
    write_text(folder / SAMPLES, "".join(json.dumps(sample) + "\n" for sample in samples))
    write_json(folder / RESULTS, results)


def question_key(identity: str, text: str) -> str:
    """Makes the key of a question's answer: its id and a digest of what is asked, so that a changed prompt is asked anew."""
    return f"{identity}:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def read_samples(folder: Path, field: str = "correct") -> list[dict[str, Any]]:
    """Reads the samples of a finished evaluation, each with a verdict in `field`.

    Raises:
      UserError: there are none, or a line is damaged.
    """
    path = folder / SAMPLES
    if not path.is_file():
        unfinished = (folder / ANSWERS).exists()
        hint = "the evaluation was not finished; run it again" if unfinished else "no evaluation is there"
        raise UserError(f"{path} does not exist: {hint}")
    return read_json_lines(path, {"id": str, "sample": int, "reason": str, field: bool})
