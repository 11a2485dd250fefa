"""A COLLATE run of seconds: sums of two digits, a model of two layers, and rationales written by rule."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from smallr.core.journal import Journal
from smallr.methods.collate.config import base
from smallr.methods.collate.modes import Modes
from smallr.models.scratch import Size, train_tokenizer, write_scratch

END = "<|im_end|>"
MARKS = {"answer": "\n\nAnswer:", "rationale": "\n\nRationale:", "draft": "\n\nDraft:"}
MODES = Modes(**MARKS, end=END)


def row(a: int, b: int) -> dict[str, str]:
    """A question with rationale and answer."""
    return {"question": f"Add {a} and {b}.", "rationale": f"{a} + {b} = {a + b}.", "answer": str(a + b)}


ROWS = [row(number // 10, (7 * number) % 10) for number in range(30)]


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes rows as JSON lines; the path as text."""
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return str(path)


def write_model(folder: Path) -> str:
    """A model of random weights whose tokenizer knows the rows."""
    texts = [text for each in ROWS for text in each.values()] + [*MARKS.values()] * 20
    write_scratch(folder, train_tokenizer(texts, 320), Size("llama", 2, 32, 2, 256), 0)
    return str(folder)


def small_config(folder: Path, model: str, **changes: Any) -> ConfigDict:
    """Two providers and one round, an epoch each; `changes` have dotted names."""
    config = base()
    config.model, config.rounds, config.indirect, config.estimate = model, 1, False, False
    config.data.rows = write_lines(folder / "rows.jsonl", ROWS[:24])
    config.data.validation = write_lines(folder / "test.jsonl", ROWS[24:])
    config.training.dtype, config.training.remat = "float32", "none"
    config.training.rows, config.training.row_length, config.training.checkpoint_every = 4, 128, 2
    config.training.scored, config.training.examples = 128, 8
    config.utility.rows, config.utility.row_length = 4, 256
    config.generation.max_tokens, config.generation.answer_tokens, config.generation.decode_slots = 16, 8, 4
    config.pairs.filter = False
    for stage in ("tuning", "provider", "task"):
        config[stage].epochs, config[stage].learning_rate = 1, 1e-3
    config.update_from_flattened_dict(changes)
    config.lock()
    return config


def by_rule(model: str, round: int, prompt: str) -> str:
    """What a model writes: sums that are wrong for some questions, others for each model and round."""
    a, b = map(int, re.findall(r"Add (\d) and (\d)", prompt)[0])
    provider = re.findall(r"_(\d)-", model)  # none: the instruction-tuned model
    slip = (a + 2 * b + int(provider[-1] if provider else 2) + (round + 1) // 2) % 3
    if prompt.endswith(MARKS["answer"]):
        return str(a + b)
    return f"{a} + {b} = {a + b + slip}."


def write_by_rule(self: Any, folder: Path, model: Path, prompts: Sequence[str], options: Mapping[str, Any]) -> list:
    """Stands in for `Writer.complete`, with its journal."""
    del self
    journal = Journal(folder / "journal.jsonl", ("completions",))
    for first in range(0, len(prompts), 8):
        if str(first) not in journal:
            texts = [by_rule(model.name, options["round"], prompt) for prompt in prompts[first : first + 8]]
            if not options["sampling"].get("stop"):
                texts = [f"{text}\n\nAnswer: {text[-2]}" if "=" in text else text for text in texts]
            entries = [{"text": text, "reason": "stop", "error": "", "tokens": len(text.split())} for text in texts]
            journal.add(str(first), {"completions": entries})
    return [each for first in range(0, len(prompts), 8) for each in journal[str(first)]["completions"]]
