"""What a long job leaves on disk as it goes, so that a killed one goes on where it was.

A folder has `run.json`, what was asked and how, and one file of lines, a finished piece of work each.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smallr.core.errors import UserError


class Journal:
    """The folder of one job.

    Args:
      folder: made if it is missing.
      run: what must be the same for finished work to be used again.
      name: of the file of lines.
      what: the job, for messages.

    Raises:
      UserError: the folder holds another job, or something else; the differences are named.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any], *, name: str = "journal.jsonl", what: str = "run"):
        self.folder = folder
        self._path, self._what = folder / name, what
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "run.json"
        if path.exists():
            self._refuse_another(path, run)
        elif any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no {what}: choose another with --out")
        else:
            write_whole(path, json.dumps(run, indent=2) + "\n")
        self._lock = threading.Lock()
        self._entries = self._read()

    def entries(self) -> dict[str, dict[str, Any]]:
        """What was finished so far, by its key."""
        return dict(self._entries)

    def add(self, key: str, entry: Mapping[str, Any]) -> None:
        """Stores a finished piece of work; on disk when this returns. Threads may call it."""
        line = json.dumps({"key": key, **entry}) + "\n"
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
            self._entries[key] = dict(entry)

    def _read(self) -> dict[str, dict[str, Any]]:
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
                    entry = json.loads(line)
                    found[entry.pop("key")] = entry
                except (ValueError, KeyError, AttributeError) as error:
                    raise UserError(f"{self._path}, line {number}: not an entry ({error}); remove the line") from error
        return found

    def _refuse_another(self, path: Path, run: Mapping[str, Any]) -> None:
        try:
            before = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON ({error}): choose another folder with --out") from error
        now = json.loads(json.dumps(run))
        changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        if changed:
            table = "; ".join(f"{key}: {before.get(key)!r} before, {now.get(key)!r} now" for key in changed)
            raise UserError(f"{self.folder} holds another {self._what} ({table}): choose another folder with --out")


def write_whole(path: Path, text: str) -> None:
    """Writes a file at once or not at all."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}-", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)
