"""Has models write rationales, and says which of them can be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smallr.methods.collate.data import NothingLeftError, Row, opened, written
from smallr.methods.collate.modes import REFINE, Modes
from smallr.methods.collate.writer import Writer

EMPTY, CUT, MARK, REFUSED = "empty", "cut off by max_tokens", "holds the answer mark", "question too long"
NO_DRAFT = "its draft cannot be used"


def write_rationales(
    folder: Path, writer: Writer, model: Path, prompts: Sequence[str], modes: Modes, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes one rationale a prompt, and the data set of them: `text`, `usable` and `problem`.

    Args:
      folder: of the stage.
      writer: that the stages share.
      model: a run.
      prompts: of the modes I→R or refine.
      modes: texts of the modes.
      options: of `Writer.complete`.

    Raises:
      NothingLeftError: not one rationale can be used.
    """
    sampling = {**options["sampling"], "stop": (modes.answer,)}
    texts = writer.complete(folder, model, prompts, {**options, "sampling": sampling})
    rows = [_checked(text, modes) for text in texts]
    counts = Counter({"rows in": len(rows), "kept": sum(row["usable"] for row in rows)})
    counts.update(row["problem"] for row in rows if not row["usable"])
    if not counts["kept"]:
        problems = ", ".join(f"{name} {count}" for name, count in counts.items() if name not in ("rows in", "kept"))
        raise NothingLeftError(
            f"{folder.name}: {model.name} wrote no rationale that can be used ({problems}): raise "
            "config.generation.max_tokens where they are cut off, or train the model of instruction tuning longer"
        )
    return {**written(folder, rows, counts), "tokens": sum(each["tokens"] for each in texts)}


def refine_rationales(
    folder: Path,
    writer: Writer,
    model: Path,
    rows: Sequence[Row],
    drafts: Mapping[str, Any],
    modes: Modes,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Has a model refine the rationale of each row; as `write_rationales`. A rationale that cannot be used has no refinement."""
    given = opened(drafts)
    prompts = [modes.prompt(REFINE, row["question"], each["text"]) for row, each in zip(rows, given, strict=True)]
    value = write_rationales(folder, writer, model, prompts, modes, options)
    refined = [
        each if draft["usable"] else {"text": "", "usable": False, "problem": NO_DRAFT}
        for each, draft in zip(opened(value), given, strict=True)
    ]
    counts = Counter({"rows in": len(refined), "kept": sum(each["usable"] for each in refined)})
    counts.update(each["problem"] for each in refined if not each["usable"])
    return {**written(folder, refined, counts), "tokens": value["tokens"]}


def _checked(row: Row, modes: Modes) -> dict[str, Any]:
    """Returns a rationale with what is wrong with it; empty if it can be used."""
    problem = ""
    if row["error"]:
        problem = REFUSED
    elif row["reason"] == "length":
        problem = CUT
    elif not row["text"]:
        problem = EMPTY
    elif modes.separator in row["text"]:
        problem = MARK
    return {"text": row["text"], "usable": not problem, "problem": problem}
