"""Writes the modes of a COLLATE model as text, and the tokenizer that applies them.

  mode       prompt                                        completion
  I→A        question, answer mark                         answer, end token
  I→R        question, rationale mark                      rationale, answer mark
  [I;R]→A    question, rationale mark, rationale, answer mark   answer, end token
  refine     question, draft mark, draft, rationale mark   rationale, answer mark

A rationale ends with the answer mark instead of the end token, so that a model in mode I→R goes on with its answer: one
generation at inference, as long as plain chain of thought. The chat template of a run's tokenizer puts the rationale mark
behind the user's message. So every command applies the formats, and so does a model that was exported.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from smallr.core.files import whole_folder, write_json
from smallr.data.chat import plain_text
from smallr.data.templates import Marked
from smallr.training.opening import open_trained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ANSWER, RATIONALE, GIVEN, REFINE = "I→A", "I→R", "[I;R]→A", "refine"


@dataclasses.dataclass(frozen=True)
class Modes:
    """Texts of the modes.

    Attributes:
      answer, rationale, draft: marks, see `config.marks`.
      end: the end token, as the tokenizer writes it.
    """

    answer: str
    rationale: str
    draft: str
    end: str

    @property
    def separator(self) -> str:
        """Returns what must not occur in a rationale, since it ends one."""
        return self.answer.strip()

    def prompt(self, mode: str, question: str, rationale: str = "") -> str:
        """Returns the prompt of a mode; `rationale` is the given one, or the draft."""
        if mode == ANSWER:
            return question + self.answer
        if mode == RATIONALE:
            return question + self.rationale
        if mode == GIVEN:
            return f"{question}{self.rationale} {rationale}{self.answer}"
        return f"{question}{self.draft} {rationale}{self.rationale}"

    def written_answer(self, answer: str) -> str:
        """Returns an answer as a completion."""
        return f" {answer}{self.end}"

    def written_rationale(self, rationale: str) -> str:
        """Returns a rationale as a completion."""
        return f" {rationale}{self.answer}"

    def scored_answer(self, question: str, rationale: str | None, answer: str) -> Marked:
        """Returns a text whose scored part is the answer with its end; without a rationale in mode I→A."""
        prompt = self.prompt(ANSWER if rationale is None else GIVEN, question, rationale or "")
        return plain_text(prompt, self.written_answer(answer), end=False)

    def split(self, text: str) -> tuple[str, str]:
        """Splits what a model wrote in mode I→R into rationale and answer; the answer is empty where none was reached."""
        rationale, _, answer = text.partition(self.separator)
        return rationale.strip(), answer.strip()


def template(modes: Modes, begin: str) -> str:
    """Returns the chat template: it puts the rationale mark behind a user's message that ends with no mark of its own.

    Args:
      modes: the marks.
      begin: what the tokenizer puts before a text; empty if nothing.
    """
    marks = " or ".join(f"content.endswith({mark!r})" for mark in (modes.answer, modes.rationale))
    return (
        f"{{{{ {begin!r} }}}}"
        "{%- for message in messages -%}{%- set content = message['content'] -%}"
        "{%- if message['role'] == 'assistant' -%}{{ ' ' + content.strip() + eos_token }}"
        f"{{%- else -%}}{{{{ content }}}}{{%- if message['role'] == 'user' and not ({marks}) -%}}"
        f"{{{{ {modes.rationale!r} }}}}{{%- endif -%}}{{%- endif -%}}{{%- endfor -%}}"
    )


def open_modes(tokenizer: PreTrainedTokenizerFast, marks: dict[str, str]) -> Modes:
    """Returns the modes as a tokenizer writes them."""
    return Modes(**marks, end=str(tokenizer.eos_token))


def write_tokenizer(folder: Path, model: str, marks: dict[str, str]) -> dict[str, str | Path]:
    """Writes the tokenizer of a run, with the modes as its chat template, and `modes.json`, which tells them to people.

    Returns:
      The tokenizer's folder and the end token.
    """
    tokenizer = open_trained(model).tokenizer()
    modes = open_modes(tokenizer, marks)
    begins = tokenizer.bos_token_id is not None and tokenizer.encode("a")[:1] == [tokenizer.bos_token_id]
    tokenizer.chat_template = template(modes, str(tokenizer.bos_token) if begins else "")
    with whole_folder(folder / "tokenizer") as target:
        tokenizer.save_pretrained(target)
        shown = {mode: modes.prompt(mode, "{question}", "{rationale}") for mode in (ANSWER, RATIONALE, GIVEN, REFINE)}
        write_json(target / "modes.json", shown)
    return {"tokenizer": folder / "tokenizer", "end": modes.end}
