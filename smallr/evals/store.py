"""What an evaluation leaves on disk, so that a killed one goes on where it was.

run.json         what was asked, of which model, how
answers.jsonl    what the model gave, a line a question, written as it comes
samples.jsonl    every sample with its verdict, written at the end
results.json     the figures
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from smallr.errors import UserError


class Store:
    """The folder of one evaluation."""

    def __init__(self, folder: Path, run: Mapping[str, Any]):
        """Opens a new folder, or one of the same evaluation.

        Args:
          folder: made if it is missing.
          run: what must be the same for answers to be used again.

        Raises:
          UserError: the folder holds another evaluation, or something else; the differences are named.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "run.json"
        if path.exists():
            _refuse_another(path, run)
        elif any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no evaluation: choose another with --out")
        else:
            write_whole(path, json.dumps(run, indent=2) + "\n")
        self._lock = threading.Lock()
        self._answers = self._read_answers()

    def answers(self) -> dict[str, dict[str, Any]]:
        """What the model has given so far, by the question's key."""
        return dict(self._answers)

    def add(self, key: str, answer: Mapping[str, Any]) -> None:
        """Stores what the model gave for a question; on disk when this returns. Threads may call it."""
        line = json.dumps({"key": key, **answer}) + "\n"
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
            self._answers[key] = dict(answer)

    def finish(self, samples: Iterable[Mapping[str, Any]], results: Mapping[str, Any]) -> None:
        """Writes samples and results, each whole or not at all."""
        write_whole(self.folder / "samples.jsonl", "".join(json.dumps(sample) + "\n" for sample in samples))
        write_whole(self.folder / "results.json", json.dumps(results, indent=2) + "\n")

    @property
    def _path(self) -> Path:
        return self.folder / "answers.jsonl"

    def _read_answers(self) -> dict[str, dict[str, Any]]:
        """Whole lines; the end of a line that a kill has cut off is removed from the file."""
        if not self._path.exists():
            return {}
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with self._path.open("r+b") as file:
                file.truncate(len(whole))
        found = {}
        for number, line in enumerate(whole.decode("utf-8").split("\n"), start=1):
            if line:
                try:
                    answer = json.loads(line)
                    found[answer.pop("key")] = answer
                except (ValueError, KeyError, AttributeError) as error:
                    raise UserError(f"{self._path}, line {number}: not an answer ({error}); remove the line") from error
        return found


def question_key(identity: str, text: str) -> str:
    """The key of a question's answer: its id and a digest of what is asked, so that a changed prompt is asked anew."""
    return f"{identity}:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def write_whole(path: Path, text: str) -> None:
    """Writes a file at once or not at all."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}-", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


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


def _refuse_another(path: Path, run: Mapping[str, Any]) -> None:
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): choose another folder with --out") from error
    now = json.loads(json.dumps(run))
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changed:
        table = "; ".join(f"{key}: {before.get(key)!r} before, {now.get(key)!r} now" for key in changed)
        raise UserError(f"{path.parent} holds another evaluation ({table}): choose another folder with --out")
