"""What an evaluation leaves on disk, so that a killed one goes on where it was.

run.json         what was asked, of which model, how
answers.jsonl    what the model gave, a line a question, written as it comes
samples.jsonl    every sample with its verdict, written at the end
results.json     the figures
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from smallr.core.errors import UserError
from smallr.core.journal import Journal, write_whole


class Store(Journal):
    """The folder of one evaluation."""

    def __init__(self, folder: Path, run: Mapping[str, Any]):
        """Opens a new folder, or one of the same evaluation; see `Journal`."""
        super().__init__(folder, run, name="answers.jsonl", what="evaluation")

    def answers(self) -> dict[str, dict[str, Any]]:
        """What the model has given so far, by the question's key."""
        return self.entries()

    def finish(self, samples: Iterable[Mapping[str, Any]], results: Mapping[str, Any]) -> None:
        """Writes samples and results, each whole or not at all."""
        write_whole(self.folder / "samples.jsonl", "".join(json.dumps(sample) + "\n" for sample in samples))
        write_whole(self.folder / "results.json", json.dumps(results, indent=2) + "\n")


def question_key(identity: str, text: str) -> str:
    """The key of a question's answer: its id and a digest of what is asked, so that a changed prompt is asked anew."""
    return f"{identity}:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """The samples of a finished evaluation.

    Raises:
      UserError: there are none.
    """
    path = folder / "samples.jsonl"
    if not path.is_file():
        unfinished = (folder / "answers.jsonl").exists()
        hint = "the evaluation was not finished; run it again" if unfinished else "no evaluation is there"
        raise UserError(f"{path} does not exist: {hint}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
