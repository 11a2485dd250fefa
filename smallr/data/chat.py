"""Writes rows as texts, with the spans of characters to score.

A chat is rendered by the tokenizer's own template, whole; the spans are found in that text. So what is scored never
depends on how parts would be tokenised by themselves, and the tokens are those of `apply_chat_template`.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from smallr.data.batch import ROLE_ANSWER, ROLE_RATIONALE
from smallr.data.errors import DataError
from smallr.data.messages import Message, opened
from smallr.data.orders import FORMATS, PROMPT
from smallr.data.rows import RationaleRow, TextRow
from smallr.data.templates import DATE, ChatTemplate, Marked, Span, Unrenderable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ROLE_OF = {"answer": ROLE_ANSWER, "rationale": ROLE_RATIONALE}


def rationale_pieces(template: str) -> tuple[str, str, str, str, tuple[str, str]]:
    """Splits `head{question}mid{first}between{second}tail`: (head, mid, between, tail, (first, second)).

    Raises:
      DataError: the template is not of that form.
    """
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise DataError(f"format {template!r}: {error}") from error
    names = [name for _, name, _, _ in fields if name is not None]
    literals = [literal for literal, _, _, _ in fields] + [""] * (4 - len(fields))
    if len(names) != 3 or names[0] != "question" or set(names[1:]) != set(_ROLE_OF):
        raise DataError(
            f"format {template!r} must hold {{question}} and then {{answer}} and {{rationale}}, each once, "
            f"like {FORMATS['answer_first']!r}"
        )
    return literals[0], literals[1], literals[2], literals[3], (names[1], names[2])


def choice_pieces(template: str) -> tuple[str, str]:
    """Returns what a prompt has before and behind `{question}`; no white space at its end.

    Raises:
      DataError: the question is not in it, or not once.
    """
    head, *tails = template.split("{question}")
    if len(tails) != 1:
        raise DataError(f"prompt {template!r} must hold {{question}} once, like {PROMPT!r}")
    return head, tails[0].rstrip()


def separator(template: str) -> str:
    """Returns what ends the first part of a target, without white space around it; all of it where it is nothing else."""
    between = rationale_pieces(template)[2]
    return between.strip() or between


class Renderer:
    """Writes checked rows as marked texts for one tokenizer.

    Args:
      tokenizer: its chat template is used for messages, and for plain text if `chat`.
      chat: wrap a plain prompt as a user message and a plain completion as an assistant message.
      formats: of each order, see `rationale_pieces`. In a chat the question is the user's message, with what the format
        has before it; what it has behind the question is left out.
      prompt: of choice rows, see `choice_pieces`; in a chat likewise.
      date: that a chat template writes where it writes today's.
      end: put the end token behind plain completions; without it more may follow them.

    Raises:
      DataError: `chat` without a chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        chat: bool,
        formats: Mapping[str, str] = FORMATS,
        prompt: str = PROMPT,
        date: str = DATE,
        end: bool = True,
    ) -> None:
        self._template = ChatTemplate(tokenizer, date)
        self._chat, self._end = chat, end
        self._pieces = {order: rationale_pieces(template) for order, template in formats.items()}
        self._around = choice_pieces(prompt)
        self._separators = {order: separator(template) for order, template in formats.items()}
        if chat:
            self._template.require("chat=True")

    def text_row(self, row: TextRow) -> tuple[Marked, ...]:
        """Renders one marked text for each completion.

        Raises:
          Unrenderable: the chat template cannot show the row, or the row's texts have been rendered by it before.
        """
        if isinstance(row.prompt, str) and (not self._chat or not row.prompt):
            return tuple(plain_text(row.prompt, completion, end=self._end) for completion in row.completions)
        if isinstance(row.prompt, str):
            self._check_bare(row.prompt, *row.completions)
        prompt = _messages(row.prompt, "user")
        if row.system:
            prompt = [{"role": "system", "content": row.system}, *prompt]
        opening = self._template.opening(prompt[:-1] if opened(prompt) else prompt, row.tools)
        completions = [_messages(text, "assistant") for text in row.completions]
        return tuple(self._template.turns(prompt, completion, opening, row.tools) for completion in completions)

    def prompt(self, question: str, order: str) -> str:
        """Returns all that stands before the target of a rationale row; in a chat it ends with the opening of the answer.

        Raises:
          Unrenderable: the chat template refuses the question.
        """
        lead = self._lead(question, order)
        return self._template.opening(_messages(lead, "user")) if self._chat else lead

    def choice_prompt(self, question: str) -> str:
        """Returns all that stands before the token of a choice row.

        Raises:
          Unrenderable: the chat template refuses the question.
        """
        head, tail = self._around
        if self._chat:
            self._check_bare(question)
        return self._template.opening(_messages(head + question, "user")) if self._chat else head + question + tail

    def _check_bare(self, *texts: str | Sequence[Message]) -> None:
        """Refuses plain texts that the chat template has rendered before."""
        if token := self._template.written_before(*(text for text in texts if isinstance(text, str))):
            raise Unrenderable(
                f"the text holds {token!r}, as the chat template writes it: it has been rendered already; set "
                "data.chat=False"
            )

    def _lead(self, question: str, order: str) -> str:
        head, mid, *_ = self._pieces[order]
        return head + question if self._chat else head + question + mid.rstrip()

    def rationale_row(self, row: RationaleRow, order: str) -> tuple[Marked]:
        """Returns the target in an order; the answer alone where there is no rationale.

        What stands between the parts ends the first one and has its role, as EOS has the last one's. White space
        before a part belongs to that part, so that a prompt never ends in a space.

        Raises:
          Unrenderable: the part that is written first contains what is to end it.
        """
        _, mid, between, tail, names = self._pieces[order]
        parts = [(name, getattr(row, name)) for name in names if getattr(row, name) is not None]
        if self._separators[order] and self._separators[order] in parts[0][1]:
            raise Unrenderable(f"the separator {self._separators[order]!r} occurs in the {parts[0][0]}")
        lead = self._lead(row.question, order)
        body = "" if self._chat else mid[len(mid.rstrip()) :]
        ends = []
        for index, (_, value) in enumerate(parts):
            is_last = index == len(parts) - 1
            body += value + (tail if is_last else between.rstrip())
            ends.append(len(body))
            body += "" if is_last else between[len(between.rstrip()) :]
        roles = [_ROLE_OF[name] for name, _ in parts]
        if not self._chat:
            starts = [0, *ends[:-1]]
            spans = zip(starts, ends, roles, strict=True)
            return (Marked(lead + body, tuple(Span(len(lead) + a, len(lead) + b, r) for a, b, r in spans), False),)
        self._check_bare(row.question, *(value for _, value in parts))
        prompt = _messages(lead, "user")
        marked = self._template.turns(prompt, _messages(body, "assistant"), self._template.opening(prompt))
        (turn,) = marked.spans
        begin = marked.text.rfind(body.rstrip(), turn.start, turn.end)
        cuts = [turn.start, *(begin + end for end in ends[:-1]), turn.end]
        return (Marked(marked.text, tuple(map(Span, cuts[:-1], cuts[1:], roles)), True),)


def plain_text(prompt: str, completion: str, *, end: bool = True) -> Marked:
    """Returns a completion, scored, behind its prompt; with `end` the end token is put behind it."""
    text = prompt + completion
    return Marked(text, (Span(len(prompt), len(text), ROLE_ANSWER),), False, ends=end)


def _messages(text: str | Sequence[Message], role: str) -> list[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else list(text)
